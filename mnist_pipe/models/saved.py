"""A trained model on disk, without pickle: safetensors for the weights, JSON for the card, a manifest for both.

`torch.load` does not check the CRC of its zip file (measured: 291 of 300 single-bit flips loaded wrong weights without
an error), and an unpickler executes code from the file that it reads. Tensors are therefore stored as safetensors, and
a folder is valid only if its manifest matches.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from mnist_pipe import models, paths
from mnist_pipe.atomic import read_json, verify_manifest, write_bytes, write_json, write_manifest
from mnist_pipe.data.facts import Facts
from mnist_pipe.errors import CorruptDataError, PipelineError, one_line
from mnist_pipe.models.temperature import TemperatureScaled
from mnist_pipe.models.tta import ShiftAveraged

WEIGHTS = "model.safetensors"


def save_model(folder: Path, model: nn.Module, *, card: dict[str, Any]) -> None:
    """Write `model.safetensors`, `model.json` and, last, `manifest.json` to `folder`.

    `card` names the architecture (`model`, `model_params`) and holds everything else that is needed to use the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_bytes(folder / WEIGHTS, safetensors.torch.save(tensors))
    write_json(folder / paths.CARD, card)
    write_manifest(folder)


def load_model(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model in `folder` as `for_inference` returns it, and its card.

    Raises:
        CorruptDataError: a file is missing or differs from the manifest, or the weights fit another architecture.
    """
    verify_manifest(folder)
    card: dict[str, Any] = read_json(folder / paths.CARD)
    try:
        model = models.build(card["model"], facts=Facts.of(card), **card["model_params"])
        model.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
        model = for_inference(model, card=card)
    except (PipelineError, KeyError, RuntimeError) as error:
        got = one_line(error)
        raise CorruptDataError.invalid(
            folder / WEIGHTS, "the weights", f"fit {folder / paths.CARD}", got=got
        ) from error
    return model, card


def for_inference(model: nn.Module, *, card: Mapping[str, Any]) -> nn.Module:
    """Return `model` in evaluation mode, with the test-time augmentation and the temperature that its card sets."""
    # Cards of version 0.1 call it test_shifts; without this name such a model would silently be scored wrongly.
    if card.get("test_time_augmentation", card.get("test_shifts")):
        model = ShiftAveraged(model, background=Facts.of(card).empty_pixel(card))
    if "temperature" in card:
        model = TemperatureScaled(model, temperature=card["temperature"])
    return model.eval()
