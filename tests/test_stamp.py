"""A number is shown with its date, hardware and commit, or not at all."""

from __future__ import annotations

import json
import re

import pytest

from mnist_pipe.errors import CorruptDataError
from mnist_pipe.evaluation import stamp
from tests.support import ROOT


def test_a_measurement_is_stamped_with_this_checkout_and_machine() -> None:
    found = stamp.stamp(ROOT, num_cpus=3, num_gpus=2)
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", found["date"])
    assert re.fullmatch(r"[0-9a-f]{7}\+?|not a git checkout.*", found["commit"])
    assert re.fullmatch(r"3 CPU cores of .+, 2 GPUs", found["hardware"])
    assert stamp.line(found, where="x") == f"{found['date']}, {found['hardware']}, `{found['commit']}`"


@pytest.mark.parametrize("key", ["date", "commit", "hardware", "torch"])
def test_a_measurement_without_a_part_of_its_stamp_is_refused(key: str) -> None:
    entry = {**stamp.stamp(ROOT), key: None}
    with pytest.raises(CorruptDataError) as caught:
        stamp.line(entry, where="results.json: data")
    assert str(caught.value) == f"results.json: data: {key} of the measurement is not recorded; measure it again"


def test_every_recorded_measurement_has_its_stamp() -> None:
    for name, entry in json.loads((ROOT / "benchmarks/results.json").read_text()).items():
        assert stamp.line(entry, where=name)
    for path in ROOT.glob("studies/*/times.json"):
        assert stamp.line(json.loads(path.read_text()), where=path)
