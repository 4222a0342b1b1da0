"""The folder of a registered version: an MLflow model (pyfunc) that loads without this project and without pickle."""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import mnist_pipe
from mnist_pipe.atomic import MANIFEST, read_json
from mnist_pipe.data.facts import Facts

MODEL_CARD = "README.md"
_CODE = Path(__file__).with_name("model_code.py")
_MODULES = ("__init__.py", "atomic.py", "command_line.py", "data/__init__.py", "data/facts.py", "errors.py",
            "inference/__init__.py", "inference/classifier.py", "models",
            "params", "paths.py", "waiting.py")  # fmt: skip
"""What `inference.classifier` imports of this package; a test loads a version where nothing else is."""
_REQUIREMENTS = ("mlflow", "numpy", "pydantic", "safetensors", "torch")


def write_version(folder: Path, candidate: Path, *, card: dict[str, Any], text: str) -> None:
    """Write to the new folder `folder` an MLflow model with the files of `candidate`.

    Args:
        folder: the folder, which must not exist.
        candidate: the folder of the model's weights, card and manifest.
        card: the model's card.
        text: the model card for people, as Markdown.
    """
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    facts = Facts.of(card)
    one = np.zeros((1, *facts.array_shape), np.uint8)
    height, width = facts.shape[1:]
    one[..., height // 7 : height - height // 7, width // 2 - 1 : width // 2 + 1] = 255  # as a 1 is
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *one.shape[1:]))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, facts.num_classes))]),
    )
    with tempfile.TemporaryDirectory() as temporary:
        mlflow.pyfunc.save_model(
            path=folder,
            python_model=str(_CODE),
            code_paths=[str(_copy_modules(Path(temporary)))],
            signature=signature,
            input_example=one,
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in _REQUIREMENTS],
        )
    for file in (*read_json(candidate / MANIFEST), MANIFEST):
        shutil.copy2(candidate / file, folder / file)
    (folder / MODEL_CARD).write_text(text, encoding="utf-8")


def _copy_modules(folder: Path) -> Path:
    """Copy the modules that a version needs to `folder`, and return the package's folder there."""
    source, package = Path(mnist_pipe.__file__).parent, folder / mnist_pipe.__name__
    for name in _MODULES:
        if (source / name).is_dir():
            shutil.copytree(source / name, package / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (package / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, package / name)
    return package
