"""Test packs: each member's metrics are those of its recipe alone, whatever the other members are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from mnist_pipe import models
from mnist_pipe.errors import InputError
from mnist_pipe.models import MODELS
from mnist_pipe.training.batches import DeviceSplit
from mnist_pipe.training.optimizers import OPTIMIZERS
from mnist_pipe.training.recipe import Recipe
from mnist_pipe.tuning import vmapped
from tests.support.training import CPU, FirstCalls, blobs, run

RECIPE = Recipe(
    model="mlp",
    optimizer="nesterov",
    learning_rate=0.01,
    batch_size=32,
    num_epochs=2,
    label_smoothing=0.1,
    precision="float32",
)
PARAMS: dict[str, dict[str, Any]] = {
    "cnn": {"padding": False},
    "convnet": {"channels": [4, 8]},
    "resnet": {"channels": [4, 8], "blocks": 1},
}
TRAINING, VALIDATION = blobs(136), blobs(100, seed=1)


def train(
    recipes: Sequence[Recipe], *, training: DeviceSplit = TRAINING, validation: DeviceSplit = VALIDATION
) -> list[list[dict[str, float]]]:
    """Train a pack, and return the epochs of every member."""
    epochs = vmapped.train_pack(recipes, training=training, validation=validation, device=CPU)
    return [list(history) for history in zip(*epochs, strict=True)]


def members(recipe: Recipe) -> list[Recipe]:
    """Return three recipes with the shape of `recipe`, in the lower half of the range, where rounding does not grow."""
    low, high = OPTIMIZERS[recipe.optimizer].learning_rate
    return [
        dataclasses.replace(
            recipe,
            learning_rate=low * (high / low) ** part,
            weight_decay=weight_decay,
            rotation_degrees=degrees,
            translation_pixels=pixels,
        )
        for part, weight_decay, degrees, pixels in ((0.0, 0.3, 10, 2), (0.25, 0.0, 0, 0), (0.5, 0.03, 5, 0.5))
    ]


def check(recipes: Sequence[Recipe], *, training: DeviceSplit = TRAINING, rel: float = 1e-5, rows: int = 0) -> None:
    """Check that packed losses equal unpacked ones within `rel`; of 100 validation hits, `rows` may differ.

    If two pixels nearly tie, max-pool's gradient jumps with rounding, and the runs diverge: by up to 0.002 of the loss
    here, compared with 0.0000003 otherwise.
    """
    if recipes[0].model in ("cnn", "convnet", "resnet"):
        rel, rows = 0.01, 1
    for recipe, history in zip(recipes, train(recipes, training=training), strict=True):
        expected, _ = run(recipe, training=training, validation=VALIDATION)
        assert len(history) == len(expected) == recipe.num_epochs
        for ours, theirs in zip(history, expected, strict=True):
            assert ours.keys() == theirs.keys()
            assert ours["epoch"] == theirs["epoch"]
            for key in ("train_loss", "validation_loss"):
                assert ours[key] == pytest.approx(theirs[key], rel=rel), (key, recipe)
            for key in ("train_accuracy", "validation_accuracy"):
                assert ours[key] == pytest.approx(theirs[key], abs=(rows + 0.01) / 100), (key, recipe)


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        *(
            pytest.param(name, "nesterov", marks=[pytest.mark.long] if name == "cnn" else [])  # 600,000 weights
            for name in MODELS
        ),
        ("linear", "adamw"),
        ("lenet5", "muon"),
    ],
)
def test_a_pack_of_any_model_agrees_with_its_single_members(model: str, optimizer: str) -> None:
    recipe = dataclasses.replace(RECIPE, model=model, model_params=PARAMS.get(model, {}), optimizer=optimizer)
    check(members(recipe))


@pytest.mark.parametrize("model", ["mlp", pytest.param("convnet", marks=pytest.mark.long)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_pack_with_any_optimizer_agrees_with_its_single_members(optimizer: str, model: str) -> None:
    recipe = dataclasses.replace(RECIPE, model=model, model_params=PARAMS.get(model, {}), optimizer=optimizer)
    check(members(recipe))


@pytest.mark.parametrize("balance", ["weights", "sampling"])
def test_a_pack_of_balanced_recipes_agrees_with_its_single_members(balance: str) -> None:
    kept = (TRAINING.labels % 3 > 0) | (torch.arange(TRAINING.num_rows) < 40)
    uneven = dataclasses.replace(TRAINING, images=TRAINING.images[kept], labels=TRAINING.labels[kept])
    check(members(dataclasses.replace(RECIPE, balance=balance)), training=uneven)


@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_a_pack_that_shares_its_images_agrees_with_its_single_members(model: str) -> None:
    recipe = dataclasses.replace(RECIPE, model=model, model_params=PARAMS.get(model, {}), schedule="constant")
    check([dataclasses.replace(r, rotation_degrees=0, translation_pixels=0) for r in members(recipe)])


@pytest.mark.parametrize("model", ["mlp", "lenet5"])
def test_a_pack_in_bfloat16_agrees_with_its_single_members(model: str) -> None:
    # Without the convnet: if two pixels nearly tie in bfloat16's eight bits, max-pool's gradient jumps, and runs
    # diverge.
    recipe = dataclasses.replace(RECIPE, model=model, precision="bfloat16")
    check(members(recipe), rel=1e-3, rows=2)
    whole = [dataclasses.replace(member, precision="float32") for member in members(recipe)]
    assert train(members(recipe)) != train(whole)


def test_a_pack_of_one_agrees_with_its_member() -> None:
    check(members(RECIPE)[:1])


@pytest.mark.parametrize("optimizer", ["nesterov", "muon"])
def test_a_diverging_member_changes_no_bit_of_the_others(optimizer: str) -> None:
    # Compare with a pack of the same size, as a pack of another size may be computed by other kernels.
    recipe = dataclasses.replace(RECIPE, model="lenet5", optimizer=optimizer)
    first, other, last = members(recipe)
    wild = dataclasses.replace(other, learning_rate=1e18)
    tame, beside = train([first, other, last]), train([first, wild, last])
    assert beside[0] == tame[0]
    assert beside[2] == tame[2]
    assert beside[1] == [{"epoch": epoch, "validation_accuracy": 0.0, "diverged": 1} for epoch in (1, 2)]


def test_two_packs_are_bitwise_equal() -> None:
    recipes = members(dataclasses.replace(RECIPE, model="convnet", model_params=PARAMS["convnet"]))
    assert train(recipes) == train(recipes)


def test_a_batch_may_be_larger_than_the_data() -> None:
    check([dataclasses.replace(recipe, batch_size=1000) for recipe in members(RECIPE)])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_two_threads_make_the_first_call_of_a_function_of_mkl(optimizer: str) -> None:
    recipe = dataclasses.replace(RECIPE, model_params={"activation": "tanh"}, optimizer=optimizer, num_epochs=1)
    with FirstCalls() as first:
        train(members(recipe))
    assert set(first.num_elements.values()) == {1}, first.num_elements


def test_a_shape_includes_every_setting_that_members_share() -> None:
    one, other, _ = members(RECIPE)
    assert vmapped.shape(one) == vmapped.shape(other)
    for change in ({"optimizer": "adam"}, {"batch_size": 64}, {"seed": 1}, {"model_params": {"hidden": [16]}}):
        assert vmapped.shape(dataclasses.replace(one, **change)) != vmapped.shape(one)


def test_recipes_of_different_shapes_are_refused_in_one_line() -> None:
    with pytest.raises(InputError) as caught:
        train([RECIPE, dataclasses.replace(RECIPE, batch_size=64)])
    assert str(caught.value) == "pack: batch_size must be 32 as in the first recipe, but got 64"
    with pytest.raises(InputError) as caught:
        train([])
    assert str(caught.value) == "pack: recipes must hold one recipe or more, but got none"


def test_on_a_cpu_only_small_dense_models_are_packed() -> None:
    def at_most(model: str, **params: Any) -> int:
        return vmapped.max_members(dataclasses.replace(RECIPE, model=model, model_params=params), device=CPU)

    assert at_most("linear") > 1
    assert at_most("mlp") > 1
    assert at_most("mlp", hidden=[300]) == 1
    assert {at_most(model) for model in ("lenet5", "cnn", "convnet")} == {1}


def test_each_recipe_is_in_one_pack_and_every_process_has_one() -> None:
    few = [dataclasses.replace(RECIPE, optimizer="adam", learning_rate=rate) for rate in (0.1, 0.2, 0.3)]
    many = [dataclasses.replace(RECIPE, learning_rate=rate) for rate in range(1, 41)]
    network = [dataclasses.replace(RECIPE, model="lenet5", model_params={}, learning_rate=rate) for rate in range(9)]
    recipes = [*many[:20], *few, *network, *many[20:]]
    for num_processes, sizes in ((1, [14, 13, 13]), (4, [10, 10, 10, 10]), (20, [1] * 40)):
        found = vmapped.packs(recipes, device=CPU, num_processes=num_processes)
        assert sorted(index for indices in found for index in indices) == list(range(len(recipes)))
        assert all(len({vmapped.shape(recipes[index]) for index in indices}) == 1 for indices in found)
        alike = [len(indices) for indices in found if recipes[indices[0]] in many]
        assert alike == sizes
        # Packs of these would not be faster: the first are too few, and the others are convolutions.
        assert len(found) == len(alike) + len(few) + len(network)


def test_the_memory_of_a_member_is_counted_without_using_any() -> None:
    with torch.device("meta"):
        model = models.build("convnet")
    small, large = (vmapped._member_bytes(model, batch_size=rows) for rows in (128, 1024))
    # Kept are the nine values of each patch of the three convolutions, and 16 channels of 28x28 before the first pool.
    least = 1024 * 4 * (16 * 784 + 9 * (784 + 16 * 196 + 32 * 49))
    assert least < large < 5 * least
    assert 6 < large / small < 8


GPU = torch.device("cuda")
CONVOLUTIONAL = [name for name in MODELS if name not in ("linear", "mlp", "cnn")]  # cnn has 600,000 weights


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute a pack's convolutions on the CPU by the rule that a GPU uses."""
    monkeypatch.setattr(vmapped, "packs_convolutions", lambda _: True)


