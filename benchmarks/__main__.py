"""Run the benchmarks, write `benchmarks/results.json` and the README's table: `make bench`, about three hours.

    python -m benchmarks                    # all of them
    python -m benchmarks data inference     # only these two; the other results are kept
    python -m benchmarks --table            # only rewrite the table from the existing results

Each benchmark runs in its own process. A result records its date, its hardware and the version of the code.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import table
from mnist_pipe.evaluation import markdown, stamp

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
SHORT = ["99.00 %", "99.50 %"]
LONG = {"99.65 %": 10, "99.75 %": 5}  # number of seeds of each
Log = Callable[[str], None]


def _training(log: Log) -> Any:
    from benchmarks import training

    return training.measure(SHORT, seeds=10, log=log)


def _accuracy(log: Log) -> Any:
    from benchmarks import training

    points: dict[str, Any] = {}
    for name, seeds in LONG.items():
        points |= training.measure([name], seeds=seeds, peer=False, log=log)["points"]
    return {"points": points}


def _fashion(log: Log) -> Any:
    from benchmarks import training

    return training.measure(["94.00 %"], seeds=3, peer=False, log=log)


def _inference(log: Log) -> Any:
    from benchmarks import inference

    return inference.measure(log=log)


def _data(log: Log) -> Any:
    from benchmarks import data

    return data.measure(Path("../shared/mnist"), repeats=5, log=log)


def _pictures(log: Log) -> Any:
    from benchmarks import pictures

    return pictures.measure(Path("../shared/mnist").resolve(), repeats=5, log=log)


def _overhead(log: Log) -> Any:
    from benchmarks import search

    return search.overhead(trials=100, log=log)


def _search(log: Log) -> Any:
    from benchmarks import search

    return search.real(trials=32, log=log)


def _distributed(log: Log) -> Any:
    from benchmarks import distributed

    return distributed.measure(repeats=3, log=log)


def _pipeline(log: Log) -> Any:
    from benchmarks import pipeline

    return pipeline.measure(repeats=2, log=log)


def _serving(log: Log) -> Any:
    from benchmarks import serving

    return serving.measure(root=FOLDER.parent, log=log)


def _growth(log: Log) -> Any:
    from benchmarks import growth

    found = growth.measure(log=log)
    growth.draw(found, FOLDER / "growth.png")
    return found


def _scale(log: Log) -> Any:
    from benchmarks import scale

    return scale.measure(log=log)


BENCHMARKS: dict[str, Callable[[Log], Any]] = {
    "training": _training,
    "accuracy": _accuracy,
    "fashion": _fashion,
    "inference": _inference,
    "data": _data,
    "pictures": _pictures,
    "overhead": _overhead,
    "search": _search,
    "distributed": _distributed,
    "pipeline": _pipeline,
    "serving": _serving,
    "growth": _growth,
    "scale": _scale,
}


def _run(name: str) -> None:
    found = BENCHMARKS[name](partial(print, f"{name}:", flush=True))
    entry = {**stamp.stamp(FOLDER.parent), "result": found}
    everything = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**everything, name: entry}, indent=1) + "\n")


def main() -> int:
    """Run the named benchmarks, write the results after each, then the table; return the number that failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="benchmark", help=f"of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--here", action="store_true", help="in this process, one after the other")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    failed = []
    for name in [] if options.table else options.names or BENCHMARKS:
        if options.here:
            _run(name)
        elif subprocess.run([sys.executable, "-m", "benchmarks", "--here", name], check=False).returncode:
            failed.append(name)
    results = json.loads(RESULTS.read_text())
    markdown.replace_region(FOLDER / "README.md", "benchmarks", lambda _: table.render(results))
    markdown.replace_region(FOLDER.parent / "README.md", "results", lambda _: table.render_accuracies(results))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
