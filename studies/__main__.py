"""`python -m studies <study>`: show what a study measured, as its stage of `studies/dvc.yaml` does.

The command writes the study's table and figures, its section of `studies/README.md`, and the table of systems in the
project's README. It exits with 2 if the name is unknown or a published number is missing, and with 4 if nothing was
measured.
"""

from __future__ import annotations

import argparse
import sys

from mnist_pipe import command_line, interpreter
from studies import STUDIES


def main() -> int:
    """Show the study that the command line names and return the exit status."""
    parser = command_line.Parser(prog="python -m studies", description=__doc__.split("\n")[0])
    parser.add_argument("study", help=f"one of {', '.join(STUDIES)}")
    return command_line.run(parser, _show)


def _show(options: argparse.Namespace) -> int:
    interpreter.enter("studies")
    from studies.common import catalogue, report

    catalogue.check(options.study, where="python -m studies")
    command_line.show(f"{options.study}: {report.report(options.study)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
