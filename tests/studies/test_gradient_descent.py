"""Test the lesson's equations against finite differences, autograd and a training by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mnist_pipe.data.splits import PIXELS, NormalizedSplit
from studies.common.fitting import pixels
from studies.common.ledger import Run
from studies.gradient_descent import demonstrations, findings, runs
from studies.gradient_descent.runs import ENCODINGS, Array

WIDTHS = {"one-hot": 10, "binary": 4, "ordinal": 1}


def _problem(encoding: str = "one-hot", *, members: int = 2, rows: int = 6) -> tuple[list[Array], Array, Array]:
    generator = np.random.default_rng(0)
    network: list[Array] = [
        values.astype(np.float64) for values in runs.initial(range(members), (20, 5, WIDTHS[encoding]))
    ]
    for biases in network[1::2]:
        biases += generator.normal(size=biases.shape)
    labels = generator.integers(0, 10, (members, rows))
    return network, generator.random((members, rows, 20)), runs.codes(encoding)[labels]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_gradient_agrees_with_finite_differences(encoding: str) -> None:
    network, images, targets = _problem(encoding)
    gradients = runs.gradient(network, images, targets)
    generator, width = np.random.default_rng(1), 1e-5
    for values, slopes in zip(network, gradients, strict=True):
        direction = generator.normal(size=values.shape)
        values += width * direction
        above = runs.cost(network, images, targets)
        values -= 2 * width * direction
        below = runs.cost(network, images, targets)
        values += width * direction
        np.testing.assert_allclose((above - below) / (2 * width), (slopes * direction).sum((1, 2)), rtol=1e-6)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_gradient_agrees_with_autograd(encoding: str) -> None:
    network, images, targets = _problem(encoding, members=1)
    tensors = [torch.tensor(values[0], requires_grad=True) for values in network]
    hidden = torch.sigmoid(torch.tensor(images[0]) @ tensors[0] + tensors[1])
    outputs = torch.sigmoid(hidden @ tensors[2] + tensors[3])
    cost = (torch.tensor(targets[0]) - outputs).square().sum(1).mean() / 2  # equations 8 and 9
    cost.backward()
    assert runs.cost(network, images, targets)[0] == pytest.approx(cost.item(), rel=1e-12)
    for slopes, tensor in zip(runs.gradient(network, images, targets), tensors, strict=True):
        assert tensor.grad is not None
        np.testing.assert_allclose(slopes[0], tensor.grad.numpy(), rtol=1e-10, atol=1e-14)


def test_the_gradient_of_a_batch_is_the_mean_over_its_rows() -> None:
    """Check equation 10."""
    network, images, targets = _problem()
    of_rows = [runs.gradient(network, images[:, [row]], targets[:, [row]]) for row in range(images.shape[1])]
    for whole, *parts in zip(runs.gradient(network, images, targets), *of_rows, strict=True):
        np.testing.assert_allclose(whole, np.mean(parts, axis=0), rtol=1e-12, atol=1e-15)


def test_members_get_the_same_gradients_from_shared_images_as_from_their_own_copies() -> None:
    network, images, targets = _problem(members=3)
    shared = runs.gradient(network, images[:1], targets[:1])
    for slopes, own in zip(shared, runs.gradient(network, images[[0, 0, 0]], targets[[0, 0, 0]]), strict=True):
        np.testing.assert_allclose(slopes, own, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_small_step_lowers_the_cost_by_rate_times_squared_gradient(encoding: str) -> None:
    """Check equation 4."""
    network, images, targets = _problem(encoding)
    before, gradients = runs.cost(network, images, targets), runs.gradient(network, images, targets)
    rate = 1e-5
    runs.step(network, gradients, np.full(len(before), rate))
    squared = np.sum([np.square(slopes).sum((1, 2)) for slopes in gradients], axis=0)
    np.testing.assert_allclose(runs.cost(network, images, targets) - before, -rate * squared, rtol=1e-3)


def test_no_direction_of_the_same_length_lowers_the_cost_more() -> None:
    """Check equation 6, to first order, against 200 random directions."""
    network, images, targets = _problem(members=1)
    gradients = runs.gradient(network, images, targets)
    length = np.sqrt(sum(np.square(slopes).sum() for slopes in gradients))
    generator = np.random.default_rng(2)
    for _ in range(200):
        direction = [generator.normal(size=slopes.shape) for slopes in gradients]
        norm = np.sqrt(sum(np.square(part).sum() for part in direction))
        along = sum((slopes * part).sum() for slopes, part in zip(gradients, direction, strict=True)) / norm
        assert abs(along) < length


def test_the_codes_agree_with_the_lessons_table() -> None:
    assert runs.codes("one-hot")[3].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert [runs.codes("binary")[digit].tolist() for digit in (0, 3, 9)] == [[0, 0, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1]]
    assert np.allclose(9 * runs.codes("ordinal")[:, 0], range(10))


def test_the_nearest_one_hot_code_is_the_largest_output() -> None:
    network, images, _ = _problem(members=3, rows=50)
    outputs = runs.activations(network, images[:1])[1]
    for digit in range(10):
        labels = np.full(50, digit, np.uint8)
        accuracy = runs.judge(network, images[0], labels, runs.codes("one-hot"))[1]
        assert accuracy.tolist() == (outputs.argmax(-1) == digit).mean(1).tolist()


def test_an_epoch_visits_every_row_once_in_an_order_that_depends_on_the_seed() -> None:
    found = np.concatenate(list(runs.batches(100, 10, [0, 1], epoch=3)), axis=1)
    assert np.array_equal(np.sort(found, axis=1), np.tile(np.arange(100), (2, 1)))
    assert not np.array_equal(*found)
    again = np.concatenate(list(runs.batches(100, 10, [1], epoch=3)), axis=1)
    assert np.array_equal(again[0], found[1])  # whichever seeds train beside it


def _splits(rows: int = 300) -> dict[str, NormalizedSplit]:
    generator = np.random.default_rng(0)
    patterns = generator.random((10, 28, 28), np.float32)
    splits = {}
    for number, name in enumerate(("train", "validation", "test")):
        labels = generator.integers(0, 10, rows).astype(np.uint8)
        noise = generator.normal(0, 0.1, (rows, 28, 28)).astype(np.float32)
        index = np.arange(rows, dtype=np.uint32) + number * rows
        splits[name] = NormalizedSplit(
            images=patterns[labels] + noise, labels=labels, index=index, provenance={"mean": 0.0, "std": 1.0}
        )
    return splits


PARAMS = runs.Params(
    num_hidden=15,
    batch_sizes={"online": 1, "mini-batch": 20, "full batch": None},
    num_epochs={"online": 3, "mini-batch": 10, "full batch": 60},
    search_epochs={"online": 1, "mini-batch": 2, "full batch": 5},
    learning_rates={"online": [0.01, 0.5], "mini-batch": [0.01, 3.0], "full batch": [0.01, 3.0]},
    num_search_seeds=1,
    final_fraction=0.1,
    num_seeds=3,
)


def test_a_member_is_trained_as_if_it_were_alone() -> None:
    config = runs.plan(PARAMS)[3]
    alone = {**config, "members": config["members"][1:]}
    together, single = (runs.run(each, _splits()).metrics["members"][-1] for each in (config, alone))
    for name, values in single.items():
        np.testing.assert_allclose(values, together[name], atol=0.02)  # rounding of sums, and thereby single images


def test_final_runs_use_the_rate_that_is_best_on_the_validation_split() -> None:
    splits = _splits()
    searches = runs.plan(PARAMS)
    done = [Run(config=config, result=runs.run(config, splits).metrics) for config in searches]
    assert all("test_accuracy" not in run.result["members"][0] for run in done)
    finals = runs.plan_finals(PARAMS, done)
    assert len(finals) == 9
    for search, final in zip(done, finals, strict=True):
        accuracies = [member["validation_accuracy"][-1] for member in search.result["members"]]
        rate = search.config["members"][int(np.argmax(accuracies))][0]
        assert {member[0] for member in final["members"]} == {rate}
    result = runs.run(next(final for final in finals if final["encoding"] == "one-hot"), splits).metrics
    assert [len(member["test_accuracy"]) for member in result["members"]] == [4] * 6
    assert result["members"][0]["test_accuracy"][-1] > 0.9


def test_of_two_seeds_the_mean_decides_on_a_rate() -> None:
    def member(accuracy: float) -> dict[str, list[float]]:
        return {"validation_accuracy": [0.0, accuracy]}

    config = {"members": [[1.0, "constant", 0], [1.0, "constant", 1], [3.0, "constant", 0], [3.0, "constant", 1]]}
    found = Run(config=config, result={"members": [member(value) for value in (0.9, 0.1, 0.6, 0.7)]})
    assert runs.best_rate(found) == 3.0


def _wide_problem(rows: int = 40) -> tuple[Array, Array, NDArray[np.uint8]]:
    split = _splits(rows)["train"]
    return pixels(split).reshape(-1, PIXELS), runs.codes("one-hot").astype(np.float32), split.labels


def test_the_slope_along_the_gradient_is_its_length_and_no_random_one_is_steeper() -> None:
    images, targets, labels = _wide_problem()
    found = demonstrations.direction(images, targets[labels], num_hidden=5)
    assert found["along_descent"] == pytest.approx(-found["gradient_length"], rel=1e-6)
    assert abs(found["steepest_random"]) < found["gradient_length"] / 2


def test_hidden_units_that_were_only_exchanged_are_matched_again() -> None:
    network = runs.initial([0], (PIXELS, 6, 10))
    order = np.random.default_rng(0).permutation(6)
    exchanged = [network[0][..., order], network[1][..., order], network[2][:, order], network[3]]
    for found, expected in zip(demonstrations.matched(exchanged, network), network, strict=True):
        assert np.array_equal(found, expected)


def test_a_straight_line_starts_and_ends_at_the_networks_costs() -> None:
    images, targets, labels = _wide_problem()
    found = demonstrations.minima(runs.initial([0, 1, 2], (PIXELS, 5, 10)), images, targets[labels])
    ends = [(pair["line"][0], pair["line"][-1]) for pair in found["pairs"]]
    costs = [(found["costs"][first], found["costs"][second]) for first, second in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(ends, costs, atol=2e-6)  # other units' order, other rounding


def test_a_changed_weight_is_judged_as_by_a_whole_computation() -> None:
    images, targets, labels = _wide_problem(200)
    network = [values.astype(np.float64) for values in runs.initial([0], (PIXELS, 5, 10))]
    found = demonstrations.flatness(network, images, labels, targets)
    assert [entry["nudge"] for entry in found] == list(demonstrations.NUDGES)
    assert found[0]["cost"] > 0.5 > found[0]["accuracy"]
    assert found[-1]["accuracy"] >= found[0]["accuracy"]


def test_the_weights_of_a_run_are_read_back_as_they_were() -> None:
    config = {**runs.plan_finals(PARAMS, _searched())[4], "num_epochs": 1}
    done = runs.run(config, _splits())
    network = demonstrations.trained(Run(config=config, result=done.metrics, intermediate=done.intermediate))
    assert [values.shape for values in network] == [
        (len(config["members"]), *shape) for shape in ((784, 15), (1, 15), (15, 4), (1, 4))
    ]
    split = _splits()["test"]
    targets = runs.codes(config["encoding"]).astype(np.float32)
    _, accuracies = runs.judge(network, pixels(split).reshape(-1, PIXELS), split.labels, targets)
    expected = [member["test_accuracy"][-1] for member in done.metrics["members"]]
    np.testing.assert_allclose(accuracies, expected, atol=1e-6)


def _searched() -> list[Run]:
    return [
        Run(
            config=config,
            result={"members": [{"validation_accuracy": [0.0, rate]} for rate, _, _ in config["members"]]},
        )
        for config in runs.plan(PARAMS)
    ]


def test_trend_and_wobble_are_told_apart() -> None:
    epochs = list(range(10))
    straight = {"test_accuracy": [0.5 + 0.01 * epoch for epoch in epochs]}
    zigzag = {"test_accuracy": [0.9 + 0.01 * (-1) ** epoch for epoch in epochs]}
    assert findings._trend(straight, epochs) == pytest.approx(0.01)
    assert findings._wobble(straight, epochs) == pytest.approx(0, abs=1e-12)
    assert findings._trend(zigzag, epochs) == pytest.approx(0, abs=1e-12)
    assert findings._wobble(zigzag, epochs) == pytest.approx(np.std([1, -1, 1, -1, 1], ddof=0) * 0.01 * (5 / 3) ** 0.5)
