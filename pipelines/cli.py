"""The `mnist-pipe` command, which works in every folder of the project. Each command imports only what it needs."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_pipe import command_line, paths
from mnist_pipe.errors import PipelineError, UnavailableError
from mnist_pipe.local import dvc_files

if TYPE_CHECKING:
    from mnist_pipe.local.services import Service, State


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; an error that the user can fix is printed in one line."""
    return command_line.run(_parser(), _run, arguments)


def _run(options: argparse.Namespace) -> int:
    # A shell asks for its completions when it starts, in any folder.
    root = Path.cwd() if options.command == "completion" else paths.find_root(Path.cwd())
    if options.command in ("up", "status", "dashboards", "summary"):  # those around a `dvc repro`, which would fail
        for error in dvc_files.damaged(root):
            command_line.show(error, error=True)
    code: int = options.run(root, options)
    return code


def _up(root: Path, _: argparse.Namespace) -> int:
    from mnist_pipe.local import services
    from pipelines import summary

    services.up(root)
    _print([*_services(root), summary.STOP])
    return 0


def _down(root: Path, _: argparse.Namespace) -> int:
    from mnist_pipe.local import services

    *others, last = [service.name for service in services.down(root)] or [""]
    command_line.show(
        f"stopped {', '.join(others)}{' and ' if others else ''}{last}" if last else "nothing was running"
    )
    return 0


def _status(root: Path, options: argparse.Namespace) -> int:
    from mnist_pipe.local import services

    found = services.status(root)
    if options.json:
        _print_json({"services": _facts_of_services(found)})
    else:
        _print([(name, services.describe(name, *record)) for name, record in found.items()])
    return 0 if all(state is services.State.RUNNING for state, _ in found.values()) else 3


def _deploy(root: Path, _: argparse.Namespace) -> int:
    from mnist_pipe.local import configuration, services

    if configuration.prefect_setting(root, configuration.PREFECT_URL, "api", "url"):
        os.environ.update(services.prefect_environment(root))
    from pipelines.deployments import deploy

    for name in deploy(root):
        command_line.show(f"deployed {name}")
    return 0


def _dashboards(root: Path, _: argparse.Namespace) -> int:
    from mnist_pipe.local import dashboards

    codes = [
        _report(name, page if isinstance(page, PipelineError) else f"{page.url}   {page.login}")
        for name, page in dashboards.check(root).items()
    ]
    return UnavailableError.exit_code if any(codes) else 0


def _doctor(root: Path, options: argparse.Namespace) -> int:
    from mnist_pipe.local import doctor

    for line in dvc_files.repair(root) if options.fix else ():
        command_line.show(line, error=options.json)
    if not options.json:
        return max(_report(name, found) for name, found in doctor.examine(root))
    found = dict(doctor.examine(root))
    codes = {name: _exit_code(result) for name, result in found.items()}
    _print_json({"checks": {name: {"exit_code": codes[name], "text": str(found[name])} for name in found}})
    return max(codes.values())


def _predict(root: Path, options: argparse.Namespace) -> int:
    from mnist_pipe.atomic import write_bytes
    from mnist_pipe.inference import output, predict

    if options.show:
        output.check_target(options.show, pictures=list(predict.files(options.images)))
    readings = predict.classify(options.images, root=root, model=options.model, min_confidence=options.min_confidence)
    gc.freeze()  # Python would search what torch imported for garbage once more when it ends, which takes 0.4 s
    exit_code, is_first = 0, True
    for found in readings:
        if isinstance(found, PipelineError):
            command_line.show(found, error=True)
            exit_code = found.exit_code
            continue
        if found.warning:
            command_line.show(found.warning, error=True)
        if options.csv:
            command_line.show(output.to_csv(found, header=is_first))
        else:
            command_line.show(output.to_json(found) if options.json else output.to_text(found))
        if options.show:
            write_bytes(options.show, output.to_png(found))
        is_first = False
    return exit_code


