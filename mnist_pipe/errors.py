"""Exceptions that are reported to the user as one line, with an exit code that a script can act on."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit, urlunsplit

MAX_MESSAGE = 300
"""Largest length of a line of a message, in characters."""
_LEAST = 60  # characters that stay of each part of a message, if it has as many


class PipelineError(Exception):
    """An error that the user can fix; `str()` returns the whole message, one line of at most `MAX_MESSAGE` characters.

    A class method makes each of its three shapes: an invalid value, something missing, something unreachable.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__("\n".join(shortened(line) for line in message.split("\n")))

    @classmethod
    def invalid(cls, where: object, name: str, rule: str, *, got: object, fix: str = "") -> Self:
        """Return the error of an invalid value: `<where>: <name> must <rule>, but got <got>; <fix>`."""
        return cls(describe(where, name, rule, got=got, fix=fix))

    @classmethod
    def missing(cls, what: object, *, state: str = "does not exist", where: object = "", fix: str = "") -> Self:
        """Return the error of something missing: `<where>: <what> <state>; <fix>`."""
        text = ("{where}: " if where else "") + "{what} {state}" + ("; {fix}" if fix else "")
        return cls(
            _fitted(
                text, cut=("state", "where", "what", "fix"), what=_one(what), state=state, where=_one(where), fix=fix
            )
        )

    @classmethod
    def unreachable(cls, service: object, *, cause: object, where: object = "", fix: str = "") -> Self:
        """Return the error of an unreachable service: `<where>: <service> does not answer: <cause>; <fix>`."""
        return cls.missing(service, state=f"does not answer: {cause}", where=where, fix=fix)


class InputError(PipelineError, ValueError):
    """An error in a value that the user gave (exit code 2)."""

    exit_code = 2


class UnavailableError(PipelineError):
    """A lack of something that the machine needs: network, disk, GPU, a free port, a service (exit code 3)."""

    exit_code = 3


class CorruptDataError(PipelineError):
    """An error in stored data: bytes that are not what they claim to be (exit code 4)."""

    exit_code = 4


class BusyError(PipelineError):
    """A conflict with another process, which holds what this one needs (exit code 75, EX_TEMPFAIL: retry later)."""

    exit_code = 75


def describe(where: object, name: str, rule: str, *, got: object, fix: str = "") -> str:
    """Format an invalid value as one sentence; `got` is formatted by `str` (pass `repr(x)` if quotes help).

    If it would be longer than `MAX_MESSAGE`, first the value becomes shorter, then the rule, the place and the rest.
    """
    text = ("{where}: {name} " if name else "{where}: ") + "must {rule}, but got {got}" + ("; {fix}" if fix else "")
    cut = ("got", "rule", "where", "name", "fix")
    return _fitted(text, cut=cut, where=_one(where), name=name, rule=rule, got=_one(got), fix=fix)


def shortened(text: object, *, width: int = MAX_MESSAGE) -> str:
    """Return `text` on one line of at most `width` characters, without its last words or, of a path, its first folders.

    >>> shortened("columns: 1x1, 1x2, 1x3", width=16)
    'columns: 1x1, …'
    >>> shortened("/home/me/data/train.parquet", width=20)
    '…/data/train.parquet'
    """
    line = one_line(text)
    if len(line) <= width:
        return line
    path, _, rest = line.partition(": ")
    if path.count("/") > 1 and not path.startswith(("http:", "https:")):
        rest = f": {rest}" if rest else ""
        room = max(width - len(rest), min(_LEAST, width))
        while len(path) > room and "/" in path.removeprefix("…/"):
            path = f"…/{path.removeprefix('…/').partition('/')[2]}"
        line = path + rest
    return textwrap.shorten(line, width, placeholder=" …")


def _fitted(text: str, /, *, cut: tuple[str, ...], **parts: object) -> str:
    """Return `text` with the parts in it, those in `cut` shorter, one after the other, until it fits."""
    for name in cut:
        excess = len(text.format(**parts)) - MAX_MESSAGE
        if excess > 0:
            part = str(parts[name])
            parts[name] = shortened(part, width=max(len(part) - excess, min(_LEAST, len(part))))
    return text.format(**parts)


def _one(value: object) -> str:
    """Return the text of a message's part; the name of a file may contain a newline, which must not start a line."""
    return printable(str(value)).replace("\n", "\\n")


def one_line_path(path: Path) -> str:
    """Return the path without control characters, on one line."""
    return _one(path)


def printable(text: str) -> str:
    """Return `text` with control characters as escapes, because a terminal obeys them; newlines and tabs stay."""
    if text.isprintable():
        return text
    keep = "\n\t"
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def message_and_code(error: Exception) -> tuple[str, int]:
    """Return the one-line message of an exception and its exit code; an unforeseen one mentions `--debug`."""
    if isinstance(error, PipelineError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        where, got = error.filename or "a file", str(error.strerror or error).lower()
        return describe(where, "the path", "be readable and writable", got=got), UnavailableError.exit_code
    text = "{name}: {text}; add --debug for the traceback"
    return _fitted(text, cut=("text",), name=type(error).__name__, text=one_line(error)), 1


def one_line(text: object) -> str:
    """Return `str(text)`, of an exception for example, with every run of white space replaced by one space."""
    return " ".join(str(text).split())


def without_credentials(text: str) -> str:
    """Return `text` without the `user:password@` of a URL in it, whether the URL is valid or not."""
    return re.sub(r"//.*@", "//", text)


def public_url(url: str) -> str:
    """Return a valid URL without credentials, query and fragment, so that it may be printed."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def closest(value: object, known: Iterable[str]) -> str:
    """Return `did you mean 'x'?` if one of `known` is similar to `value`, else an empty string."""
    near = difflib.get_close_matches(str(value), list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else ""


def unknown(where: object, name: str, value: object, known: Iterable[str]) -> InputError:
    """Return the error of a name that is not in one of the project's dicts; it lists the names that are."""
    known = sorted(known)
    return InputError.invalid(where, name, f"be one of {', '.join(known)}", got=repr(value), fix=closest(value, known))
