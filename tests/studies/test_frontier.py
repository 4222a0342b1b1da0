"""Test the frontier's averages against averages by hand, and that the rows that are held out choose everything."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from mnist_pipe import paths
from mnist_pipe.data.splits import NormalizedSplit
from mnist_pipe.params import loader
from mnist_pipe.training.recipe import recipe_of
from studies.common import catalogue
from studies.common.deskew import slant
from studies.common.fitting import whole
from studies.common.ledger import Run
from studies.common.packing import packed
from studies.frontier import ensembles, figures, findings, results, runs
from tests.support import ROOT
from tests.support.studies import check_rendered, legend, measured, points, recorded

ROWS = 400
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"channels": [4], "distortion": {"rotation_degrees": 10}},
    "good": {"channels": [4], "distortion": {"elastic_pixels": 1.0}},
    "other": {"channels": [6], "kernel": 5, "distortion": {}, "cycles": 2},
    "poor": {"channels": [2], "crop": 2, "deslanted": True, "distortion": {}},
}
STRENGTHS = {"plain": 1.6, "good": 2.3, "other": 2.0, "poor": 0.4}


def params(**changes: Any) -> runs.Params:
    values = {"validation_rows": 30, "num_epochs": 2, "num_seeds": 3, "most_members": 2, "kinds": KINDS}
    return runs.Params.model_validate({**values, **changes})


def split(num_rows: int = ROWS, *, seed: int = 0) -> NormalizedSplit:
    """Return images of a bar whose column is the class."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, num_rows).astype(np.uint8)
    images = generator.normal(0, 0.1, (num_rows, 28, 28)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        image[4:24, 4 + 2 * label : 6 + 2 * label] += 2
    index = np.arange(num_rows, dtype=np.uint32)
    return NormalizedSplit(images=images, labels=labels, index=index, provenance={"mean": 0.0, "std": 1.0})


def logs(labels: NDArray[np.uint8], kind: str, seed: int, *, strength: float = 1.0) -> NDArray[np.float16]:
    """Return log-probabilities, `(N, 10)`, of a network that is the better the stronger its kind."""
    noise = np.random.default_rng([seed, *kind.encode()]).normal(0, 1, (len(labels), 10))
    found: NDArray[np.float16] = log_softmax(noise + strength * STRENGTHS[kind] * np.eye(10)[labels], axis=1).astype(
        np.float16
    )
    return found


def finished(config: dict[str, Any], labels: NDArray[np.uint8], *, strength: float = 1.0) -> Run:
    values = logs(labels, config["kind"], config["seed"] + 100 * (config["phase"] == "final"), strength=strength)
    accuracy = ensembles.accuracy(values, labels)
    metrics = dict.fromkeys(("accuracy", "one_look_accuracy", "last_accuracy", "train_accuracy"), accuracy)
    brier, temperature = ensembles.brier(values.astype(np.float32), labels)
    metrics |= {"num_parameters": 1234, "brier": brier, "temperature": temperature}
    return Run(config=config, result=metrics, intermediate={"logs": packed(values), "labels": packed(labels)})


def study(test: NormalizedSplit, *, strength: float = 1.0, **changes: Any) -> list[Run]:
    """Return the runs of both phases, with the labels of `test` as those of its test split."""
    held_out = split(len(test.labels), seed=1).labels
    chosen = [finished(config, held_out, strength=strength) for config in runs.plan(params(**changes))]
    plan = runs.plan_finals(params(**changes), chosen)
    finals = [finished(config, test.labels, strength=strength) for config in plan]
    return chosen + finals


def concluded(done: list[Run], test: NormalizedSplit) -> dict[str, Any]:
    training = split(300, seed=len(test.labels))
    others = replace(training, index=training.index + len(training.index))
    return runs.conclude(done, {"train": training, "validation": others, "test": test})


@pytest.fixture(scope="module")
def test_split() -> NormalizedSplit:
    return split()


@pytest.fixture(scope="module")
def done(test_split: NormalizedSplit) -> list[Run]:
    return study(test_split)


@pytest.fixture(scope="module")
def conclusions(done: list[Run], test_split: NormalizedSplit) -> dict[str, Any]:
    return concluded(done, test_split)


def test_the_control_is_the_main_pipelines_best_recipe() -> None:
    shipped = catalogue.params_of("frontier", ROOT / paths.STUDY_PARAMS)
    assert isinstance(shipped, runs.Params)
    control = next(config for config in runs.plan(shipped) if config["is_control"])
    recipe = loader.load(ROOT / paths.PARAMS, names=None).recipes["best"]
    best = recipe_of(recipe.model_dump(), found={}, models={}, seed=0)
    ours = replace(
        runs.recipe_of(control),
        num_epochs=best.num_epochs,
        rotation_degrees=control["distortion"]["rotation_degrees"],
        translation_pixels=control["distortion"]["translation_pixels"],
    )
    assert ours == best
    assert {name for name, value in control["distortion"].items() if value} == {
        "rotation_degrees", "translation_pixels", "elastic_sigma",
    }  # fmt: skip
    assert (control["kernel"], control["crop"], control["cycles"], control["distilled"]) == (3, 0, 1, 0)
    assert not control["deslanted"]
    assert recipe.test_time_augmentation


def test_every_kind_is_tried_and_the_chosen_ones_and_the_control_get_every_seed(done: list[Run]) -> None:
    tried = [one.config["kind"] for one in runs.of_phase(done, "choice")]
    assert sorted(tried) == sorted(KINDS)
    finals = {(one.config["kind"], one.config["seed"]) for one in runs.of_phase(done, "final")}
    assert finals == {(kind, seed) for kind in ("plain", "good", "other") for seed in range(3)}


def test_the_costliest_networks_come_first() -> None:
    costs = [runs.multiply_adds(config) for config in runs.plan(params())]
    assert costs == sorted(costs, reverse=True)


def test_multiply_adds_are_those_that_the_convolutions_of_the_network_make() -> None:
    config = {"crop": 3, "channels": [5, 7], "convolutions": 2, "kernel": 5}
    by_hand = 25 * (20**2 * 5 + 20**2 * 25 + 10**2 * 35 + 10**2 * 49)
    assert runs.multiply_adds(config) == by_hand


def test_the_last_rows_choose_and_are_not_trained_on() -> None:
    training, others = runs.held_out(split(), num_rows=100)
    assert training.index.tolist() == list(range(ROWS - 100))
    assert others.index.tolist() == list(range(ROWS - 100, ROWS))
    assert [len(part.images) for part in (training, others)] == [len(part.labels) for part in (training, others)]


def test_deslanted_images_stay_standardised_and_upright_ones_as_they_are() -> None:
    y, x = np.mgrid[:28, :28] - 13.5
    bars = [np.exp(-((x + lean * y) ** 2) / 4) * (np.abs(y) < 9) for lean in (0.0, 0.4, -0.3)]
    images = ((np.stack(bars) - 0.13) / 0.31).astype(np.float32)
    slanted = replace(split(3), images=images, provenance={"mean": 0.13, "std": 0.31})
    found = runs.upright(slanted).images
    np.testing.assert_allclose(found[0], images[0], atol=1e-5)
    assert np.abs(slant(found * 0.31 + 0.13)).max() < 0.02 < np.abs(slant(images * 0.31 + 0.13)).max()
    assert found.dtype == np.float32


def test_writers_who_are_together_in_the_file_are_found_and_those_in_random_order_are_not() -> None:
    generator = np.random.default_rng(0)
    hands = np.repeat(generator.normal(0, 3, (40, 28, 28)), 50, axis=0)  # 40 writers of 50 digits each
    images = (hands + generator.normal(0, 0.1, hands.shape)).astype(np.float32)
    labels = (np.arange(2000) % 10).astype(np.uint8)
    ordered = replace(split(), images=images, labels=labels)
    order = generator.permutation(2000)
    mixed = replace(ordered, images=images[order], labels=labels[order])
    assert runs.nearby(ordered, num_rows=50)["found"] == 1
    found = runs.nearby(mixed, num_rows=50)
    assert found["found"] == pytest.approx(found["chance"], abs=0.03)
    assert found["chance"] == pytest.approx(100 / 2000, abs=0.01)


@pytest.mark.parametrize("phase", ["choice", "final"])
def test_a_network_is_judged_on_the_rows_of_its_phase(phase: str) -> None:
    splits = {"train": split(300), "validation": split(60, seed=1), "test": split(80, seed=2)}
    splits["validation"] = replace(splits["validation"], index=splits["validation"].index + 300)
    small = params(num_epochs=4)
    config = next(one for one in runs.plan(small) if one["kind"] == "other") | {"phase": phase}
    found = runs.run(config, splits)
    labels = runs.held_out(whole(splits), num_rows=30)[1].labels if phase == "choice" else splits["test"].labels
    values = runs.logs_of(Run(config=config, result=found.metrics, intermediate=found.intermediate))
    assert ensembles.accuracy(values, labels) == found.metrics["accuracy"] > 0.2
    assert ("temperature" in found.metrics) == ("brier" in found.metrics) == (phase == "choice")
    assert found == runs.run(config, splits)


def test_the_test_labels_change_no_choice(done: list[Run], conclusions: dict[str, Any]) -> None:
    other = replace(split(), labels=np.roll(split().labels, 1))
    assert concluded(done, other)["choice"] == conclusions["choice"]


def test_the_chosen_kinds_are_the_best_and_add_to_each_other(done: list[Run], conclusions: dict[str, Any]) -> None:
    choice = conclusions["choice"]
    assert choice["single"] == choice["members"][0] == "good"
    assert choice["members"] == ["good", "other"]
    scores = {one.config["kind"]: one.result["brier"] for one in runs.of_phase(done, "choice")}
    assert choice["scores"][choice["average"]] == min(choice["scores"].values()) < min(scores.values())


def test_an_ensemble_averages_one_network_of_each_chosen_kind(
    done: list[Run], conclusions: dict[str, Any], test_split: NormalizedSplit
) -> None:
    choice, expected = conclusions["choice"], []
    for seed in range(3):
        parts = []
        for kind in choice["members"]:
            values = logs(test_split.labels, kind, seed + 100).astype(np.float64)
            if choice["average"].startswith("scaled"):
                values = values / choice["temperatures"][kind]
            parts.append(softmax(values, axis=1))
        mean = np.prod(parts, axis=0) if choice["average"].endswith("logarithms") else np.sum(parts, axis=0)
        expected.append(float((mean.argmax(1) == test_split.labels).mean()))
    assert conclusions["averages"]["chosen"] == expected
    by_size = conclusions["by_size"]
    assert by_size["one of each kind"][-1] == pytest.approx(expected[0])
    copies = results.accuracies(done, "plain")
    assert by_size["copies of the control"][0] == pytest.approx(np.mean(copies), abs=1e-6)
    assert by_size["copies of the control"][-1] == pytest.approx(conclusions["averages"]["copies"]["plain"])


def test_an_inaccurate_network_stays_in_the_results(done: list[Run], test_split: NormalizedSplit) -> None:
    bad = packed(logs(test_split.labels, "poor", 0))
    spoiled = [
        replace(one, intermediate={"logs": bad}) if one.config["phase"] == "final" and one.config["seed"] == 2 else one
        for one in done
    ]
    found = concluded(spoiled, test_split)["averages"]["chosen"]
    before = concluded(done, test_split)["averages"]["chosen"]
    assert found[:2] == before[:2]
    assert found[2] < before[2]


def test_a_selection_on_the_test_split_is_never_worse_than_what_it_selects_from(
    done: list[Run], conclusions: dict[str, Any]
) -> None:
    selected = conclusions["selected"]
    finals = [one.result["accuracy"] for one in runs.of_phase(done, "final")]
    assert (selected["single"]["accuracy"], selected["single"]["of"]) == (max(finals), 9)
    assert selected["vote"]["of"] == 3**3  # three kinds, three seeds each
    assert selected["average"]["of"] == 3**2
    assert selected["average"]["accuracy"] >= max(conclusions["averages"]["chosen"])


def test_every_published_record_stands_beside_a_result_of_ours(done: list[Run], conclusions: dict[str, Any]) -> None:
    rows = findings.rows(measured(done, conclusions))
    records = [row for row in rows if row.published is not None]
    assert len(records) == len(results.RECORDS)
    assert all(row.values and "theirs: " in row.note for row in records)
    assert {row.verdict for row in records} == {"not comparable"}
    told = [row for row in records if "selected on the test split, ours would be" in row.note]
    assert told == [row for row in records if results.is_selected(row)]
    assert {row.published.setting for row in told if row.published} == {
        "the best of the paper's settings", '"up to": the best that was seen on the test set',
    }  # fmt: skip


def test_longer_trainings_of_earlier_versions_are_compared_by_welchs_test() -> None:
    gain, p_value = results.longer(
        [{"num_epochs": 3, "accuracies": [0.5, 0.6]}, {"num_epochs": 9, "accuracies": [0.8, 0.9]}]
    )
    assert gain == pytest.approx(30)
    assert p_value == pytest.approx(0.0513167)  # t = 3 / sqrt(1/2) with two degrees of freedom
    assert [one["num_epochs"] for one in results.earlier()] == [6, 19, 20]


def test_every_sentence_with_a_figure_comes_from_the_runs(done: list[Run], test_split: NormalizedSplit) -> None:
    """Check that other runs change every sentence or row with a figure, but for earlier runs and published names."""
    others = split(300, seed=5)
    other_runs = study(others, strength=0.4, validation_rows=40, num_epochs=3, num_seeds=4)
    texts = []
    for measured_runs, test in ((done, test_split), (other_runs, others)):
        found = measured(measured_runs, concluded(measured_runs, test))
        rows = findings.rows(found)
        text = f"{findings.render_answer(found, rows)} {findings.render_findings(found, rows)}"
        texts.append({sentence for sentence in re.split(r"\n+|(?<=\.) ", text) if re.search(r"\d", sentence)})
    assert len(texts[0]) > 25
    not_measured = (
        "`",
        "Welch",
        "Earlier versions",
        "published error",
        "- MCDNN, 35 networks",
        "with the 95 % interval for the images",
    )
    common = {one for one in texts[0] & texts[1] if not any(text in one for text in not_measured)}
    assert common == set()


def test_a_claim_that_the_runs_contradict_is_said_to_be(done: list[Run], conclusions: dict[str, Any]) -> None:
    words = {}
    for gain, p_value in ((0.1, 0.01), (-0.1, 0.01), (0.1, 0.2)):
        claims = {key: {"gains": [gain], "p_value": p_value} for key in conclusions["claims"]}
        text = findings.render_findings(measured(done, {**conclusions, "claims": claims}), _rows(done, conclusions))
        words[gain, p_value] = [text.count(f"better than {end}") for end in (
            "one of them holds", "one of them is contradicted", "one of them is not decided",
        )]  # fmt: skip
    assert list(words.values()) == [[2, 0, 0], [0, 2, 0], [0, 0, 2]]


def _rows(done: list[Run], conclusions: dict[str, Any]) -> list[Any]:
    return findings.rows(measured(done, conclusions))


def test_the_control_is_not_shown_twice_if_it_is_chosen(test_split: NormalizedSplit) -> None:
    worse = {name: {**KINDS["poor"], "channels": [number]} for number, name in enumerate(("other", "poor"), 1)}
    done = study(test_split, kinds={"good": KINDS["good"], **worse})
    found = measured(done, concluded(done, test_split))
    systems = [(row.system, row.variant) for row in findings.rows(found) if row.published is None]
    assert len(systems) == len(set(systems)) == 5
    assert findings.render_findings(found, findings.rows(found))


def test_the_figures_show_every_system_kind_size_and_mistake(
    done: list[Run], conclusions: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = recorded(monkeypatch)
    pictures = figures.draw(tmp_path, measured(done, conclusions))
    assert pictures.keys() == drawn.keys() == {"figure.png", "kinds.png", "sizes.png", "mistakes.png"}
    for name, figure in drawn.items():
        check_rendered(tmp_path / name, figure)
    axes = drawn["figure.png"].axes[0]
    dots = [points(line) for line in axes.lines if line.get_marker() in ("o", "D")]
    shown = {round(places[0, 0], 6) for places in dots if places.size}
    rows = _rows(done, conclusions)
    assert {round(row.mean if row.published is None else row.published.value, 6) for row in rows} <= shown
    assert len(axes.get_yticklabels()) == len(rows)
    crosses = [points(line)[0, 0] for line in axes.lines if line.get_marker() == "x" and points(line).size]
    assert crosses == [results.selected_error(conclusions, one.selected) for one in results.RECORDS if one.selected]
    assert [text.get_text() for text in drawn["kinds.png"].axes[0].get_yticklabels()] == [
        one.config["kind"] for one in sorted(runs.of_phase(done, "choice"), key=lambda one: one.result["brier"])
    ]
    band = "one of each kind: 95 % interval for the images"
    assert set(legend(drawn["sizes.png"].axes[0])) == {*conclusions["by_size"], band}
    tiles = [one for one in drawn["mistakes.png"].axes if one.get_visible()]
    assert len(tiles) == len(conclusions["mistakes"])