@pytest.fixture
def gpu_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Function that makes up a GPU with that many bytes of free memory."""

    def make(num_bytes: int) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (num_bytes, num_bytes))

    return make


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("model", CONVOLUTIONAL)
@pytest.mark.parametrize("moved", [True, False])
def test_a_pack_of_convolutions_as_products_agrees_with_its_single_members(model: str, moved: bool) -> None:
    recipes = members(dataclasses.replace(RECIPE, model=model, model_params=PARAMS.get(model, {})))
    if not moved:  # the members share their images, and the first convolution is one
        recipes = [dataclasses.replace(recipe, rotation_degrees=0, translation_pixels=0) for recipe in recipes]
    check(recipes)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 5},
        {"kernel_size": 3, "padding": 1, "bias": False},
        {"kernel_size": (3, 2), "stride": 2, "padding": 1},
        {"kernel_size": 1, "stride": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("shared", [True, False])
def test_the_rule_of_convolutions_gives_the_results_and_gradients_of_each_member(
    arguments: dict[str, Any], shared: bool
) -> None:
    convolution = nn.Conv2d(2, 5, **arguments)
    weights = {
        name: torch.randn(4, *parameter.shape, requires_grad=True) for name, parameter in convolution.named_parameters()
    }
    images = torch.randn(*(() if shared else (4,)), 3, 2, 9, 8, requires_grad=True)
    results = []
    for layer in (convolution, vmapped._PackedConvolution(convolution)):
        found = (
            vmapped._forward(layer, weights, {}, images)
            if not shared
            else torch.vmap(lambda own, layer=layer: functional_call(layer, own, (images,)))(weights)
        )
        (found * torch.linspace(-1, 1, found.numel()).view(found.shape)).sum().backward()
        gradients = [tensor.grad for tensor in (images, *weights.values())]
        results.append([found.detach(), *gradients])
        for tensor in (images, *weights.values()):
            tensor.grad = None
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(2, 4, 3, groups=2),
        nn.Conv2d(2, 4, 3, dilation=2),
        nn.Conv2d(2, 4, 3, padding="same"),
        nn.Conv2d(2, 4, 3, padding=(1, 0)),
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
    ],
    ids=str,
)
def test_a_convolution_that_the_rule_does_not_cover_stays_as_it_is(convolution: nn.Conv2d) -> None:
    model = nn.Sequential(convolution, nn.Conv2d(4, 4, 3))
    vmapped._stack(model, 2, convolutions=True)
    assert model[0] is convolution
    assert type(model[1]) is vmapped._PackedConvolution


@pytest.mark.parametrize(
    ("model", "params"), [("cnn", {"dropout": 0.5}), ("resnet", {"dropout": 0.1}), ("convnet", {})]
)
def test_a_model_that_draws_is_not_packed(
    model: str, params: dict[str, Any], gpu_memory: Callable[[int], None]
) -> None:
    gpu_memory(24 << 30)
    recipe = dataclasses.replace(RECIPE, model=model, model_params=params)
    assert (vmapped.max_members(recipe, device=GPU) == 1) == ("dropout" in params)
    recipes = [dataclasses.replace(recipe, learning_rate=rate) for rate in (0.1, 0.2, 0.3)]
    assert len(vmapped.packs(recipes, device=GPU, num_processes=1)) == (3 if "dropout" in params else 1)


def test_a_gpu_holds_no_more_members_than_its_free_memory(gpu_memory: Callable[[int], None]) -> None:
    recipe = dataclasses.replace(RECIPE, model="lenet5", model_params={}, batch_size=128)
    with torch.device("meta"):
        own = vmapped._member_bytes(models.build("lenet5"), batch_size=128)
    for free, most in ((own, 1), (7 * own, 3), (1000 * own, 256)):
        gpu_memory(free)
        assert vmapped.max_members(recipe, device=GPU) == most
    gpu_memory(7 * own)
    recipes = [dataclasses.replace(recipe, learning_rate=rate) for rate in range(8)]
    assert [len(part) for part in vmapped.fitting_parts(recipes, device=GPU)] == [3, 3, 2]
    assert vmapped.fitting_parts(recipes, device=CPU) == [recipes]


def test_a_pack_that_does_not_fit_trains_in_parts_to_the_same_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    first, other, last = members(dataclasses.replace(RECIPE, model="lenet5"))
    wild = dataclasses.replace(other, learning_rate=1e18)
    whole = train([first, wild, last])
    monkeypatch.setattr(vmapped, "fitting_parts", lambda recipes, **_: [recipes[:2], recipes[2:]])
    parts = train([first, wild, last])
    assert parts[1] == whole[1]
    for ours, theirs in zip((parts[0], parts[2]), (whole[0], whole[2]), strict=True):
        assert [metrics.keys() for metrics in ours] == [metrics.keys() for metrics in theirs]
        assert ours[-1]["validation_loss"] == pytest.approx(theirs[-1]["validation_loss"], rel=1e-5)
