"""`python -m studies <study>`: show what a study measured, as its stage of `studies/dvc.yaml` does.

Writes the study's table and figures, its section of `studies/README.md`, and the table of systems in the project's
README. Exits 2 for a wrong name or a missing published figure, 4 where nothing was measured.
"""

from __future__ import annotations

import argparse
import sys

from mnist_pipe.errors import message_and_code
from studies import STUDIES
from studies.common import catalogue


def main() -> int:
    """Parse the command line and show the study."""
    parser = argparse.ArgumentParser(prog="python -m studies", description=__doc__.split("\n")[0])
    parser.add_argument("study", help=f"one of {', '.join(STUDIES)}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    arguments = parser.parse_args()
    try:
        catalogue.check(arguments.study, where="python -m studies")

        from studies.common import report

        print(f"{arguments.study}: {report.report(arguments.study)}")
    except Exception as fault:
        if arguments.debug:
            raise
        text, code = message_and_code(fault)
        print(text, file=sys.stderr)
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
