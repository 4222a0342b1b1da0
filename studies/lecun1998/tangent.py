"""Tangent distance (Simard, LeCun & Denker 1993): how far apart two images are once each may be deformed slightly."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from studies.lecun1998 import neighbours

NUM_TANGENTS = 7


def tangents(images: NDArray[np.float32], *, smoothing: float) -> Tensor:
    """Return orthonormal bases of the tangent planes, float32 `(N, H * W, 7)`, of images, float32 `(N, H, W)`.

    The tangents are the derivatives of the image, blurred by a Gaussian of `smoothing` pixels, as it is shifted along x
    and y, scaled, rotated, squeezed along an axis and along a diagonal, and as its lines grow thicker.
    """
    height, width = images.shape[1:]
    blurred = ndimage.gaussian_filter(images, (0, smoothing, smoothing))
    along_y, along_x = np.gradient(blurred, axis=(1, 2))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    planes = [
        along_x,
        along_y,
        x * along_x + y * along_y,
        y * along_x - x * along_y,
        x * along_x - y * along_y,
        y * along_x + x * along_y,
        along_x**2 + along_y**2,
    ]
    stacked = torch.from_numpy(np.stack([plane.reshape(len(images), -1) for plane in planes], axis=2))
    bases: Tensor = torch.linalg.qr(stacked / stacked.norm(dim=1, keepdim=True).clamp(min=1e-6)).Q
    return bases


def distances(query: Tensor, query_basis: Tensor, templates: Tensor, template_bases: Tensor) -> Tensor:
    """Return the squared distances, float32 `(K,)`, between the query's tangent plane and those of K templates.

    `query` is float32 `(pixels,)` with basis `(pixels, 7)`, `templates` are float32 `(K, pixels)` with bases
    `(K, pixels, 7)`.
    """
    difference = templates - query
    in_query = difference @ query_basis
    in_template = torch.einsum("kp,kpt->kt", difference, template_bases)
    overlap = torch.einsum("pt,kpu->ktu", query_basis, template_bases)
    # Between the nearest points of both planes, the difference is what is orthogonal to all 14 directions.
    identity = torch.eye(2 * NUM_TANGENTS) * (1 + 1e-4)
    gram = identity.repeat(len(templates), 1, 1)
    gram[:, :NUM_TANGENTS, NUM_TANGENTS:] = overlap
    gram[:, NUM_TANGENTS:, :NUM_TANGENTS] = overlap.mT
    within = torch.cat([in_query, in_template], dim=1)
    moved = torch.linalg.solve(gram, within.unsqueeze(2)).squeeze(2)
    apart: Tensor = difference.square().sum(1) - (within * moved).sum(1)
    return apart


def nearest(
    queries: NDArray[np.float32],
    templates: NDArray[np.float32],
    *,
    smoothing: float,
    num_candidates: int,
    num_neighbours: int,
) -> Tensor:
    """Return which rows of `templates` are nearest to each query, nearest first: int64 `(Q, num_neighbours)`.

    Tangent distance is computed only to the `num_candidates` nearest templates in Euclidean distance, which the paper
    calls prefiltering. `queries` are float32 `(Q, H, W)`, `templates` float32 `(T, H, W)`; `smoothing` is in pixels.
    """
    query_bases, template_bases = (tangents(images, smoothing=smoothing) for images in (queries, templates))
    query_rows, template_rows = (torch.from_numpy(images).flatten(1).contiguous() for images in (queries, templates))
    candidates = neighbours.nearest(query_rows, template_rows, num_neighbours=num_candidates)
    found = []
    for query, basis, rows in zip(query_rows, query_bases, candidates, strict=True):
        order = distances(query, basis, template_rows[rows], template_bases[rows]).argsort()
        found.append(rows[order[:num_neighbours]])
    return torch.stack(found)