def _score(root: Path, options: argparse.Namespace) -> int:
    from mnist_pipe.inference import table
    from mnist_pipe.local import services, supervisor

    if "://" not in options.input:
        table.examine(Path(options.input))  # before Ray and torch are imported, which takes seconds
    if (code := supervisor.run_supervised("pipelines.cli", options.arguments)) is not None:
        return code
    os.environ.update(services.ray_environment(root))
    with nullcontext() if options.debug else _errors_to(root / services.LOGS / "score.log"):
        from mnist_pipe.cluster import storage
        from mnist_pipe.inference import batch, registered

        model = registered.load(options.model, root=root)
        place = storage.open_uri(options.input) if "://" in options.input else None
        if place:
            place.check(write=False)
        done = batch.score(
            place.root if place else Path(options.input),
            options.output,
            model=model,
            filesystem=place.filesystem if place else None,
        )
    rate = done.num_rows / done.seconds
    steady = done.num_rows / max(done.seconds - done.start_seconds, 0.001)
    accuracy = "" if done.accuracy is None else f"; accuracy {100 * done.accuracy:.2f} %"
    command_line.show(
        f"{options.output}: scored {done.num_rows:,} rows with {model.name} in {done.seconds:.1f} s: "
        f"{rate:,.0f} rows/s ({steady:,.0f} rows/s after {done.start_seconds:.1f} s of start-up){accuracy}"
    )
    return 0


def _export(root: Path, options: argparse.Namespace) -> int:
    from mnist_pipe.inference import export

    done = export.export(options.output, kind=options.format, root=root, model=options.model)
    line = f"{options.output / done.path.name}: {done.model}, {done.path.stat().st_size:,} bytes"
    if done.num_images:
        line += (
            f"; on {done.num_images:,} test images the same classes as torch, "
            f"and probabilities that differ by at most {done.difference:.1e}"
        )
    command_line.show(line)
    return 0


def _serve(root: Path, options: argparse.Namespace) -> int:
    from mnist_pipe.local import services, supervisor
    from mnist_pipe.params import loader
    from mnist_pipe.registry import versions
    from mnist_pipe.serving import access

    params = loader.load(root / paths.PARAMS, names=None).serve
    changed = {name: value for name in ("host", "port") if (value := getattr(options, name)) is not None}
    params = params.model_copy(update=changed)
    access.check_options(params)
    grace = params.drain_seconds + 10  # Serve and Ray need a few seconds more to stop
    if (code := supervisor.run_supervised("pipelines.cli", options.arguments, grace_seconds=grace)) is not None:
        return code
    os.environ.update(services.ray_environment(root))
    with nullcontext() if options.debug else _errors_to(root / services.LOGS / "serve.log"):
        if options.model and not options.stop:  # a wrong name is told before 2 s of imports
            versions.find(options.model, root=root)
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


def _summary(root: Path, options: argparse.Namespace) -> int:
    from mnist_pipe.local import services
    from pipelines import summary

    facts = summary.read(root)
    if options.json:
        _print_json({**facts, "services": _facts_of_services(services.status(root))})
    else:
        _print(summary.rows(facts, services=_services(root)))
    return 0


def _completion(_: Path, options: argparse.Namespace) -> int:
    import shtab

    command_line.show(shtab.complete(_parser(file=shtab.FILE, folder=shtab.DIRECTORY), shell=options.shell))
    return 0


def _facts_of_services(found: dict[str, tuple[State, Service | None]]) -> dict[str, dict[str, str | None]]:
    from mnist_pipe.local import services

    return {name: services.facts(name, *record) for name, record in found.items()}


def _services(root: Path) -> list[tuple[str, str]]:
    from mnist_pipe.local import services

    return [(name, services.describe(name, *record)) for name, record in services.status(root).items()]


def _report(name: str, found: str | PipelineError) -> int:
    """Print the result of one check and return its exit code; further lines are indented to the text's column."""
    code = _exit_code(found)
    command_line.show(f"{'FAIL' if code else 'ok':4}  {name:13}  {str(found).replace(chr(10), chr(10) + ' ' * 21)}")
    return code


