"""Import torchvision with a CPU build of torch.

The published wheel of torchvision is compiled for CUDA. With a CPU build of torch its operators do not load, and the
import fails with `operator torchvision::nms does not exist`. Declaring the operators first, without an implementation,
is enough for `transforms`, `models` and `datasets`.
"""

from __future__ import annotations

import torch

# A module variable keeps the definitions alive: they are removed with the library object.
_LIBRARY = torch.library.Library("torchvision", "DEF")
if torch.version.cuda is None:
    for _name in ("nms", "qnms"):
        _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torchvision import datasets  # noqa: E402
from torchvision.transforms import v2 as transforms  # noqa: E402

__all__ = ["datasets", "transforms"]
