"""The summary of the last `dvc repro`: what was registered, how good it is, and where to look at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mnist_pipe import paths, timings
from mnist_pipe.atomic import read_json
from mnist_pipe.errors import CorruptDataError, InputError
from mnist_pipe.registry import store, versions
from pipelines import STAGES

STOP = ("stop", "mnist-pipe down")
"""Row that says how the local services are stopped."""
_FIX = "run: dvc repro"


def read(root: Path) -> dict[str, Any]:
    """Return the facts of the summary; `mnist-pipe summary --json` prints them as they are.

    Raises:
        CorruptDataError: a report is missing or incomplete, or the registry does not have what was registered.
        UnavailableError: the registry does not answer.
    """
    registration, evaluation = (read_json(root / path, fix=_FIX) for path in (paths.REGISTRATION, paths.EVALUATION))
    recorded = timings.read(root)
    try:
        facts = {
            "registered": {key: registration[key] for key in ("name", "version", "alias", "reason")},
            "tracking_uri": str(registration["tracking_uri"]),
            "dataset": evaluation["dataset"],
            "fallback_for": evaluation["fallback_for"],
            **{split: _score(evaluation[split]) for split in ("validation", "test")},
            "confidence": float(evaluation["confidence"]),
            "seconds": {stage: recorded[stage].seconds for stage in STAGES if stage in recorded},
            "report": str(root / paths.REPORT),
        }
    except (LookupError, TypeError, ValueError) as error:
        state = f"is incomplete: {type(error).__name__} {error}"
        raise CorruptDataError.missing("a report", state=state, where=root / paths.REPORTS, fix=_FIX) from error
    _check_registered(root, facts)
    return facts


def rows(facts: dict[str, Any], *, services: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the summary for people, as pairs of a heading and a text; `services` is its part about the dashboards."""
    fallback = [_fallback(facts)] if facts["fallback_for"] else []
    is_server = facts["tracking_uri"].startswith("http")
    return [
        *fallback,
        *_outcome(facts),
        ("time", _times(facts["seconds"])),
        ("report", facts["report"]),
        *services,
        *([("mlflow", facts["tracking_uri"])] if is_server else []),
        ("dashboards", "mnist-pipe dashboards   also starts TensorBoard and MLflow, and checks every page"),
        STOP,
        *fallback,
    ]


def _check_registered(root: Path, facts: dict[str, Any]) -> None:
    """Check that the project's own registry still has the version: `.state/` may have been removed."""
    if not store.is_own_store(root) or facts["tracking_uri"] != store.public_uri(root):
        return  # registered on a server, which this machine need not reach
    spec = f"{facts['registered']['name']}/{facts['registered']['version']}"
    try:
        versions.find(spec, root=root)
    except InputError:
        where, fix = store.public_uri(root), store.register_again(root)
        raise CorruptDataError.missing(spec, state="is not registered any more", where=where, fix=fix) from None


def _score(metrics: dict[str, Any]) -> dict[str, Any]:
    low, high = metrics["interval"]
    return {
        "accuracy": float(metrics["accuracy"]),
        "interval": [float(low), float(high)],
        "num_rows": int(metrics["num_rows"]),
    }


def _outcome(facts: dict[str, Any]) -> list[tuple[str, str]]:
    registered = facts["registered"]
    alias = f", alias {registered['alias']}" if registered["alias"] else ", without an alias"
    rows = [("registered", f"{registered['name']} version {registered['version']}{alias}"), ("", registered["reason"])]
    for split in ("validation", "test"):
        score = facts[split]
        low, high = score["interval"]
        rows.append(
            (
                split,
                f"accuracy {100 * score['accuracy']:.2f} %, {100 * facts['confidence']:g} % interval "
                f"{100 * low:.2f} to {100 * high:.2f} %, {score['num_rows']:,} images",
            )
        )
    return rows


def _times(seconds: dict[str, float]) -> str:
    from mnist_pipe.evaluation.report import format_duration  # its import takes a third of a second

    parts = [f"{stage} {format_duration(duration)}" for stage, duration in seconds.items()]
    return ", ".join([*parts, f"total {format_duration(sum(seconds.values()))}"]) if parts else "not recorded"


def _fallback(facts: dict[str, Any]) -> tuple[str, str]:
    wanted, used = facts["fallback_for"], facts["dataset"]
    return (
        "FALLBACK",
        f"{wanted} could not be downloaded; all results are for {used}. "
        "To retry, run: dvc repro --force ingest && dvc repro",
    )
