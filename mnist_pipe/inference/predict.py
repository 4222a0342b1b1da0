"""Classification of pictures with a registered model."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mnist_pipe.data.images import Box, examine
from mnist_pipe.data.pictures import SUFFIXES, Picture, read_picture
from mnist_pipe.data.sizing import enough
from mnist_pipe.errors import InputError, PipelineError
from mnist_pipe.inference import registered
from mnist_pipe.inference.classifier import Classifier

STDIN = Path("-")
UNSURE = "?"
_MAX_STDIN_BYTES = 1 << 28  # an endless stream would fill the memory


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The model's prediction for one digit of a picture, or for a picture that is not cut into digits."""

    box: Box
    """Left, top, right and bottom in pixels of the upright picture; right and bottom are exclusive."""
    label: str
    """Name of the most probable class, or `UNSURE` if its probability is below the smallest confidence."""
    number: int
    """The most probable class, a number from 0 on, whether sure or not."""
    probability: float
    """The probability of the most probable class."""
    probabilities: dict[str, float]
    """The probabilities of all classes by name, in the order of their numbers; they sum to 1."""

    @property
    def is_sure(self) -> bool:
        """Whether the probability reached the smallest confidence."""
        return self.label != UNSURE


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the model reads in one picture."""

    path: Path
    """The file; `-` is standard input."""
    model: str
    """The registered version, `NAME/VERSION`."""
    predictions: list[Prediction]
    """A prediction for each digit from left to right, or a single one for the whole picture."""
    doubt: str = ""
    """Why the picture may show something else, such as `has ink that reaches its border`; empty if nothing suggests it.
    """
    picture: Picture = field(repr=False, compare=False)
    """The picture that was read."""

    @property
    def warning(self) -> str:
        """The doubt as a line about the picture; empty if there is none."""
        return f"{self.path}: warning: the picture {self.doubt}; {self.text} may be wrong" if self.doubt else ""

    @property
    def text(self) -> str:
        """The labels one after another, such as `507`, or with spaces if one has several characters."""
        labels = [found.label for found in self.predictions]
        return ("" if self.is_number else " ").join(labels)

    @property
    def is_number(self) -> bool:
        """Whether the data set's labels are single characters, so that the digits form a number."""
        return all(len(label) == 1 for label in self.predictions[0].probabilities)


def classify(
    pictures: Iterable[Path], *, root: Path, model: str | None = None, min_confidence: float = 0
) -> Iterator[Reading | PipelineError]:
    """Load the model, then yield the reading of each picture, in order; for one that cannot be read, the exception.

    A picture is read when the iterator reaches it.

    Args:
        pictures: picture files; a folder stands for those directly in it, by name, and `-` for one picture from
            standard input.
        root: the project's root.
        model: `NAME@ALIAS` or `NAME/VERSION`; None is the champion of the data set that was registered last.
        min_confidence: a prediction whose probability is below it gets the label `UNSURE`.

    Raises:
        InputError: there is no such model, or several champions are registered.
        UnavailableError: there is no champion yet, or the registry does not answer.
        CorruptDataError: the model's files are damaged.
    """
    classifier = registered.load(model, root=root)
    return (_read(path, classifier, min_confidence=min_confidence) for path in files(pictures))


def files(pictures: Iterable[Path]) -> Iterator[Path | PipelineError]:
    """Yield each picture, and for a folder those directly in it, sorted by name.

    For a folder without any, or one that cannot be read, yield the exception. Hidden files are left out.
    """
    for path in pictures:
        try:
            is_folder = path != STDIN and path.is_dir()
            found = sorted(file for file in path.iterdir() if _is_picture(file)) if is_folder else [path]
        except OSError as error:
            yield InputError.invalid(path, "the path", "be readable", got=error.strerror)
            continue
        if not found:
            yield InputError.invalid(path, "the folder", "hold a picture", got="none")
        yield from found


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def _read(path: Path | PipelineError, classifier: Classifier, *, min_confidence: float) -> Reading | PipelineError:
    if isinstance(path, PipelineError):
        return path
    try:
        source = sys.stdin.buffer.read(_MAX_STDIN_BYTES + 1) if path == STDIN else path
        if isinstance(source, bytes) and len(source) > _MAX_STDIN_BYTES:
            raise InputError.invalid(path, "the content", f"have at most {_MAX_STDIN_BYTES} bytes", got="more")
        picture = read_picture(source, name=str(path), enough=enough(classifier.facts))
        digits, doubt = examine(picture, facts=classifier.facts)
    except InputError as error:
        return error
    found = classifier.predict(np.stack([digit.image for digit in digits]))
    predictions = [
        Prediction(
            box=digit.box,
            label=label if float(probability) >= min_confidence else UNSURE,
            number=int(number),
            probability=float(probability),
            probabilities=dict(zip(classifier.labels, probabilities.tolist(), strict=True)),
        )
        for digit, label, number, probability, probabilities in zip(
            digits, found.labels, found.classes, found.probability, found.probabilities, strict=True
        )
    ]
    return Reading(path=path, model=classifier.name, predictions=predictions, doubt=doubt, picture=picture)
