"""The `mnist-pipe` command, from every folder of the project. Imports wait until a command needs them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mnist_pipe import layout
from mnist_pipe.errors import CorruptDataError, InputError, PipelineError, describe, line

if TYPE_CHECKING:
    from mnist_pipe.services import Service, State


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; what the user can mend is told in one line."""
    options = None
    try:
        options = _parser().parse_args(arguments)
        run, _ = COMMANDS[options.command]
        return run(layout.find_root(Path.cwd()), options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (PipelineError, OSError) as fault:
        if getattr(options, "debug", False):
            raise
        text, code = line(fault)
        print(text, file=sys.stderr)
        return code


def _up(root: Path, _: argparse.Namespace) -> int:
    from mnist_pipe import services

    services.up(root)
    _print([*_dashboards(services.status(root), root), _STOP])
    return 0


def _down(root: Path, _: argparse.Namespace) -> int:
    from mnist_pipe import services

    stopped = services.down(root)
    print(f"stopped {' and '.join(service.name for service in stopped)}" if stopped else "nothing was running")
    return 0


def _status(root: Path, _: argparse.Namespace) -> int:
    from mnist_pipe import services

    found = services.status(root)
    _print(_dashboards(found, root))
    return 0 if all(state is services.State.RUNNING for state, _ in found.values()) else 3


def _doctor(root: Path, _: argparse.Namespace) -> int:
    from mnist_pipe import doctor

    exit_code = 0
    for name, found in doctor.examine(root):
        failed = isinstance(found, PipelineError)
        print(f"{'FAIL' if failed else 'ok':4}  {name:13}  {str(found).replace(chr(10), chr(10) + ' ' * 21)}")
        if isinstance(found, PipelineError):
            exit_code = max(exit_code, found.exit_code)
    return exit_code


def _predict(root: Path, options: argparse.Namespace) -> int:
    from mnist_pipe import prediction

    exit_code = 0
    for found in prediction.classify(options.images, root=root, model=options.model):
        if isinstance(found, PipelineError):
            print(found, file=sys.stderr)
            exit_code = found.exit_code
        else:
            others = "  ".join(f"{digit}: {share:.4f}" for digit, share in enumerate(found.probabilities))
            print(f"{found.path}: {found.digit} ({100 * found.probability:.2f} %)   {others}")
    return exit_code


def _summary(root: Path, _: argparse.Namespace) -> int:
    from mnist_pipe import services
    from mnist_pipe.files import read_json

    fix = "run: dvc repro"
    registration, evaluation = (read_json(root / path, fix=fix) for path in (layout.REGISTRATION, layout.EVALUATION))
    timings = read_json(root / layout.TIMINGS) if (root / layout.TIMINGS).exists() else {}
    try:
        rows = [
            *_outcome(registration, evaluation),
            ("time", _times(timings)),
            ("report", str(root / layout.REPORT)),
            *_dashboards(services.status(root), root),
            ("tensorboard", f"{Path(sys.executable).with_name('tensorboard')} --logdir {root / layout.RAY_RESULTS}"),
            ("mlflow", _mlflow(root, registration["tracking_uri"])),
            _STOP,
        ]
        if evaluation["fallback_for"]:
            rows = [_fallback(evaluation), *rows, _fallback(evaluation)]
    except (LookupError, TypeError, ValueError) as fault:
        got = f"{type(fault).__name__} {fault}"
        raise CorruptDataError(
            describe(root / layout.REPORTS, "the figures", "be complete", got=got, fix=fix)
        ) from fault
    _print(rows)
    return 0


def _outcome(registration: dict[str, Any], evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    alias = f", alias {registration['alias']}" if registration["alias"] else ", without an alias"
    rows = [
        ("registered", f"{registration['name']} version {registration['version']}{alias}"),
        ("", registration["reason"]),
    ]
    for split in ("validation", "test"):
        score = evaluation[split]
        low, high = score["interval"]
        rows.append(
            (
                split,
                f"accuracy {100 * score['accuracy']:.2f} %, {100 * evaluation['confidence']:g} % interval "
                f"{100 * low:.2f} to {100 * high:.2f} %, {score['num_rows']:,} images",
            )
        )
    return rows


def _times(timings: dict[str, float]) -> str:
    from mnist_pipe.evaluation.report import duration
    from pipelines import STAGES

    parts = [f"{stage} {duration(timings[stage])}" for stage in STAGES if stage in timings]
    return ", ".join([*parts, f"together {duration(sum(timings.values()))}"]) if parts else "not recorded"


def _fallback(evaluation: dict[str, Any]) -> tuple[str, str]:
    wanted, used = evaluation["fallback_for"], evaluation["dataset"]
    return (
        "FALLBACK",
        f"{wanted} could not be fetched: all of this is about {used}. Try again: dvc repro --force ingest",
    )


def _mlflow(root: Path, uri: str) -> str:
    """How to look at the registry: its address, or the command that serves a local database."""
    if uri.startswith(("http://", "https://")):
        return uri
    if uri == f"sqlite:///{layout.MLFLOW_DB}":
        uri = f"sqlite:///{root / layout.MLFLOW_DB}"
    return f"{Path(sys.executable).with_name('mlflow')} ui --backend-store-uri {uri}"


def _dashboards(found: dict[str, tuple[State, Service | None]], root: Path) -> list[tuple[str, str]]:
    rows = []
    for name, (state, service) in found.items():
        if service is None:
            text = f"{state}; start it with: mnist-pipe up"
        elif state == "running":
            secret = "password" if name == "prefect" else "token"
            text = f"{service.url}   {secret}: the line in {_shown(service.secret, root)}"
        else:
            fix = "mnist-pipe up" if state == "died" else "mnist-pipe down, then mnist-pipe up"
            text = f"{state}; see {_shown(service.log, root)} and run: {fix}"
        rows.append((name, text))
    return rows


def _shown(path: str, root: Path) -> str:
    """A path of the project as it is reached from the current folder."""
    return os.path.relpath(path) if Path(path).is_relative_to(root) else path


def _print(rows: list[tuple[str, str]]) -> None:
    for name, text in rows:
        print(f"{name:12} {text}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage that argparse puts before it."""
        raise InputError(f"{self.prog}: {message}; see {self.prog} --help")


_STOP = ("stop", "mnist-pipe down")
COMMANDS: dict[str, tuple[Callable[[Path, argparse.Namespace], int], str]] = {
    "up": (_up, "start the local Prefect server and Ray head, with their dashboards"),
    "down": (_down, "stop what `up` started"),
    "status": (_status, "how they are, and how to log in"),
    "doctor": (_doctor, "check this machine and this checkout"),
    "predict": (_predict, "which digits the registered champion sees in pictures"),
    "summary": (_summary, "what the last `dvc repro` registered, and where to look at it"),
}


def _parser() -> _Parser:
    shared = _Parser(add_help=False)
    # SUPPRESS: without it a command's default would undo a --debug that stands before the command.
    shared.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    parser = _Parser(
        prog="mnist-pipe", parents=[shared], description="Look after the local services and the registered champion."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, (_, explanation) in COMMANDS.items():
        command = commands.add_parser(name, parents=[shared], help=explanation, description=explanation)
        if name == "predict":
            command.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="a PNG or JPEG file")
            command.add_argument("--model", help="NAME@ALIAS or NAME/VERSION; the champion where it is left out")
    return parser


if __name__ == "__main__":
    sys.exit(main())
