"""Networks of several kinds, chosen and averaged by what they reach on training rows that are held out.

In the phase `choice`, one network of each kind is trained on the other rows. The rows that are held out choose
the best kind, the kinds whose average is best, how the average is formed, and each kind's temperature. In the phase
`final`, networks of these kinds and of the control, which is the recipe `best` of the main pipeline, are trained on all
60,000 rows, several seeds each. The number of epochs is the same for all and was fixed by what the machine trains in
the time. The last weights count, and every final network is shown. The test split chooses nothing, apart from the
results under `selected`, which show what that would be worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mnist_pipe.data.splits import NUM_CLASSES, SIDE, NormalizedSplit
from mnist_pipe.evaluation.significance import mcnemar
from mnist_pipe.models import forward
from mnist_pipe.models.tta import ShiftAveraged
from mnist_pipe.params.schema import Epochs, Section
from mnist_pipe.training.batches import to_device
from mnist_pipe.training.recipe import Recipe
from studies.common.deskew import deslanted
from studies.common.fitting import Splits, device, pixels, whole
from studies.common.ledger import Config, Result, Run
from studies.common.packing import packed, unpacked
from studies.common.significance import combined
from studies.frontier import ensembles, networks
from studies.frontier.distortions import Distortion

NEARBY_ROWS = 200
"""Rows that count as near each other in the published order."""
_CHOOSING = "scaled logarithms"
"""The average by which members are chosen; how theirs is formed is chosen after that."""


class Kind(Section):
    """A kind of network and how it is trained.

    The distortions were fixed before the study by networks of six epochs, one seed each, on rows that are held out. Of
    10,000 random rows the control misread 42; a scale and shear of 0.15 with an elasticity of 1 pixel made 13 mistakes
    more, of 0.06 with 0.5 pixels 3 more. Of the last rows it misread 30; the latter made 5 more, channels of 48, 96 and
    192 made 2 more, both together 1 more. The Brier scores were 0.00526, 0.00554, 0.00507 and 0.00533.
    """

    channels: Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=1, max_length=4)]
    """Channels of each block of the convnet."""
    convolutions: Annotated[int, Field(ge=1, le=4)] = 2
    """Convolutions of a block."""
    kernel: Literal[3, 5, 7] = 3
    """Side of the kernels of all convolutions, in pixels."""
    crop: Annotated[int, Field(ge=0, le=4)] = 0
    """Pixels that are cut from each side; above 0, the last block does not pool."""
    deslanted: bool = False
    """Whether the slant of every image is removed first, as in `lecun1998`."""
    distortion: Distortion
    """Random distortions of the training images."""
    cycles: Annotated[int, Field(ge=1, le=10)] = 1
    """Cycles of the learning rate; the network's output is the average of the snapshots at their ends."""
    distilled: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the loss that a teacher's output has, which is a network of the same kind; 0 does without a teacher."""


class Params(Section):
    """The section `frontier` of `studies/params.yaml`."""

    validation_rows: Annotated[int, Field(ge=10, le=30_000)]
    """Training rows that are held out, and choose: the last ones."""
    num_epochs: Epochs
    """Epochs of every network."""
    num_seeds: Annotated[int, Field(ge=3, le=100)]
    """Final networks of each kind."""
    most_members: Annotated[int, Field(ge=2, le=20)]
    """Most kinds in an ensemble, which has one network of each."""
    kinds: Annotated[dict[str, Kind], Field(min_length=2)]
    """Kinds by the name under which they are shown; the first one is the control."""


def plan(params: Params) -> list[Config]:
    """Return a configuration for each kind, the costliest first."""
    return _by_cost([_config(params, kind, phase="choice", seed=0) for kind in params.kinds])


def plan_finals(params: Params, done: Sequence[Run]) -> list[Config]:
    """Return a configuration for each seed of the kinds that were chosen, and of the control, the costliest first."""
    found = choice(done, most=params.most_members)
    kinds = {next(iter(params.kinds)), found["single"], *found["members"]}
    return _by_cost(
        [
            _config(params, kind, phase="final", seed=seed)
            for kind in params.kinds
            if kind in kinds
            for seed in range(params.num_seeds)
        ]
    )


