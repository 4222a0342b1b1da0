"""Test what is said before a stage works: which models do not take the images, and that no gate can decide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mnist_pipe import models, paths, preflight
from mnist_pipe.atomic import write_json
from mnist_pipe.data.facts import MNIST, Facts
from mnist_pipe.data.splits import write_normalized
from mnist_pipe.errors import CorruptDataError, InputError
from tests.support import ROOT
from tests.support.data import normalized_split

PARAMS = preflight.load_params(ROOT / "params.yaml")


def report(root: Path, *, rows: int, accuracy: float) -> None:
    write_json(root / paths.DATA_REPORT, {"rows": {"validation": rows}})
    write_json(root / paths.BASELINE_REPORT, {"validation_accuracy": accuracy})


def test_a_validation_split_on_which_no_gate_can_decide_is_told_with_how_many_rows_would_do(tmp_path: Path) -> None:
    assert preflight.doubt_about_validation(PARAMS, root=tmp_path) == ""  # nothing is known yet
    report(tmp_path, rows=57, accuracy=54 / 57)
    assert preflight.doubt_about_validation(PARAMS, root=tmp_path) == (
        "data/normalized/validation.parquet: the baseline is wrong on 3 of 57 rows, and no test can decide with less "
        "than "
        "7, which about 133 rows would have; a candidate becomes the champion only if it is right on all rows. Add "
        "images, "
        "or raise normalize.validation_rows or register.max_p_value_against_baseline"
    )
    report(tmp_path, rows=57, accuracy=50 / 57)
    assert preflight.doubt_about_validation(PARAMS, root=tmp_path) == ""
    report(tmp_path, rows=5000, accuracy=0.92)
    assert preflight.doubt_about_validation(PARAMS, root=tmp_path) == ""


def test_a_model_that_does_not_take_the_images_is_told_if_it_may_be_trained(tmp_path: Path) -> None:
    assert preflight.facts_of_data(tmp_path) == MNIST
    small = Facts(shape=(1, 8, 8))
    split = normalized_split(np.zeros((10, 8, 8), np.float32))
    provenance = {"dataset": "mine", "mean": 0.1, "std": 0.3, **small.to_dict()}
    write_normalized(tmp_path / paths.TRAINING_SPLITS["train"], replace(split, provenance=provenance))
    facts = preflight.facts_of_data(tmp_path)
    assert facts == small
    recipe = PARAMS.recipes[PARAMS.recipe]
    arguments = {**PARAMS.models, recipe.model: recipe.model_params}
    models.check(arguments, trained=["convnet", "linear", "mlp", "cnn"], facts=facts)
    with pytest.raises(InputError) as caught:
        models.check(arguments, trained=["convnet", "lenet5"], facts=facts)
    assert str(caught.value) == (
        "the model lenet5: the images must have sides of 12 pixels or more, but got 1x8x8; name another one in the "
        "recipe "
        "and search.space.model"
    )


def test_own_images_are_checked_before_a_flow_starts(tmp_path: Path) -> None:
    ingest = PARAMS.ingest.model_copy(update={"dataset": "idx", "name": "mine", "path": str(tmp_path)})
    with pytest.raises(InputError, match="path must hold train-images-idx3-ubyte"):
        preflight.check_files(ingest)
    for name in ("images-idx3", "labels-idx1"):
        (tmp_path / f"train-{name}-ubyte").write_bytes(b"\0" * 20)
    with pytest.raises(CorruptDataError):
        preflight.check_files(ingest)
    preflight.check_files(ingest.model_copy(update={"path": "s3://bucket/there"}))  # the flow's own first step
    preflight.check_files(PARAMS.ingest)
