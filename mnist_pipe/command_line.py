"""What the project's commands share: `--debug`, one line for an error, and the exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mnist_pipe.errors import InputError, message_and_code


def run(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], int],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the command line, do the work and return the exit code. An error is one line, or with --debug a traceback.

    `work` finds the command line as it was given in `options.arguments`.
    """
    debug = False
    try:
        arguments = sys.argv[1:] if arguments is None else arguments
        options = parser.parse_args(arguments, argparse.Namespace(arguments=arguments))
        debug = options.debug = getattr(options, "debug", False)
        code = work(options)
        sys.stdout.flush()  # a closed pipe is noticed here and not at exit, where nobody could catch the exception
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if debug:
            raise
        message, code = message_and_code(error)
        print(message, file=sys.stderr)
        return code


class Parser(argparse.ArgumentParser):
    """A parser that knows `--debug` and whose errors are one line, without the usage before it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # SUPPRESS: without it a subcommand's default would undo a --debug that stands before the subcommand.
        self.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")

    def error(self, message: str) -> NoReturn:
        """Raise the message instead of printing it."""
        raise InputError(f"{self.prog}: {message}; see {self.prog} --help")
