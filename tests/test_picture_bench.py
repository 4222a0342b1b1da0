"""Count how pictures of all kinds are read: right, doubted or refused, and never wrong with confidence."""

from __future__ import annotations

import gzip
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mnist_pipe.data.images import examine
from mnist_pipe.data.pictures import read_picture
from mnist_pipe.errors import InputError
from mnist_pipe.inference.classifier import Classifier
from tests.support.pictures import NOTHING, NUMBERS, STYLES
from tests.support.serving import write_trained

pytestmark = pytest.mark.long

CONFIDENT = 0.8
OF_EACH = 3
RIGHT, DOUBTED, REFUSED, UNSURE, WRONG = "right", "doubted", "refused", "wrong, unsure", "wrong, confident"


@dataclass
class Bench:
    """A model, and digits of the test split that it reads with certainty from their own pixels."""

    model: Classifier
    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def some(self, count: int) -> NDArray[np.intp]:
        return self.random.choice(len(self.images), count, replace=False)

    def outcome(self, content: bytes, expected: str) -> str:
        try:
            digits, doubt = examine(read_picture(content))
        except InputError:
            return REFUSED
        found = self.model.predict(np.stack([digit.image for digit in digits]))
        if doubt:
            return DOUBTED
        if "".join(found.labels) == expected:
            return RIGHT
        return WRONG if found.probability.prod() > CONFIDENT else UNSURE


@pytest.fixture
def bench(trained: Bench) -> Bench:
    """Bench that draws the same, whatever other tests have drawn."""
    return replace(trained, random=np.random.default_rng(0))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, mnist_mirror: Path) -> Bench:
    folder = tmp_path_factory.mktemp("trained") / "model"
    write_trained(folder, mnist_mirror)
    images, labels = (
        np.frombuffer(gzip.decompress((mnist_mirror / f"t10k-{name}-ubyte.gz").read_bytes()), np.uint8, offset=offset)
        for name, offset in (("images-idx3", 16), ("labels-idx1", 8))
    )
    images, model = images.reshape(-1, 28, 28), Classifier.load(folder)
    found = model.predict(images)
    sure = (found.classes == labels) & (found.probability > 0.85)  # label smoothing leaves about 0.9
    return Bench(model, images[sure], labels[sure])


def test_a_digit_on_any_paper_is_read_or_doubted(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"digit": Counter[str](), "hard": Counter[str]()}
    failures = []
    for style, (rule, draw) in STYLES.items():
        for row in bench.some(OF_EACH):
            found = bench.outcome(draw(bench.images[row], bench.random), str(bench.labels[row]))
            counts[rule][found] += 1
            if found == WRONG or (rule == "digit" and found != RIGHT):
                failures.append((style, int(row), found))
    with capsys.disabled():
        print(*(f"{rule}: {dict(found)}" for rule, found in counts.items()), sep="; ")
    assert sum(found.total() for found in counts.values()) >= 200
    assert counts["digit"][WRONG] + counts["hard"][WRONG] == 0, failures
    assert counts["digit"][RIGHT] >= 0.97 * counts["digit"].total(), failures
    assert counts["hard"][RIGHT] >= 0.4 * counts["hard"].total()
    assert counts["hard"][UNSURE] <= 0.1 * counts["hard"].total()


def test_several_digits_are_all_read_or_doubted(bench: Bench) -> None:
    outcomes = {}
    for style, (count, draw) in NUMBERS.items():
        for number in range(OF_EACH):
            rows = bench.some(count)
            expected = "".join(map(str, bench.labels[rows]))
            outcomes[style, number] = bench.outcome(draw([*bench.images[rows]], bench.random), expected)
    assert WRONG not in outcomes.values(), outcomes
    assert sum(found == RIGHT for found in outcomes.values()) >= 0.6 * len(outcomes), outcomes
    for style in ("two digits in two lines", "a large and a small digit", "two digits, one cut off"):
        assert sum(outcomes[style, number] == DOUBTED for number in range(OF_EACH)) >= OF_EACH - 1, outcomes


def test_a_picture_of_no_digit_is_refused_or_doubted(bench: Bench) -> None:
    outcomes = {style: bench.outcome(draw(bench.random), "") for style, draw in NOTHING.items()}
    assert WRONG not in outcomes.values(), outcomes
    assert sum(found in (REFUSED, DOUBTED) for found in outcomes.values()) >= len(outcomes) - 1, outcomes
