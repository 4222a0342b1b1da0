"""The `mnist-pipe` command, which works in every folder of the project. Each command imports only what it needs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mnist_pipe import command_line, paths
from mnist_pipe.errors import CorruptDataError, PipelineError, UnavailableError


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; an error that the user can fix is printed in one line."""
    return command_line.run(_parser(), lambda options: options.run(paths.find_root(Path.cwd()), options), arguments)


def _up(root: Path, _: argparse.Namespace) -> int:
    from mnist_pipe.local import services

    services.up(root)
    _print([*_services(root), _STOP])
    return 0


def _down(root: Path, _: argparse.Namespace) -> int:
    from mnist_pipe.local import services

    *others, last = [service.name for service in services.down(root)] or [""]
    print(f"stopped {', '.join(others)}{' and ' if others else ''}{last}" if last else "nothing was running")
    return 0


def _status(root: Path, _: argparse.Namespace) -> int:
    from mnist_pipe.local import services

    found = services.status(root)
    _print([(name, services.describe(name, state, service)) for name, (state, service) in found.items()])
    return 0 if all(state is services.State.RUNNING for state, _ in found.values()) else 3


def _deploy(root: Path, _: argparse.Namespace) -> int:
    from pipelines.deployments import deploy

    for name in deploy(root):
        print(f"deployed {name}")
    return 0


def _dashboards(root: Path, _: argparse.Namespace) -> int:
    from mnist_pipe.local import dashboards

    codes = [
        _report(name, page if isinstance(page, PipelineError) else f"{page.url}   {page.login}")
        for name, page in dashboards.check(root).items()
    ]
    return UnavailableError.exit_code if any(codes) else 0


def _doctor(root: Path, _: argparse.Namespace) -> int:
    from mnist_pipe.local import doctor

    return max(_report(name, found) for name, found in doctor.examine(root))


def _predict(root: Path, options: argparse.Namespace) -> int:
    from mnist_pipe.inference import predict

    exit_code = 0
    for found in predict.classify(options.images, root=root, model=options.model):
        if isinstance(found, PipelineError):
            print(found, file=sys.stderr)
            exit_code = found.exit_code
        else:
            others = "  ".join(f"{digit}: {share:.4f}" for digit, share in enumerate(found.probabilities))
            print(f"{found.path}: {found.digit} ({100 * found.probability:.2f} %)   {others}")
    return exit_code


def _score(root: Path, options: argparse.Namespace) -> int:
    from mnist_pipe.local import services, supervisor

    if (code := supervisor.run_supervised("pipelines.cli", options.arguments)) is not None:
        return code
    os.environ.update(services.ray_environment(root))
    with nullcontext() if options.debug else _errors_to(root / services.LOGS / "score.log"):
        from mnist_pipe.cluster import storage
        from mnist_pipe.inference import batch, registered

        model = registered.load(options.model, root=root)
        place = storage.open_uri(options.input) if options.input.startswith("s3://") else None
        done = batch.score(
            place.root if place else Path(options.input),
            options.output,
            model=model,
            filesystem=place.filesystem if place else None,
        )
    rate = done.num_rows / done.seconds
    steady = done.num_rows / max(done.seconds - done.start_seconds, 0.001)
    accuracy = "" if done.accuracy is None else f"; accuracy {100 * done.accuracy:.2f} %"
    print(
        f"{options.output}: scored {done.num_rows:,} rows with {model.name} in {done.seconds:.1f} s: "
        f"{rate:,.0f} rows/s ({steady:,.0f} rows/s after {done.start_seconds:.1f} s of start-up){accuracy}"
    )
    return 0


def _serve(root: Path, options: argparse.Namespace) -> int:
    from mnist_pipe.local import services, supervisor
    from mnist_pipe.params import loader

    params = loader.load(root / paths.PARAMS, names=None).serve
    changed = {name: value for name in ("host", "port") if (value := getattr(options, name)) is not None}
    params = params.model_copy(update=changed)
    grace = params.drain_seconds + 10  # Serve and Ray need a few seconds more to stop
    if (code := supervisor.run_supervised("pipelines.cli", options.arguments, grace_seconds=grace)) is not None:
        return code
    os.environ.update(services.ray_environment(root))
    with nullcontext() if options.debug else _errors_to(root / services.LOGS / "serve.log"):
        from mnist_pipe.serving import command

        command.run(root, params=params, model=options.model, detach=options.detach, stop=options.stop)
    return 0


