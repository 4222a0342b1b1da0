"""Support vector machines with polynomial kernels: scikit-learn finds the support vectors, torch evaluates them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studies.lecun1998.linear import PAIRS

SLOPE = 4.0
"""Slope of a kernel at 1: how fast it falls as two images move apart.

For a homogeneous kernel the slope is the degree. On the validation split kernels of degree 4 and 9 are best at the same
slope, so a kernel of higher degree is given more of its lower terms.
"""
_ROWS_AT_ONCE = 500
_STEP = 0.01
"""Adam's first step, in units of a pixel of an image of norm 1; the steps fall linearly towards 0."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A support vector machine: a decision function for each of the 45 pairs of classes, all over the same vectors."""

    vectors: Tensor
    """Vectors of norm 1, float32 `(V, pixels)`."""
    coefficients: Tensor
    """Coefficients of the vectors in each decision function, float32 `(V, 45)`."""
    intercepts: Tensor
    """Intercepts of the decision functions, float32 `(45,)`."""
    degree: int
    """Degree of the kernel."""
    rows: NDArray[np.int64] | None = None
    """Training rows that the vectors are, int64 `(V,)`, or None if the vectors are not training rows."""

    def decisions(self, images: Tensor) -> Tensor:
        """Return the decisions, float32 `(N, 45)`, on images of norm 1, float32 `(N, pixels)`.

        A decision is positive for the first class of its pair.
        """
        parts = [kernel(part, self.vectors, degree=self.degree) for part in torch.split(images, _ROWS_AT_ONCE)]
        return torch.cat([part @ self.coefficients for part in parts]) + self.intercepts

    def predict(self, images: Tensor) -> NDArray[np.uint8]:
        """Return the class, uint8 `(N,)`, that wins most of its pairs, for images of norm 1, float32 `(N, pixels)`.

        Of classes with equally many pairs, the one that wins them by more is returned.
        """
        decisions = self.decisions(images)
        votes = torch.zeros(len(images), 10)
        for pair, (first, second) in enumerate(PAIRS):
            margin = decisions[:, pair]
            # All the margins together are worth less than a vote.
            votes[:, first] += (margin > 0).float() + margin.tanh() / 20
            votes[:, second] += (margin <= 0).float() - margin.tanh() / 20
        return votes.argmax(1).numpy().astype(np.uint8)


def kernel(left: Tensor, right: Tensor, *, degree: int) -> Tensor:
    """Return the polynomial kernel, float32 `(L, R)`, of images of norm 1, float32 `(L, pixels)` and `(R, pixels)`.

    The kernel is (1 - g + g x.y)^degree, where g is SLOPE / degree.
    """
    share = SLOPE / degree
    values: Tensor = (1 - share + share * (left @ right.T)) ** degree
    return values


def unit(images: NDArray[np.float32]) -> Tensor:
    """Return the images, float32 `(N, H, W)`, as rows of norm 1, float32 `(N, H * W)`."""
    rows = torch.from_numpy(images).flatten(1)
    scaled: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-6)
    return scaled


def train(images: Tensor, labels: NDArray[np.uint8], *, degree: int, penalty: float) -> Machine:
    """Return the machine trained on images of norm 1, float32 `(N, pixels)`, with labels uint8 `(N,)`.

    Its vectors are the rows that support any of its decisions; `penalty` is C. The kernel of two classes is computed by
    one matrix product, many times as fast as libsvm would compute it row by row.
    """
    from sklearn.svm import SVC

    of_class = [np.flatnonzero(labels == digit) for digit in range(10)]
    within = [kernel(images[rows], images[rows], degree=degree) for rows in of_class]
    coefficients, intercepts = torch.zeros(len(images), len(PAIRS)), torch.zeros(len(PAIRS))
    for pair, (first, second) in enumerate(PAIRS):
        across = kernel(images[of_class[first]], images[of_class[second]], degree=degree)
        gram = torch.cat([torch.cat([within[first], across], 1), torch.cat([across.T, within[second]], 1)])
        is_first = np.arange(len(gram)) < len(of_class[first])
        fitted = SVC(C=penalty, kernel="precomputed", tol=1e-2, cache_size=1000).fit(gram.double().numpy(), is_first)
        rows = np.concatenate([of_class[first], of_class[second]])[fitted.support_]
        coefficients[rows, pair] = torch.from_numpy(fitted.dual_coef_[0]).float()
        intercepts[pair] = float(fitted.intercept_[0])
    supports = coefficients.any(1)
    return Machine(
        vectors=images[supports],
        coefficients=coefficients[supports],
        intercepts=intercepts,
        rows=supports.nonzero().squeeze(1).numpy(),
        degree=degree,
    )


def shifted(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the images, float32 `(N, H, W)`, and each of them a pixel up, down, left and right: float32 `(5 N, H, W)`.

    The shifted support vectors of a machine are its virtual support vectors.
    """
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    height, width = images.shape[1:]
    moves = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    return np.concatenate([padded[:, y : y + height, x : x + width] for y, x in moves])


def reduced(machine: Machine, *, num_vectors: int, num_steps: int, seed: int) -> Machine:
    """Return the machine of `num_vectors` vectors, none of them an image, that is nearest to `machine` (Burges 1996).

    The distance is measured in feature space, where each decision function is a vector. For given vectors the best
    coefficients solve a linear system. Adam moves the vectors for `num_steps` steps; they start at `num_vectors`
    support vectors, which `seed` draws.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = machine.coefficients.norm(dim=1)
    start = torch.multinomial(weight, num_vectors, generator=generator)
    vectors = machine.vectors[start].clone().requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=_STEP)

    def projected() -> tuple[Tensor, Tensor]:
        """Return the best coefficients, and each function's inner product with its projection on the vectors' span.

        They are float32 `(num_vectors, 45)` and `(45,)`.
        """
        unit_vectors = vectors / vectors.norm(dim=1, keepdim=True)
        across = kernel(unit_vectors, machine.vectors, degree=machine.degree) @ machine.coefficients
        gram = kernel(unit_vectors, unit_vectors, degree=machine.degree)
        factor = torch.linalg.cholesky(gram + 1e-5 * torch.eye(num_vectors))
        coefficients = torch.cholesky_solve(across, factor)
        return coefficients, (across * coefficients).sum(0)

    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = _STEP * (1 - step / num_steps)
        optimizer.zero_grad()
        (-projected()[1].sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        coefficients, _ = projected()
        unit_vectors = vectors / vectors.norm(dim=1, keepdim=True)
    return Machine(
        vectors=unit_vectors, coefficients=coefficients, intercepts=machine.intercepts, degree=machine.degree
    )
