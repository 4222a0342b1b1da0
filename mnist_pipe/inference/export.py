"""Export of a registered model to files that other programs load: ONNX, or safetensors with its card.

The ONNX model is the whole `Classifier`: grey levels in, probabilities out. It is compared with the classifier on every
image of the test split before it is written.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_pipe import paths
from mnist_pipe.atomic import atomic_file, atomic_folder, check_new_or_empty, write_bytes, write_json, write_manifest
from mnist_pipe.data import sources, splits
from mnist_pipe.errors import CorruptDataError, InputError, UnavailableError
from mnist_pipe.hardware import num_cpus
from mnist_pipe.inference import registered
from mnist_pipe.inference.classifier import Classifier
from mnist_pipe.models import forward, saved
from mnist_pipe.registry import versions

if TYPE_CHECKING:
    import onnxruntime

Format = Literal["onnx", "safetensors"]
FORMATS: tuple[Format, ...] = get_args(Format)
ONNX_MODEL = "model.onnx"
IMAGES, PROBABILITIES = "images", "probabilities"  # names of the ONNX model's input and output
MAX_DIFFERENCE = 1e-5
"""Largest difference of a probability between the ONNX model and torch."""

_PACKAGES = ("onnxscript", "onnxruntime")  # of the extra `export`; torch writes ONNX with the first


def export(output: Path, *, kind: Format, root: Path, model: str | None = None) -> Exported:
    """Write a registered model, its card and a manifest to the folder `output`, whole or not at all.

    Args:
        output: a folder that is empty or does not exist.
        kind: the format of the model's file.
        root: the project's root.
        model: `NAME@ALIAS` or `NAME/VERSION`; None is the champion of the data set that was registered last.

    Raises:
        InputError: there is no such model, several champions are registered, the output exists, or the test split is
            of another data set than the model.
        UnavailableError: there is no champion yet, the registry does not answer, or a package is not installed.
        CorruptDataError: the files of the model or the test split are missing or damaged, or ONNX Runtime and torch
            disagree.
    """
    output = output.resolve()
    check_new_or_empty(output)
    if kind == "onnx":
        _check_packages()
    found = registered.find(model, root=root)
    folder = versions.download(found, root=root)
    name = f"{found.name}/{found.version}"
    classifier = Classifier.load(folder, name=name, content_sha256=found.content_sha256)
    if kind == "safetensors":
        with atomic_folder(output) as temporary:
            write_bytes(temporary / saved.WEIGHTS, (folder / saved.WEIGHTS).read_bytes())
            write_json(temporary / paths.CARD, classifier.card)
            write_manifest(temporary)
        return Exported(path=output / saved.WEIGHTS, model=name)
    images = _test_images(root / paths.RAW / "test.parquet", card=classifier.card)
    with atomic_folder(output) as temporary:
        write_onnx(temporary / ONNX_MODEL, classifier)
        difference = compare(temporary / ONNX_MODEL, classifier, images=images)
        write_json(temporary / paths.CARD, classifier.card)
        write_manifest(temporary)
    return Exported(path=output / ONNX_MODEL, model=name, num_images=len(images), difference=difference)


def write_onnx(path: Path, classifier: Classifier) -> None:
    """Write `classifier` to `path` as one ONNX model.

    Its input `images` is uint8, as for `Classifier.predict`, its output `probabilities` float32 `(N, classes)`, for any
    N. Its metadata has the `labels` of the classes as JSON, and the `name`, `version` and `content_sha256` of the
    registered version.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    two = torch.zeros((2, *classifier.facts.array_shape), dtype=torch.uint8)  # a batch of one would fix the batch size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's exporter uses a name that torch deprecates
        program = torch.onnx.export(
            _Probabilities(classifier).eval(),
            (two,),
            input_names=[IMAGES],
            output_names=[PROBABILITIES],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # torch notes a stack trace, with this machine's paths, at each node
    name, _, version = classifier.name.rpartition("/")
    content = {"name": name, "version": version, "content_sha256": classifier.content_sha256}
    program.model.metadata_props.update(labels=json.dumps(classifier.labels), **content)
    with atomic_file(path) as temporary:
        program.save(temporary, external_data=False)


def compare(path: Path, classifier: Classifier, *, images: NDArray[np.uint8]) -> float:
    """Return the largest difference of a probability between the ONNX model in `path` and `classifier`.

    Args:
        path: the ONNX model.
        classifier: the model that it was written from.
        images: uint8, as for `Classifier.predict`, at least one.

    Raises:
        CorruptDataError: a difference exceeds `MAX_DIFFERENCE`, or the most probable class differs.
    """
    session = open_session(path)
    rows = forward.chunks(len(images), forward.ROWS_AT_ONCE["cpu"])
    found = np.concatenate([session.run([PROBABILITIES], {IMAGES: images[part]})[0] for part in rows])
    expected = classifier.probabilities(images)
    others = int((found.argmax(1) != expected.argmax(1)).sum())
    difference = float(np.abs(found - expected).max())
    if others or not difference <= MAX_DIFFERENCE:
        rule = f"be within {MAX_DIFFERENCE:g} of torch's and give the same class on all {len(images):,} test images"
        got = f"a difference of {difference:.2g} and {others} other classes"
        raise CorruptDataError.invalid(path.name, "the probabilities", rule, got=got, fix="use --format safetensors")
    return difference


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Return an ONNX Runtime session for the model in `path`, on the CPUs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_cpus()  # the default counts CPUs that a container may not use
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _check_packages() -> None:
    for name in _PACKAGES:
        if find_spec(name) is None:
            fix = f"run: {sys.executable} -m pip install -c requirements.lock -e '.[export]'"
            raise UnavailableError.missing(name, state="is not installed", fix=fix)


def _test_images(path: Path, *, card: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return the images of the raw test split in `path`, uint8.

    Raises:
        InputError: it is of another data set than the model with this card.
        CorruptDataError: the file is missing or damaged.
    """
    split = splits.read_raw(path)
    found, expected = split.provenance["dataset"], card["dataset"]
    if found != expected:
        again = f"run: dvc exp run -S ingest.dataset={expected}"
        fix = again if expected in sources.SOURCES else "set ingest as it was, then run: dvc repro"
        rule = f"be {expected}, which the model was trained on"
        raise InputError.invalid(path, "dataset", rule, got=found, fix=fix)
    return split.images


class _Probabilities(nn.Module):
    """The steps of `Classifier.probabilities` as one module, on the CPU."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network = copy.deepcopy(classifier.network).cpu()
        self.shape = classifier.facts.shape
        self.register_buffer("levels", torch.from_numpy(classifier.levels).unsqueeze(2))

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities, float32 `(N, classes)`, of images, uint8, as for `Classifier.predict`."""
        channels = images.view(-1, *self.shape).int().unbind(1)
        levels = self.get_buffer("levels")
        pixels = torch.cat([F.embedding(one, own).movedim(3, 1) for one, own in zip(channels, levels, strict=True)], 1)
        probabilities: Tensor = self.network(pixels).softmax(1)
        return probabilities


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The result of `export`."""

    path: Path
    """The model's file."""
    model: str
    """The registered version, `NAME/VERSION`."""
    num_images: int = 0
    """Number of test images on which ONNX Runtime and torch were compared; 0 for safetensors."""
    difference: float = 0.0
    """Largest difference of a probability on these images."""
