"""Test the training loop: what it computes, what it draws at random, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from mnist_pipe import models
from mnist_pipe.data.splits import NormalizedSplit
from mnist_pipe.models import forward, numerics
from mnist_pipe.training import loop, optimizers, sync_batchnorm
from mnist_pipe.training.batches import DeviceSplit, Ranks, to_device
from mnist_pipe.training.loop import DivergedError
from mnist_pipe.training.recipe import Recipe, recipe_of
from tests.support.training import CPU, RECIPE, FirstCalls, blobs, run, start_ranks


def test_searched_values_replace_those_of_the_recipe() -> None:
    point = {**RECIPE.to_dict(), "train_rows": 100, "test_time_augmentation": True}
    assert recipe_of(point, found={}, models={"convnet": {"channels": [9]}}) == RECIPE
    other = recipe_of(point, found={"model": "mlp", "batch_size": 7}, models={"mlp": {"hidden": [3]}}, seed=5)
    assert other == dataclasses.replace(RECIPE, model="mlp", model_params={"hidden": [3]}, batch_size=7, seed=5)
    assert recipe_of(point, found={"model": "linear"}, models={}).model_params == {}


@pytest.mark.filterwarnings("error")  # torch warns about memory that it must not write to
@pytest.mark.parametrize("writeable", [True, False])
def test_a_split_on_the_cpu_is_not_copied(writeable: bool) -> None:
    images = np.random.default_rng(0).normal(size=(8, 28, 28)).astype(np.float32)
    images.flags.writeable = writeable
    rows = np.arange(8)
    split = NormalizedSplit(
        images=images,
        labels=rows.astype(np.uint8),
        index=rows.astype(np.uint32),
        provenance={"mean": 0.1, "std": 0.25},
    )
    data = to_device(split.first(5), device=torch.device("cpu"))
    assert torch.equal(data.images, torch.tensor(images[:5]).unsqueeze(1))
    assert data.labels.tolist() == [0, 1, 2, 3, 4]
    assert data.images.data_ptr() == images.ctypes.data


def test_training_reaches_95_percent() -> None:
    history, _ = run(RECIPE, training=blobs(640), validation=blobs(200, seed=1))
    assert history[-1]["validation_accuracy"] > 0.95, history


def test_two_runs_are_bitwise_equal() -> None:
    first, second = (run(RECIPE, training=blobs(320), validation=blobs(100, seed=1)) for _ in range(2))
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])


def test_another_seed_is_another_run() -> None:
    other = dataclasses.replace(RECIPE, seed=1)
    a, b = (run(r, training=blobs(320), validation=blobs(100, seed=1))[1] for r in (RECIPE, other))
    assert not torch.equal(a, b)


def test_metrics_are_means_over_rows_and_not_over_batches() -> None:
    # With 2,050 rows evaluate's last batch has 50, which a mean of means would weight like a full one.
    data = blobs(2050)
    model, _ = loop.new_run(RECIPE, device=CPU)
    loss, accuracy = loop.evaluate(model, data)
    logits = model.eval()(data.images)
    assert loss == pytest.approx(F.cross_entropy(logits, data.labels).item(), rel=1e-5)
    assert accuracy == (logits.argmax(1) == data.labels).double().mean().item()


def test_every_row_is_trained_on_once_an_epoch() -> None:
    seen: list[int] = []
    data = blobs(64)
    data.images[:, 0, 0, 0] = torch.arange(64.0)
    recipe = dataclasses.replace(RECIPE, rotation_degrees=0, translation_pixels=0, num_epochs=1)
    model, optimizer = loop.new_run(recipe, device=CPU)
    model.register_forward_pre_hook(
        lambda module, args: seen.extend(args[0][:, 0, 0, 0].int().tolist()) if module.training else None
    )
    list(loop.train(recipe, model=model, optimizer=optimizer, training=data, validation=blobs(10)))
    assert sorted(seen) == list(range(64))
    assert seen != sorted(seen)


def test_one_step_is_the_step_written_by_hand() -> None:
    # A smooth model is needed: if two pixels nearly tie, max-pool's gradient jumps with the order of the rows.
    smooth = dataclasses.replace(RECIPE, model="mlp", model_params={}, rotation_degrees=0, translation_pixels=0)
    recipe = dataclasses.replace(smooth, batch_size=64, num_epochs=1, schedule="constant")
    data = blobs(64)
    model, optimizer = loop.new_run(recipe, device=CPU)
    list(loop.train(recipe, model=model, optimizer=optimizer, training=data, validation=data))
    byhand, _ = loop.new_run(recipe, device=CPU)
    F.cross_entropy(byhand(data.images), data.labels, label_smoothing=0.1).backward()
    for ours, theirs in zip(model.parameters(), byhand.parameters(), strict=True):
        # The first step of Nesterov momentum 0.9 is 1.9 times the gradient.
        assert theirs.grad is not None
        torch.testing.assert_close(ours, theirs - 0.05 * 1.9 * theirs.grad, rtol=1e-4, atol=1e-6)


def uneven(*sizes: int) -> DeviceSplit:
    """Return rows of `blobs`, so many of each class."""
    rows = blobs(10 * max(sizes))
    keep = torch.cat([torch.where(rows.labels == label)[0][:size] for label, size in enumerate(sizes)])
    return dataclasses.replace(rows, images=rows.images[keep], labels=rows.labels[keep])


def test_a_step_with_class_weights_is_the_step_written_by_hand() -> None:
    smooth = dataclasses.replace(RECIPE, model="mlp", model_params={}, rotation_degrees=0, translation_pixels=0)
    recipe = dataclasses.replace(smooth, batch_size=25, num_epochs=1, schedule="constant", balance="weights")
    data = uneven(20, 0, 4, 1)
    model, optimizer = loop.new_run(recipe, device=CPU)
    list(loop.train(recipe, model=model, optimizer=optimizer, training=data, validation=data))
    byhand, _ = loop.new_run(recipe, device=CPU)
    # Three classes have 25 rows in all, so that each of them has a third of the loss.
    weights = torch.tensor([25 / 60, 0, 25 / 12, 25 / 3])
    losses = F.cross_entropy(byhand(data.images), data.labels, label_smoothing=0.1, reduction="none")
    assert weights[data.labels].mean().item() == pytest.approx(1)
    (losses * weights[data.labels]).mean().backward()
    for ours, theirs in zip(model.parameters(), byhand.parameters(), strict=True):
        assert theirs.grad is not None
        torch.testing.assert_close(ours, theirs - 0.05 * 1.9 * theirs.grad, rtol=1e-4, atol=1e-6)


def test_a_balanced_epoch_draws_each_class_equally_often() -> None:
    data = uneven(900, 0, 90, 10)
    batches = list(data.epoch(3, seed=1, batch_size=100, ranks=Ranks(), balanced=True))
    labels = torch.cat([labels for _, labels in batches])
    assert len(labels) == 1000
    counts = torch.bincount(labels, minlength=4).tolist()
    assert counts[1] == 0
    assert all(270 < counts[label] < 400 for label in (0, 2, 3)), counts  # 333, four standard deviations of 15
    again = [labels for _, labels in data.epoch(3, seed=1, batch_size=100, ranks=Ranks(), balanced=True)]
    assert torch.equal(torch.cat(again), labels)
    other = [labels for _, labels in data.epoch(4, seed=1, batch_size=100, ranks=Ranks(), balanced=True)]
    assert not torch.equal(torch.cat(other), labels)


def test_workers_divide_the_batches_of_a_balanced_epoch() -> None:
    data = uneven(90, 10)
    epoch: dict[str, Any] = {"seed": 0, "batch_size": 9, "balanced": True}
    whole = [labels.tolist() for _, labels in data.epoch(0, ranks=Ranks(), **epoch)]
    shares = [[labels.tolist() for _, labels in data.epoch(0, ranks=Ranks(rank=r, size=2), **epoch)] for r in (0, 1)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert sorted(batch) == sorted([*first, *second])
        assert len(first) == 5


@pytest.mark.parametrize("balance", ["weights", "sampling"])
def test_a_balanced_training_recognises_a_class_of_few_rows(balance: str) -> None:
    plain = dataclasses.replace(RECIPE, model="linear", model_params={}, learning_rate=0.003, num_epochs=1)
    training, validation = uneven(320, 16), uneven(40, 40)

    def found(recipe: Recipe) -> float:
        return run(recipe, training=training, validation=validation)[0][-1]["validation_accuracy"]

    assert found(plain) < found(dataclasses.replace(plain, balance=balance)) - 0.1


def test_a_run_resumed_at_an_epoch_equals_an_uninterrupted_one() -> None:
    training, validation = blobs(320), blobs(100, seed=1)
    whole, expected = run(RECIPE, training=training, validation=validation)
    model, optimizer = loop.new_run(RECIPE, device=CPU)
    arguments: dict[str, Any] = {"model": model, "optimizer": optimizer, "training": training, "validation": validation}
    first = next(iter(loop.train(RECIPE, **arguments)))
    rest = list(loop.train(RECIPE, **arguments, start=loop.Position(epoch=1)))
    assert [first, *rest] == whole
    assert torch.equal(torch.cat([v.flatten().double() for v in model.state_dict().values()]), expected)


def test_a_run_resumed_within_an_epoch_equals_an_uninterrupted_one() -> None:
    class GoneError(Exception):
        pass

    saved: list[tuple[loop.Position, dict[str, Any], dict[str, Any]]] = []
    steps = itertools.count(1)

    def save(position: Callable[[], loop.Position]) -> None:
        if next(steps) != 16:
            return
        saved.append((position(), copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())))
        raise GoneError

    training, validation = blobs(320), blobs(100, seed=1)
    whole, expected = run(RECIPE, training=training, validation=validation)
    model, optimizer = loop.new_run(RECIPE, device=CPU)
    data: dict[str, Any] = {"training": training, "validation": validation}
    epochs = loop.train(RECIPE, model=model, optimizer=optimizer, **data, after_step=save)
    first = next(epochs)
    with pytest.raises(GoneError):
        next(epochs)
    at, weights, state = saved[0]
    assert (at.epoch, at.step) == (1, 7)
    model, optimizer = loop.new_run(RECIPE, device=CPU)
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    rest = list(loop.train(RECIPE, model=model, optimizer=optimizer, **data, start=at))
    assert [first, *rest] == whole
    assert torch.equal(torch.cat([v.flatten().double() for v in model.state_dict().values()]), expected)


def test_two_ranks_see_the_batch_that_one_rank_sees() -> None:
    # Both ranks run in threads with a real barrier for the sums; at this rate, gradients need not be exchanged.
    recipe = dataclasses.replace(RECIPE, model="mlp", model_params={}, learning_rate=1e-9, num_epochs=1)
    training, validation = blobs(320), blobs(101, seed=1)
    alone, _ = run(recipe, training=training, validation=validation)
    runs = [loop.new_run(recipe, device=CPU) for _ in range(2)]
    barrier, slots = threading.Barrier(2), [torch.zeros(3)] * 2
    results: list[dict[str, float]] = [{}, {}]

    def rank(number: int) -> None:
        def total(values: torch.Tensor) -> torch.Tensor:
            slots[number] = values
            barrier.wait()
            result = slots[0] + slots[1]
            barrier.wait()
            return result

        model, optimizer = runs[number]
        ranks = Ranks(rank=number, size=2, all_reduce=total)
        epochs = loop.train(
            recipe, model=model, optimizer=optimizer, training=training, validation=validation, ranks=ranks
        )
        results[number] = next(epochs)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert result == pytest.approx(alone[0], rel=1e-5)


def _uneven_rank(rank: int, recipe: Recipe, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
    model, optimizer = loop.new_run(recipe, device=CPU)
    parallel = DistributedDataParallel(sync_batchnorm.synchronize(model))
    ranks = Ranks(rank=rank, size=3, all_reduce=lambda values: dist.all_reduce(values) or values)
    data = blobs(64)
    list(loop.train(recipe, model=parallel, optimizer=optimizer, training=data, validation=data, ranks=ranks))
    if rank == 0:
        torch.save(model.state_dict(), f"{folder}/weights.pt")
    dist.destroy_process_group()


@pytest.mark.services  # three processes that import torch
@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_ranks_with_uneven_shares_take_the_step_of_the_whole_batch(model: str, tmp_path: Path) -> None:
    # Ranks have 22, 21 and 21 of 64 rows; without weights, the gradient would be off by a sixtieth of the rows'
    # differences.
    params = {"channels": [4]} if model == "convnet" else {}
    recipe = dataclasses.replace(
        RECIPE, model=model, model_params=params, batch_size=64, num_epochs=1, schedule="constant", learning_rate=1.0
    )
    _, alone = run(recipe, training=blobs(64), validation=blobs(64))
    start_ranks(_uneven_rank, recipe, str(tmp_path), num_ranks=3)
    together = torch.load(tmp_path / "weights.pt", weights_only=True)
    # Compare all weights together: if two pixels nearly tie, max-pool's gradient jumps with the order of the rows.
    # Without weights in the loss, the relative difference is at least 0.005.
    difference = torch.cat([value.flatten().double() for value in together.values()]) - alone
    assert difference.norm() <= 1e-4 * alone.norm()


def test_a_diverging_run_ends_with_the_epoch_it_diverged_in() -> None:
    recipe = dataclasses.replace(RECIPE, model="lenet5", model_params={}, learning_rate=1e18)
    with pytest.raises(DivergedError) as caught:
        run(recipe, training=blobs(320), validation=blobs(100))
    assert str(caught.value) == ("training: the loss must stay finite, but got nan in epoch 1; lower the learning rate")


def test_bfloat16_is_used_only_on_cpus_that_compute_in_it() -> None:
    with open("/proc/cpuinfo") as stream:  # noqa: PTH123
        flags = stream.read()
    assert numerics.computes_bfloat16(CPU) == ("avx512_bf16" in flags or "amx_bf16" in flags)


def test_logits_of_arrays_agree_with_the_model() -> None:
    data = blobs(600)
    model, _ = loop.new_run(RECIPE, device=CPU)
    got = forward.logits(model, data.images[:, 0].numpy())
    torch.testing.assert_close(torch.tensor(got), model.eval()(data.images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [*((name, "nesterov") for name in models.MODELS), *(("mlp", name) for name in optimizers.OPTIMIZERS)],
)
def test_no_two_threads_make_the_first_call_of_a_function_of_mkl(model: str, optimizer: str) -> None:
    activation = {"activation": "tanh"} if model == "mlp" else {}
    recipe = dataclasses.replace(
        RECIPE, model=model, model_params=activation, optimizer=optimizer, num_epochs=1, learning_rate=0.001
    )
    data = blobs(64)
    with FirstCalls() as first:
        net, its_optimizer = loop.new_run(recipe, device=CPU)
        list(loop.train(recipe, model=net, optimizer=its_optimizer, training=data, validation=data))
    assert set(first.num_elements.values()) == {1}, first.num_elements
    with FirstCalls() as first:
        forward.logits(net, data.images[:, 0].numpy())
    assert set(first.num_elements.values()) == {1}, first.num_elements