def _exit_code(found: str | PipelineError) -> int:
    return found.exit_code if isinstance(found, PipelineError) else 0


def _print_json(value: dict[str, Any]) -> None:
    import json

    command_line.show(json.dumps(value, indent=2, allow_nan=False))


def _print(rows: list[tuple[str, str]]) -> None:
    for name, text in rows:
        command_line.show(f"{name:12} {text}")


def _share(text: str) -> float:
    """Return a command-line argument that must be a number from 0 to 1."""
    with suppress(ValueError):
        if 0 <= (share := float(text)) <= 1:
            return share
    raise argparse.ArgumentTypeError(f"must be 0 to 1, but got {text!r}")


COMMANDS: dict[str, tuple[Callable[[Path, argparse.Namespace], int], str]] = {
    "up": (_up, "start the local Prefect server and Ray head, with their dashboards"),
    "down": (_down, "stop what `up` started"),
    "status": (_status, "print the state of each service and how to log in"),
    "dashboards": (
        _dashboards,
        "start the servers that only show results too, check every page, and print its URL and login",
    ),
    "doctor": (_doctor, "check this machine and this checkout"),
    "deploy": (_deploy, "apply prefect.yaml to the Prefect server that PREFECT_API_URL names"),
    "predict": (_predict, "predict what PNG and JPEG pictures show with the registered champion"),
    "score": (_score, "predict every row of Parquet files with the registered champion, on the Ray cluster"),
    "export": (_export, "write the registered champion as ONNX or safetensors, for programs without this project"),
    "serve": (_serve, "serve the registered champion over HTTP, with a page to draw on, on Ray Serve"),
    "summary": (_summary, "print what the last `dvc repro` registered and where to view it"),
    "completion": (_completion, "print a script that completes this command's words in a shell"),
}


def _parser(*, file: object = None, folder: object = None) -> command_line.Parser:
    """Return the parser of the command line.

    Args:
        file: what shtab finds in an argument that is a file; None if no completion is made, as importing shtab takes
            50 ms.
        folder: the same for a folder.
    """
    description = "Manage the local services, and predict with the registered champion."
    parser = command_line.Parser(prog="mnist-pipe", description=description)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (run, explanation) in COMMANDS.items():
        command = commands.add_parser(name, help=explanation, description=explanation)
        command.set_defaults(run=run)
        if name in ("status", "doctor", "summary"):
            command.add_argument("--json", action="store_true", help="print one JSON document; see docs/commands.md")
        if name == "doctor":
            explanation = "first bring back the files of DVC that a kill or a full disk has left empty"
            command.add_argument("--fix", action="store_true", help=explanation)
        if name == "predict":
            explanation = "a picture (PNG, JPEG, BMP, TIFF, WebP), a folder of them, or - for one from standard input"
            images = command.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help=explanation)
            images.complete = file  # type: ignore[attr-defined]
            explanation = "print ? for a prediction whose probability is below P"
            command.add_argument("--min-confidence", type=_share, default=0.0, metavar="P", help=explanation)
            forms = command.add_mutually_exclusive_group()
            forms.add_argument("--json", action="store_true", help="print a line of JSON for each picture")
            forms.add_argument("--csv", action="store_true", help="print a row of CSV for each digit")
            explanation = "write the picture with boxes and labels; for exactly one picture"
            command.add_argument("--show", type=Path, metavar="FILE.png", help=explanation)
        if name == "score":
            table = command.add_argument(
                "input", metavar="INPUT.parquet", help="a file or a folder, here or in a bucket"
            )
            table.complete = file  # type: ignore[attr-defined]
        if name == "export":
            command.add_argument("--format", required=True, choices=("onnx", "safetensors"), help="of the model's file")
        if name in ("score", "export"):
            output = command.add_argument("output", type=Path, metavar="OUTPUT", help="a folder, new or empty")
            output.complete = folder  # type: ignore[attr-defined]
        if name in ("predict", "score", "export"):
            command.add_argument("--model", help="NAME@ALIAS or NAME/VERSION; the champion by default")
        if name == "completion":
            command.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell that reads the script")
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
