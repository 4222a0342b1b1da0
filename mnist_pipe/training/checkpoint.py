"""Checkpoints on disk, and the card of a trained model.

A checkpoint is stored as a model is (`models.saved`): safetensors, JSON and a manifest, without pickle.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from mnist_pipe.atomic import read_json, sha256, verify_manifest, write_bytes, write_json, write_manifest
from mnist_pipe.data.facts import Facts
from mnist_pipe.data.parquet import read_provenance
from mnist_pipe.errors import CorruptDataError, one_line

STATE = "state.safetensors"
PROGRESS = "progress.json"


def save_state(folder: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Write to `folder` a checkpoint with everything that a resumed run needs.

    The state of the random generators is not saved, because every draw comes from a generator seeded by (seed, epoch);
    see `loop`.

    Args:
        folder: it is created if it does not exist.
        model: the network.
        optimizer: its optimizer, whose state is saved without the parameter groups.
        progress: JSON values: epoch, step, sums, history.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    optimizer_state = optimizer.state_dict()
    scalars: dict[str, dict[str, Any]] = {}
    for index, state in optimizer_state["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            elif value is not None:
                scalars.setdefault(str(index), {})[key] = value
    folder.mkdir(parents=True, exist_ok=True)
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(folder / STATE, safetensors.torch.save(content))
    write_json(folder / PROGRESS, {"progress": progress, "scalars": scalars})
    write_manifest(folder)


def load_state(folder: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load the checkpoint in `folder` into `model` and `optimizer`, and return its progress.

    Raises:
        CorruptDataError: a file is missing or differs from the manifest, or fits another architecture or optimizer.
    """
    verify_manifest(folder)
    tensors = safetensors.torch.load_file(folder / STATE)
    record = read_json(folder / PROGRESS)
    try:
        model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    except RuntimeError as error:
        got = one_line(error)
        raise CorruptDataError.invalid(folder / STATE, "the weights", "fit the model", got=got) from error
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in record["scalars"].items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            state.setdefault(int(number), {})[key] = tensor
    if any(index >= len(parameters) for index in state):
        got = f"one of parameter {max(state)}"
        rule = f"be of the optimizer's {len(parameters)} parameters"
        raise CorruptDataError.invalid(folder / STATE, "the optimizer's state", rule, got=got)
    for index, values in state.items():
        like = parameters[index]
        for key, value in values.items():
            # A fused optimizer iterates over parameter and state side by side in memory, so their layouts must agree.
            if isinstance(value, Tensor) and value.shape == like.shape:
                values[key] = torch.empty_like(like).copy_(value)
    # The caller builds the parameter groups from the same recipe; only the state that training changes is restored.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    progress: dict[str, Any] = record["progress"]
    return progress


def position(folder: Path) -> tuple[int, int]:
    """Return the position of the checkpoint in `folder`: completed epochs, and steps into the next.

    Raises:
        CorruptDataError: there is no manifest, or it does not match the files.
    """
    verify_manifest(folder)
    progress = read_json(folder / PROGRESS)["progress"]
    return int(progress["epoch"]), int(progress["step"])


def model_card(
    recipe: dict[str, Any],
    *,
    model: nn.Module,
    metrics: dict[str, float],
    data: dict[str, Path],
    tta: bool = False,
) -> dict[str, Any]:
    """Return the card of a trained model: architecture, recipe, data and metrics.

    The same run gives the same bytes, so the card holds no time and no host name.

    Args:
        recipe: `Recipe.to_dict()` of the run.
        model: the trained model.
        metrics: at least `validation_accuracy` in [0, 1] and `validation_loss` in nats.
        data: the Parquet files, by the split's name, `train` and `validation`.
        tta: whether the model is to be loaded with test-time augmentation.
    """
    provenance = read_provenance(data["train"])
    settings = {key: value for key, value in recipe.items() if key not in ("model", "model_params")}
    return {
        "model": recipe["model"],
        "model_params": recipe["model_params"],
        "recipe": settings,
        "test_time_augmentation": tta,
        "dataset": provenance["dataset"],
        "mean": provenance["mean"],
        "std": provenance["std"],
        **Facts.of(provenance).to_dict(),
        "data_sha256": {split: sha256(path) for split, path in data.items()},
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "metrics": {key: metrics[key] for key in ("validation_accuracy", "validation_loss")},
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in ("mnist_pipe", "torch", "numpy")},
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout on PYTHONPATH, without an installation
        return "not installed"
