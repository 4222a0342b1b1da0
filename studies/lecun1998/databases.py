"""The three databases of section III.A: the digits as they are, deslanted in 20x20, and reduced to 16x16."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional as F

from mnist_pipe.data.splits import NormalizedSplit
from studies.common.deskew import deslanted
from studies.common.fitting import pixels

_BLANK = 0.5 / 255
"""Ink that is less than a grey level, from rounding."""


def prepared(split: NormalizedSplit, images: str) -> NormalizedSplit:
    """Return the split with its images as in a database of section III.A, each in a 28x28 frame.

    `images` names the database: regular, deslanted or reduced.
    """
    if images == "regular":
        return split
    if images == "deslanted":  # the paper's images are 20x20; the frame around them is empty
        ink = np.pad(deslanted_squares(split), ((0, 0), (4, 4), (4, 4)))
    else:
        assert images == "reduced"  # scaled by 22/28, so that the digit's 20 pixels become 16
        ink = np.pad(resized(pixels(split), side=22), ((0, 0), (3, 3), (3, 3)))
    mean, std = (np.float32(split.provenance[name]) for name in ("mean", "std"))
    return replace(split, images=(ink - mean) / std)


def deslanted_squares(split: NormalizedSplit) -> NDArray[np.float32]:
    """Return the ink of the second database, float32 `(N, 20, 20)`: the square around the centre of mass."""
    return deslanted(pixels(split))[:, 4:24, 4:24]


def reduced_squares(split: NormalizedSplit, *, centre: str) -> NDArray[np.float32]:
    """Return the ink of the third database, float32 `(N, 16, 16)`.

    The `centre` of an image is that of the digit's `mass`, as in the regular database, where a few digits lose an end
    of a stroke; or that of its `box`, the 20x20 pixels to which the authors scaled a digit before they centred it.
    """
    if centre == "mass":
        return resized(pixels(split), side=22)[:, 3:19, 3:19]
    assert centre == "box"
    squares = np.zeros((len(split.labels), 20, 20), np.float32)
    for image, square in zip(pixels(split), squares, strict=True):
        [box] = ndimage.find_objects((image > _BLANK).astype(np.int8))
        height, width = image[box].shape
        top, left = (20 - height) // 2, (20 - width) // 2
        square[top : top + height, left : left + width] = image[box]
    return resized(squares, side=16)


def resized(images: NDArray[np.float32], *, side: int) -> NDArray[np.float32]:
    """Return the images, float32 `(N, H, W)`, in the size `(N, side, side)`.

    A pixel is the mean of those that fall into it.
    """
    parts = torch.split(torch.from_numpy(images).unsqueeze(1), 2000)
    smaller = [F.interpolate(part, size=(side, side), mode="bilinear", antialias=True) for part in parts]
    found: NDArray[np.float32] = torch.cat(smaller).squeeze(1).numpy()
    return found
