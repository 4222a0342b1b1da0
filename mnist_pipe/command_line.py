"""The command line that the project's commands share: `--debug`, one-line errors and exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mnist_pipe.errors import InputError, message_and_code, printable


def run(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], int],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the command line, call `work` and return the exit code; print an error as one line.

    With `--debug`, raise the error instead, which prints its traceback.

    Args:
        parser: parses the command line into `options`.
        work: takes `options` and returns the exit code; `options.arguments` is the unparsed command line.
        arguments: the command line without the program's name; None reads it from `sys.argv`.
    """
    debug = False
    try:
        arguments = sys.argv[1:] if arguments is None else arguments
        options = parser.parse_args(arguments, argparse.Namespace(arguments=arguments))
        debug = options.debug = getattr(options, "debug", False)
        code = work(options)
        sys.stdout.flush()  # a closed pipe raises here and not at exit, where nothing catches the exception
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader closed the pipe. Python would print a second error when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if debug:
            raise
        message, code = message_and_code(error)
        show(message, error=True)
        return code


def show(text: object, *, error: bool = False) -> None:
    """Print `text` on standard output, or on standard error, without the control characters that a terminal obeys.

    Everything that may come from outside, as file names and replies of servers do, is printed here.
    """
    print(printable(str(text)), file=sys.stderr if error else sys.stdout, flush=True)


class Parser(argparse.ArgumentParser):
    """An argument parser with `--debug`, whose errors are one line without the usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Without SUPPRESS a subcommand's default would override a --debug given before the subcommand.
        self.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")

    def error(self, message: str) -> NoReturn:
        """Raise `message` as an InputError instead of printing it."""
        raise InputError(f"{self.prog}: {message}; see {self.prog} --help")
