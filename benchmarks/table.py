"""The results as the table of the README: what was asked, what was measured, beside what."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from mnist_pipe.evaluation import markdown

HEADER = ("", "goal", "measured", "beside it, in the same run", "ratio")


def render(results: Mapping[str, Any]) -> str:
    """The table of `results` in Markdown."""
    return markdown.table(HEADER, _rows({name: entry["result"] for name, entry in results.items()}))


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    for part in ("training", "accuracy"):
        for name, point in found.get(part, {}).get("points", {}).items():
            peer = found[part].get("peer") if name == "99.00 %" else None
            beside = ratio = ""
            if peer:
                total = sum(seconds for seconds, _ in peer)
                beside = f"pytorch/examples: {peer[-1][1]:.2%} in {total:.0f} s, {len(peer)} epochs"
                ratio = f"{found[part]['ratio']:.0f}"
            yield (
                f"`{point['recipe']}`{_epochs(point)}, {point['num_parameters']:,} parameters",
                f"{name.replace(' ', '&nbsp;')} in {point['seconds_goal']:g} s",
                f"{point['mean_accuracy']:.2%} ± {100 * point['deviation']:.2f} ({len(point['seconds'])} seeds) "
                f"in {point['median_seconds']:.1f} s",
                beside,
                ratio,
            )
    if inference := found.get("inference"):
        ours, peer = (inference["images_per_second"][name] for name in ("ours", "pytorch/examples"))
        beside = f"the network of pytorch/examples: {peer:,.0f}"
        yield "images classified a second, `fast`", "60,000", f"{ours:,.0f}", beside, f"{inference['ratio']:.0f}"
    for step, ways in found.get("data", {}).items():
        others = {name: way for name, way in ways.items() if isinstance(way, dict) and name != "ours"}
        yield (
            step,
            f"{1000 * ways['limit_seconds']:,.0f} ms",
            f"{1000 * ways['ours']['median']:,.0f} ms",
            "; ".join(f"{name}: {way['median']:.2g} s" for name, way in others.items()),
            " to ".join(f"{pick(way['ratio'] for way in others.values()):.1f}" for pick in (min, max)),
        )
    if overhead := found.get("overhead"):
        seconds = dict(overhead["seconds"])
        ours = seconds.pop("ours")
        yield (
            f"{overhead['trials']} trials that do nothing",
            "",
            f"{ours:.1f} s, {overhead['first_trial_seconds']:.1f} s of it until the first had ended",
            "; ".join(f"Tune, {name}: {other:.0f} s" for name, other in seconds.items()),
            " and ".join(f"{other / ours:.1f}" for other in seconds.values()),
        )
    if search := found.get("search"):
        ours, stock = search["ours"], search["stock"]
        yield (
            f"{search['trials']} configurations",
            "8 times",
            f"{ours['validation_accuracy']:.2%} in {ours['seconds']:.0f} s",
            f"Tune and DataLoader: {stock['validation_accuracy']:.2%} in {stock['seconds']:.0f} s",
            f"{search['ratio']:.1f}",
        )
    if (run := found.get("distributed")) and "seconds_over_loop_of_two" in run:  # not of Ray Train as it was before
        yield "Ray Train over the bare loop, 5 epochs", "", f"{run['seconds_over_loop']:.1f} s", "", ""
        yield "the same with two workers", "", f"{run['seconds_over_loop_of_two']:.1f} s", "", ""
        yield "an epoch within it", "1.03", f"{run['epoch_ratio']:.2f}", "the bare loop", ""
        beside = "plain torch.distributed"
        yield "an epoch of two workers", "1.05", f"{run['epoch_ratio_of_two']:.2f}", beside, ""
    if pipeline := found.get("pipeline"):
        whole = [run["seconds"] for run in pipeline["runs"]]
        yield "`dvc repro` from nothing, services up", "100 s", _range(whole, "s"), "", ""
        outside = [run["outside"] for run in pipeline["runs"]]
        yield "of it outside search, train, evaluate", "25 s", _range(outside, "s"), "", ""
        idle = statistics.median(pipeline["nothing_to_do_seconds"])
        yield "`dvc repro`, nothing to do", "1.0 s", f"{idle:.2f} s", "", ""
        stages = [stage for run in pipeline["runs"] for stage in run["stages"].values()]
        fixed = [stage["before_seconds"] + stage["after_seconds"] for stage in stages]
        yield "a stage's fixed cost", "2.5 s", _range(fixed, "s"), "", ""
        peak = max(stage["peak_bytes"] for stage in stages)
        yield "most memory of any stage", "1.5 GB", f"{peak / 1e9:.2f} GB", "", ""


def _epochs(point: Mapping[str, Any]) -> str:
    return f", {point['num_epochs']} epochs" if point["num_epochs"] else ""


def _range(values: list[float], unit: str) -> str:
    least, most = min(values), max(values)
    return f"{least:.1f} {unit}" if f"{least:.1f}" == f"{most:.1f}" else f"{least:.1f} to {most:.1f} {unit}"
