"""What can go wrong for a user: one line each, and the exit code that a script can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Self
from urllib.parse import urlsplit, urlunsplit


class PipelineError(Exception):
    """An error that the user can fix; `str()` is the whole message, one line.

    It has one of three shapes, each made by a class method: a wrong value, something missing, something out of reach.
    """

    exit_code = 1

    @classmethod
    def invalid(cls, where: object, name: str, rule: str, *, got: object, fix: str = "") -> Self:
        """Report a wrong value: `<where>: <name> must <rule>, but got <got>; <fix>`."""
        return cls(describe(where, name, rule, got=got, fix=fix))

    @classmethod
    def missing(cls, what: object, *, state: str = "does not exist", where: object = "", fix: str = "") -> Self:
        """Report something missing: `<where>: <what> <state>; <fix>`."""
        return cls((f"{where}: " if where else "") + f"{what} {state}" + (f"; {fix}" if fix else ""))

    @classmethod
    def unreachable(cls, service: object, *, cause: object, where: object = "", fix: str = "") -> Self:
        """Report something out of reach: `<where>: <service> does not answer: <cause>; <fix>`."""
        return cls.missing(service, state=f"does not answer: {cause}", where=where, fix=fix)


class InputError(PipelineError, ValueError):
    """A value that the user gave breaks a rule (exit 2)."""

    exit_code = 2


class UnavailableError(PipelineError):
    """The machine lacks something: network, disk, GPU, a free port, a service (exit 3)."""

    exit_code = 3


class CorruptDataError(PipelineError):
    """Bytes that are not what they claim to be (exit 4)."""

    exit_code = 4


class BusyError(PipelineError):
    """Another process holds what this one needs (exit 75, EX_TEMPFAIL: try again later)."""

    exit_code = 75


def describe(where: object, name: str, rule: str, *, got: object, fix: str = "") -> str:
    """Format a wrong value as one sentence; `got` is shown as it is (pass `repr(x)` where quotes help)."""
    subject = f"{where}: {name}" if name else f"{where}:"
    return f"{subject} must {rule}, but got {got}" + (f"; {fix}" if fix else "")


def message_and_code(error: Exception) -> tuple[str, int]:
    """What the user is told of an error, and the exit code; for what nobody foresaw, the way to the traceback."""
    if isinstance(error, PipelineError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        where, got = error.filename or "a file", str(error.strerror or error).lower()
        return describe(where, "the path", "be readable and writable", got=got), UnavailableError.exit_code
    return f"{type(error).__name__}: {one_line(error)[:300]}; add --debug for the traceback", 1


def one_line(text: object) -> str:
    """The text of `text`, an exception for instance, with every run of white space as one space."""
    return " ".join(str(text).split())


def without_credentials(text: str) -> str:
    """`text` without the `user:password@` of a URL in it, be the URL valid or not."""
    return re.sub(r"//.*@", "//", text)


def public_url(url: str) -> str:
    """What may be shown of a valid URL: no credentials, no query, no fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def closest(value: object, known: Iterable[str]) -> str:
    """`did you mean 'x'?` where one of `known` is near `value`, else an empty string."""
    near = difflib.get_close_matches(str(value), list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else ""


def unknown(where: object, name: str, value: object, known: Iterable[str]) -> InputError:
    """The error of a name that is not in one of the project's dicts, listing the ones that are."""
    known = sorted(known)
    return InputError.invalid(where, name, f"be one of {', '.join(known)}", got=repr(value), fix=closest(value, known))
