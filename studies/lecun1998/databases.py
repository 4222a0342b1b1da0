"""The three databases of section III.A: the digits as they are, deslanted in 20x20, and reduced to 16x16."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from mnist_pipe.data.splits import NormalizedSplit
from studies.common.deskew import deslanted
from studies.common.fitting import pixels


def prepared(split: NormalizedSplit, images: str) -> NormalizedSplit:
    """The split with the images of one of the three databases of section III.A, each in a 28x28 frame."""
    if images == "regular":
        return split
    if images == "deslanted":  # the paper's are 20x20; what is around them here is empty
        ink = np.pad(deslanted_squares(split), ((0, 0), (4, 4), (4, 4)))
    else:
        assert images == "reduced"  # by 22/28, which makes the digit's 20 pixels 16
        ink = np.pad(resized(pixels(split), side=22), ((0, 0), (3, 3), (3, 3)))
    mean, std = (np.float32(split.provenance[name]) for name in ("mean", "std"))
    return replace(split, images=(ink - mean) / std)


def deslanted_squares(split: NormalizedSplit) -> NDArray[np.float32]:
    """(rows, 20, 20) ink of the second database: what is around the centre of mass."""
    return deslanted(pixels(split))[:, 4:24, 4:24]


def resized(images: NDArray[np.float32], *, side: int) -> NDArray[np.float32]:
    """(n, side, side) of (n, height, width) images, each pixel the mean of those that fall into it."""
    parts = torch.split(torch.from_numpy(images).unsqueeze(1), 2000)
    smaller = [F.interpolate(part, size=(side, side), mode="bilinear", antialias=True) for part in parts]
    found: NDArray[np.float32] = torch.cat(smaller).squeeze(1).numpy()
    return found