def _config(params: Params, kind: str, *, phase: str, seed: int) -> Config:
    return {
        "phase": phase,
        "kind": kind,
        "is_control": kind == next(iter(params.kinds)),
        **params.kinds[kind].model_dump(),
        "num_epochs": params.num_epochs,
        "validation_rows": params.validation_rows,
        "most_members": params.most_members,
        "seed": seed,
    }


def _by_cost(configs: Sequence[Config]) -> list[Config]:
    return sorted(configs, key=lambda config: -multiply_adds(config) * (1 + bool(config["distilled"])))


def multiply_adds(config: Config) -> int:
    """Return the multiply-adds of the convolutions of one forward pass."""
    side, inputs, total = SIDE - 2 * config["crop"], 1, 0
    for block, outputs in enumerate(config["channels"], start=1):
        for number in range(config["convolutions"]):
            side -= 2 if config["crop"] and block == 1 and number == 0 else 0
            total += side**2 * config["kernel"] ** 2 * inputs * outputs
            inputs = outputs
        if not config["crop"] or block < len(config["channels"]):
            side //= 2
    return total


def recipe_of(config: Config) -> Recipe:
    """Return the recipe `best` of `params.yaml`, with the configuration's network, epochs and seed.

    It moves no images: `networks.train` distorts them.
    """
    arguments = {"channels": config["channels"], "convolutions": config["convolutions"]}
    cropped = {"crop": config["crop"], "last_pool": False} if config["crop"] else {}
    return Recipe(
        model="convnet",
        model_params={**arguments, **cropped},
        optimizer="muon",
        learning_rate=0.03,
        weight_decay=1e-5,
        batch_size=128,
        num_epochs=config["num_epochs"],
        schedule="triangle",
        label_smoothing=0.05,
        seed=config["seed"],
    )


def run(config: Config, splits: Splits) -> Result:
    """Train one network; return its accuracy on the rows that are held out, or of a final one on the test split."""
    everything = whole(splits)
    if config["phase"] == "choice":
        training, judged = held_out(everything, num_rows=config["validation_rows"])
    else:
        training, judged = everything, splits["test"]
    if config["deslanted"]:
        training, judged = upright(training), upright(judged)
    rows = to_device(training, device=device())
    looks, metrics = [], dict[str, Any]()
    for model, train_accuracy in networks.train(
        recipe_of(config),
        kernel=config["kernel"],
        distortion=Distortion(**config["distortion"]),
        cycles=config["cycles"],
        distilled=config["distilled"],
        training=rows,
    ):
        looks.append(forward.logits(ShiftAveraged(model, background=rows.background), judged.images))
        metrics = {
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "train_accuracy": round(train_accuracy, 6),
            "one_look_accuracy": ensembles.accuracy(forward.logits(model, judged.images), judged.labels),
            "last_accuracy": ensembles.accuracy(looks[-1], judged.labels),
        }
    logs = np.mean(looks, axis=0)
    metrics["accuracy"] = ensembles.accuracy(logs, judged.labels)
    if config["phase"] == "final":
        return Result(metrics=metrics, intermediate={"logs": packed(logs.astype(np.float16))})
    brier, temperature = ensembles.brier(logs, judged.labels)
    metrics |= {"brier": round(brier, 6), "temperature": round(temperature, 4)}
    kept = {"logs": packed(logs.astype(np.float16)), "labels": packed(judged.labels)}
    return Result(metrics=metrics, intermediate=kept)


def held_out(split: NormalizedSplit, *, num_rows: int) -> tuple[NormalizedSplit, NormalizedSplit]:
    """Return the first rows to learn from, and the last `num_rows`, which choose.

    The published order keeps the digits of a writer together (`nearby`), so the last rows have other writers than the
    first, as the test split has. Random rows would have the same, and favour what fits these.
    """
    cut = len(split.labels) - num_rows

    def of(rows: slice) -> NormalizedSplit:
        return replace(split, images=split.images[rows], labels=split.labels[rows], index=split.index[rows])

    return of(slice(cut)), of(slice(cut, None))


def upright(split: NormalizedSplit) -> NormalizedSplit:
    """Return the split with the slant of each image removed."""
    mean, std = (np.float32(split.provenance[name]) for name in ("mean", "std"))
    return replace(split, images=(deslanted(pixels(split)) - mean) / std)


