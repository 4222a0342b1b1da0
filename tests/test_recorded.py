"""Test that every step can be recorded as a CUDA graph: on a CPU, on meta tensors, and with a graph that is made up."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from mnist_pipe import preflight
from mnist_pipe.data import augment
from mnist_pipe.models import MODELS
from mnist_pipe.training import loop
from mnist_pipe.training.optimizers import OPTIMIZERS
from mnist_pipe.training.recipe import Recipe, recipe_of
from mnist_pipe.training.recorded import NUM_FIRST, Recorded, recorded
from mnist_pipe.tuning import vmapped
from tests.support import ROOT
from tests.support.launches import META, as_on_a_gpu, launches_of, made_up_graphs
from tests.support.training import CPU, blobs

RECIPES = preflight.load_params(ROOT / "params.yaml").recipes
FAST = replace(recipe_of(RECIPES["fast"].model_dump(), found={}, models={}), precision="float32")
SMALL = Recipe(model="mlp", optimizer="nesterov", learning_rate=0.01, batch_size=16, num_epochs=2, precision="float32")
PARAMS: dict[str, dict[str, Any]] = {
    "convnet": {"channels": [4, 8]},
    "resnet": {"channels": [4, 8], "blocks": 1},
}
CASES = {
    **{name: replace(SMALL, model=name, model_params=PARAMS.get(name, {})) for name in MODELS},
    **{name: replace(SMALL, optimizer=name, weight_decay=0.1) for name in OPTIMIZERS},
    "cnn with dropout": replace(SMALL, model="cnn", model_params={"dropout": 0.5}),
    "muon on filters": replace(SMALL, model="convnet", model_params=PARAMS["convnet"], optimizer="muon"),
    "moved": replace(SMALL, label_smoothing=0.1, rotation_degrees=8, translation_pixels=1),
    "average": replace(SMALL, average_decay=0.9),
    "fast": FAST,
}


def learner_of(recipe: Recipe, *, members: int, device: torch.device, on_gpu: bool) -> loop.Learner:
    """Return the learner of a recipe alone, or of a pack of some that differ in their rates."""
    learner: loop.Learner
    if members > 1:
        rates = [recipe.learning_rate / (1 + member) for member in range(members)]
        learner = vmapped.Pack([replace(recipe, learning_rate=rate) for rate in rates], device=device)
        optimizer = learner._optimizer._optimizer
    else:
        model, optimizer = loop.new_run(recipe, device=device)
        learner = loop.Network(recipe, model=model, optimizer=optimizer)
    for group in optimizer.param_groups:
        if "capturable" in group and on_gpu:
            group["capturable"] = True
    return learner


def step_of(recipe: Recipe, *, members: int, device: torch.device) -> tuple[Counter[str], list[str]]:
    """Return the launches of a training's second step, and what a CUDA graph could not record of it."""
    with as_on_a_gpu(device) if device == META else nullcontext():
        learner = learner_of(recipe, members=members, device=device, on_gpu=device == META)
        learner.start_epoch()
        num_rows = recipe.batch_size
        images = torch.zeros(num_rows, 1, 28, 28, device=device)
        labels = torch.zeros(num_rows, dtype=torch.int64, device=device)
        moves = learner.draw(num_rows, generator=torch.Generator())
        # On a GPU the rate is a tensor, on a CPU a number.
        multiplier = torch.ones((), device=device) if device == META else 1.0
        batch = loop.Batch(size=num_rows, multiplier=multiplier, background=-0.4)
        for _ in range(2):
            found = launches_of(
                lambda: learner.step(images, labels, moves=moves, batch=batch), skip_optimizers=device == CPU
            )
    return found


ALONE_AND_PACKED = [
    (name, members)
    for name, recipe in CASES.items()
    for members in (1, 3)
    if members == 1 or not (recipe.model_params.get("dropout") or recipe.average_decay)  # these train alone
]


@pytest.mark.parametrize("device", [META, CPU], ids=str)
@pytest.mark.parametrize(("name", "members"), ALONE_AND_PACKED)
def test_a_step_waits_for_nothing_and_brings_nothing_from_the_host(
    name: str, members: int, device: torch.device
) -> None:
    counts, forbidden = step_of(CASES[name], members=members, device=device)
    assert counts.total() > 10
    assert forbidden == []


def test_the_modes_notice_a_transfer_an_item_and_a_host_tensor() -> None:
    place = torch.zeros(3)
    for wrong in (
        lambda: place + torch.tensor([1.0, 2.0, 3.0]),
        lambda: place.sum().item(),
        lambda: place.new_tensor([1.0]),
        lambda: bool(place.any()),
        lambda: place.tolist(),
    ):
        assert launches_of(wrong)[1] != []
    assert launches_of(lambda: torch.empty(3, device=META).copy_(place))[1] != []
    counts, forbidden = launches_of(lambda: (place + 1).view(3, 1).sum(0))
    assert (dict(counts), forbidden) == ({"add": 1, "sum": 1}, [])


@pytest.mark.parametrize("device", [META, CPU], ids=str)
def test_a_step_of_fast_is_at_most_140_launches(device: torch.device) -> None:
    counts, _ = step_of(FAST, members=1, device=device)
    assert counts.total() <= 140, counts


@pytest.mark.parametrize(("name", "members"), [case for case in ALONE_AND_PACKED if case[0] not in ("cnn", "fast")])
def test_a_replayed_training_is_the_training(name: str, members: int) -> None:
    recipe = replace(CASES[name], schedule="triangle")
    training = blobs(16 * (NUM_FIRST + 2))
    with as_on_a_gpu(CPU), made_up_graphs() as tapes:
        found = []
        for wrap in (lambda learner: learner, Recorded):
            learner = wrap(learner_of(recipe, members=members, device=CPU, on_gpu=True))
            found.append([metrics for _, metrics in loop.epochs(learner, recipe, training=training)])
    [tape] = tapes
    assert tape.num_replays == 2 * (NUM_FIRST + 2) - NUM_FIRST
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_made_up_graph_bakes_in_a_number_as_a_real_one_does() -> None:
    place, number = torch.zeros(2), 1.0
    with made_up_graphs() as tapes:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            place += number
        number = 5.0
        graph.replay()  # of which the recording was the first
        graph.replay()
    assert len(tapes) == 1
    assert place.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_rate_that_is_a_tensor_gives_the_step_of_the_number(name: str) -> None:
    found, data = [], blobs(16)
    with as_on_a_gpu(CPU):
        for kind in (float, torch.tensor):
            learner = learner_of(CASES[name], members=1, device=CPU, on_gpu=True)
            for multiplier in (0.0, 0.5, 1.0, 0.25, 1.0):  # the schedule `triangle` starts at zero
                batch = loop.Batch(size=16, multiplier=kind(multiplier), background=-0.4)
                metrics = learner.step(data.images, data.labels, moves=None, batch=batch)
            found.append(metrics)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_an_augmentation_of_colours_brings_its_ground_from_the_host_once() -> None:
    images, moves = torch.zeros(4, 3, 32, 32, device=META), torch.zeros(4, 3, device=META)
    for expected in (False, True):
        _, forbidden = launches_of(lambda: augment.affine(images, moves, background=[-0.1, 0.2, 0.3]))
        assert (forbidden == []) == expected


def test_on_a_cpu_nothing_is_recorded() -> None:
    learner = learner_of(SMALL, members=1, device=CPU, on_gpu=False)
    assert recorded(learner) is learner