@contextmanager
def _errors_to(log: Path) -> Iterator[None]:
    """Redirect standard error to `log`: Ray's threads and its C++ code write to the file descriptor itself."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    console = os.dup(2)
    try:
        with log.open("ab") as stream:
            os.dup2(stream.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(console, 2)
        os.close(console)


def _summary(root: Path, _: argparse.Namespace) -> int:
    from mnist_pipe.atomic import read_json

    fix = "run: dvc repro"
    registration, evaluation = (read_json(root / path, fix=fix) for path in (paths.REGISTRATION, paths.EVALUATION))
    timings = read_json(root / paths.TIMINGS) if (root / paths.TIMINGS).exists() else {}
    try:
        rows = [
            *_outcome(registration, evaluation),
            ("time", _times(timings)),
            ("report", str(root / paths.REPORT)),
            *_services(root),
            *([("mlflow", uri)] if (uri := registration["tracking_uri"]).startswith("http") else []),
            ("dashboards", "mnist-pipe dashboards   also starts TensorBoard and MLflow, and checks every page"),
            _STOP,
        ]
        if evaluation["fallback_for"]:
            rows = [_fallback(evaluation), *rows, _fallback(evaluation)]
    except (LookupError, TypeError, ValueError) as error:
        state = f"is incomplete: {type(error).__name__} {error}"
        raise CorruptDataError.missing("a report", state=state, where=root / paths.REPORTS, fix=fix) from error
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


def _services(root: Path) -> list[tuple[str, str]]:
    from mnist_pipe.local import services

    return [(name, services.describe(name, state, service)) for name, (state, service) in services.status(root).items()]


def _times(timings: dict[str, float]) -> str:
    from mnist_pipe.evaluation.report import format_duration
    from pipelines import STAGES

    parts = [f"{stage} {format_duration(timings[stage])}" for stage in STAGES if stage in timings]
    return ", ".join([*parts, f"total {format_duration(sum(timings.values()))}"]) if parts else "not recorded"


def _fallback(evaluation: dict[str, Any]) -> tuple[str, str]:
    wanted, used = evaluation["fallback_for"], evaluation["dataset"]
    return (
        "FALLBACK",
        f"{wanted} could not be downloaded; all results are for {used}. To retry, run: dvc repro --force ingest",
    )


def _report(name: str, found: str | PipelineError) -> int:
    """Print the result of one check and return its exit code; further lines are indented to the text's column."""
    code = found.exit_code if isinstance(found, PipelineError) else 0
    print(f"{'FAIL' if code else 'ok':4}  {name:13}  {str(found).replace(chr(10), chr(10) + ' ' * 21)}")
    return code


def _print(rows: list[tuple[str, str]]) -> None:
    for name, text in rows:
        print(f"{name:12} {text}")


_STOP = ("stop", "mnist-pipe down")
COMMANDS: dict[str, tuple[Callable[[Path, argparse.Namespace], int], str]] = {
    "up": (_up, "start the local Prefect server and Ray head, with their dashboards"),
    "down": (_down, "stop what `up` started"),
    "status": (_status, "print the state of each service and how to log in"),
    "dashboards": (_dashboards, "start TensorBoard and MLflow too, check every page, and print its URL and login"),
    "doctor": (_doctor, "check this machine and this checkout"),
    "deploy": (_deploy, "apply prefect.yaml to the Prefect server that PREFECT_API_URL names"),
    "predict": (_predict, "predict the digits in image files with the registered champion"),
    "score": (_score, "predict every row of Parquet files with the registered champion, on the Ray cluster"),
    "serve": (_serve, "serve the registered champion over HTTP, with a page to draw on, on Ray Serve"),
    "summary": (_summary, "print what the last `dvc repro` registered and where to view it"),
}


def _parser() -> command_line.Parser:
    description = "Manage the local services, and predict with the registered champion."
    parser = command_line.Parser(prog="mnist-pipe", description=description)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (run, explanation) in COMMANDS.items():
        command = commands.add_parser(name, help=explanation, description=explanation)
        command.set_defaults(run=run)
        if name == "predict":
            command.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="a PNG or JPEG file")
            command.add_argument("--model", help="NAME@ALIAS or NAME/VERSION; the champion by default")
        if name == "score":
            command.add_argument("input", metavar="INPUT.parquet", help="a file or a folder of them, here or at s3://")
            command.add_argument("output", type=Path, metavar="OUTPUT", help="a folder, which must be new or empty")
            command.add_argument("--model", help="NAME@ALIAS or NAME/VERSION; the champion by default")
        if name == "serve":
            command.add_argument(
                "--model", help="NAME@ALIAS, which is followed, or NAME/VERSION; the champion by default"
            )
            command.add_argument("--host", help="address to listen on; serve.host of params.yaml by default")
            command.add_argument("--port", type=int, help="port to listen on; serve.port of params.yaml by default")
            command.add_argument("--detach", action="store_true", help="leave the endpoint to the Ray that runs")
            command.add_argument("--stop", action="store_true", help="stop the endpoint of the Ray that runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