def nearby(split: NormalizedSplit, *, num_rows: int = NEARBY_ROWS, num_images: int = 100) -> dict[str, float]:
    """Return how often the nearest image of the same digit is at most `num_rows` rows away, and how often by chance.

    `found` and `chance` are shares of the first `num_images` images of each digit in a random order.
    """
    generator = np.random.default_rng(0)
    found, chance = [], []
    for label in range(NUM_CLASSES):
        rows = np.flatnonzero(split.labels == label)
        images = split.images[rows].reshape(len(rows), -1)
        chosen = generator.permutation(len(rows))[:num_images]
        distances = (images**2).sum(1) - 2 * images[chosen] @ images.T  # and |x|², which is the same for all
        distances[np.arange(len(chosen)), chosen] = np.inf
        near = np.abs(rows[chosen, None] - rows) <= num_rows
        found.append(near[np.arange(len(chosen)), distances.argmin(1)])
        chance.append((near.sum(1) - 1) / max(1, len(rows) - 1))
    return {"found": float(np.concatenate(found).mean()), "chance": float(np.concatenate(chance).mean())}


def choice(done: Sequence[Run], *, most: int) -> dict[str, Any]:
    """Return what the held-out rows choose.

    `single` is the kind with the lowest Brier score, `members` are the kinds of the ensemble and `average` is how it is
    formed; `scores` and `accuracies` are those of each way to form it, `temperatures` those of all kinds.
    `against_control` compares each kind with the control.
    """
    found = {one.config["kind"]: one for one in of_phase(done, "choice")}
    labels = unpacked(next(iter(found.values())).intermediate["labels"], np.uint8)
    logs = {kind: logs_of(one) for kind, one in found.items()}
    temperatures = {kind: one.result["temperature"] for kind, one in found.items()}
    members = ensembles.choose(_parts(logs, how=_CHOOSING, temperatures=temperatures), labels, how=_CHOOSING, most=most)
    averages = {}
    for how in ensembles.AVERAGES:
        parts = _parts(logs, how=how, temperatures=temperatures)
        averages[how] = ensembles.average([parts[kind] for kind in members], how=how)
    scores = {how: round(ensembles.brier(average, labels)[0], 6) for how, average in averages.items()}
    control = control_of(done)
    return {
        "single": min(found, key=lambda kind: found[kind].result["brier"]),
        "members": members,
        "average": min(scores, key=lambda how: scores[how]),
        "scores": scores,
        "accuracies": {how: ensembles.accuracy(average, labels) for how, average in averages.items()},
        "temperatures": temperatures,
        "against_control": {kind: _compared([logs[kind]], [logs[control]], labels) for kind in logs if kind != control},
        "num_rows": len(labels),
    }


def conclude(done: Sequence[Run], splits: Splits) -> dict[str, Any]:
    """Return the choice, and what the final networks and their averages reach on the test split.

    `nearby` shows why the last rows choose and not random ones.
    `averages` has accuracies by name: `chosen` has one ensemble a seed, `copies` the average of all networks of a kind,
    `all` that of all networks of the ensembles. `claims` are comparisons in which the first is expected to be better,
    `by_size` mean accuracies by the number of networks averaged. `shared` is the share of their mistakes that two
    networks have in common: copies of one kind, and networks of two kinds. `selected` is what a choice on the test
    split would show, with the number of results that it chooses from, and `mistakes` what the average of all takes for
    another digit.
    """
    labels = splits["test"].labels
    found = choice(done, most=done[0].config["most_members"])
    how, control, single = found["average"], control_of(done), found["single"]
    logs: dict[str, list[ensembles.Values]] = {}
    for one in of_phase(done, "final"):
        logs.setdefault(one.config["kind"], []).append(logs_of(one))
    parts = {
        kind: [ensembles.part(own, how=how, temperature=found["temperatures"][kind]) for own in several]
        for kind, several in logs.items()
    }
    members = [parts[kind] for kind in found["members"]]
    chosen = [ensembles.average(own, how=how) for own in zip(*members, strict=True)]
    size = len(parts[single])
    as_many = [ensembles.average(own, how=how) for own in zip(*members[:size], strict=True)]
    copies = {kind: ensembles.average(own, how=how) for kind, own in parts.items()}
    everything = ensembles.average([own for kind in members for own in kind], how=how)
    predictions = everything.argmax(1)
    wrong = np.flatnonzero(predictions != labels)
    ink = np.rint(255 * pixels(splits["test"])).astype(np.uint8)
    networks_of_all = [own for several in logs.values() for own in several]
    selected = {
        "single": (max(ensembles.accuracy(own, labels) for own in networks_of_all), len(networks_of_all)),
        "vote": ensembles.best_vote(list(logs.values()), labels),
        "average": ensembles.best_average(members, labels),
    }
    return {
        "choice": found,
        "nearby": {name: round(share, 6) for name, share in nearby(whole(splits)).items()},
        "averages": {
            "chosen": [ensembles.accuracy(own, labels) for own in chosen],
            "copies": {kind: ensembles.accuracy(own, labels) for kind, own in copies.items()},
            "all": ensembles.accuracy(everything, labels),
        },
        "claims": {
            "copies of the control": _compared([copies[control]] * len(logs[control]), logs[control], labels),
            "copies of the chosen kind": _compared([copies[single]] * len(logs[single]), logs[single], labels),
            "chosen kind": _compared(logs[single], logs[control], labels),
            "chosen ensemble": _compared(chosen, logs[single], labels),
            "diversity": _compared(as_many, [copies[single]] * len(as_many), labels),
        },
        "by_size": {
            "one of each kind": ensembles.by_size([own[0] for own in members], labels),
            "copies of the control": ensembles.by_size(parts[control], labels),
            "copies of the chosen kind": ensembles.by_size(parts[single], labels),
        },
        "shared": {
            "copies": round(float(np.mean([ensembles.overlap(own, own, labels) for own in logs.values()])), 6),
            "kinds": round(
                float(np.mean([ensembles.overlap(*pair, labels) for pair in combinations(logs.values(), 2)] or [0.0])),
                6,
            ),
        },
        "selected": {name: {"accuracy": best, "of": number} for name, (best, number) in selected.items()},
        "mistakes": [
            {
                "row": int(row),
                "label": int(labels[row]),
                "prediction": int(predictions[row]),
                "probability": round(float(np.exp(everything[row].max())), 4),
                "pixels": packed(ink[row]),
            }
            for row in wrong
        ],
        "wrong_of_all": int((np.stack(networks_of_all).argmax(2) != labels).all(0).sum()),
        "num_rows": len(labels),
    }


def of_phase(done: Sequence[Run], phase: str, *, kind: str | None = None) -> list[Run]:
    """Return the runs of a phase, or of one kind in it, by seed; the kinds are in the order in which they ran."""
    found = [one for one in done if one.config["phase"] == phase and kind in (None, one.config["kind"])]
    return sorted(found, key=lambda one: int(one.config["seed"]))


def control_of(done: Sequence[Run]) -> str:
    """Return the name of the control."""
    name: str = next(one.config["kind"] for one in done if one.config["is_control"])
    return name


def logs_of(one: Run) -> NDArray[np.float32]:
    """Return the run's log-probabilities, float32 `(N, 10)`, which it keeps in half precision."""
    return unpacked(one.intermediate["logs"], np.float16).reshape(-1, NUM_CLASSES).astype(np.float32)


def _parts(
    logs: Mapping[str, ensembles.Values], *, how: str, temperatures: Mapping[str, float]
) -> dict[str, ensembles.Values]:
    return {kind: ensembles.part(own, how=how, temperature=temperatures[kind]) for kind, own in logs.items()}


def _compared(
    first: Sequence[ensembles.Values], second: Sequence[ensembles.Values], labels: NDArray[np.uint8]
) -> dict[str, Any]:
    """Return what the first networks or averages gain over the second, pair by pair, with McNemar's tests combined."""
    pairs = [(one.argmax(1) == labels, other.argmax(1) == labels) for one, other in zip(first, second, strict=False)]
    p_values = [mcnemar(better, worse).p_value for better, worse in pairs]
    return {
        "gains": [round(100 * float(better.mean() - worse.mean()), 4) for better, worse in pairs],
        "p_value": float(f"{combined(p_values):.4g}"),
    }
