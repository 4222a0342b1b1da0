"""Helpers that the tests of several studies share: a measured study, and the figures that it draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from mnist_pipe import paths
from mnist_pipe.evaluation import plots
from studies.common.ledger import Run
from studies.common.published import Published
from studies.common.study import Measured
from tests.support import ROOT

DPI = 200


def measured(runs: Sequence[Run], conclusions: Mapping[str, Any] | None = None) -> Measured:
    """Return a measured study of these runs, with the project's published values."""
    return Measured(runs=runs, conclusions=conclusions or {}, published=Published(ROOT / paths.PUBLISHED))


def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Return a dict that records the figures drawn from now on, by the names of their files."""
    found: dict[str, Figure] = {}
    drawing = plots.drawing

    @contextmanager
    def recording(path: Path, **size: float) -> Iterator[Figure]:
        with drawing(path, **size) as figure:
            found[path.name] = figure
            yield figure

    monkeypatch.setattr(plots, "drawing", recording)
    return found


def check_rendered(path: Path, figure: Figure) -> None:
    """Check that the file shows the whole figure in its full size, and that there is something inside its axes."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(np.uint32) @ (1 << 16, 1 << 8, 1)
    width, height = figure.get_size_inches()
    assert pixels.shape == (round(height * DPI), round(width * DPI)), path
    assert figure.axes, path
    drawn = figure.get_tightbbox()  # in inches
    assert -0.05 < drawn.x0 < drawn.x1 < width + 0.05, f"{path}: {drawn} is cut at {width}"
    assert -0.05 < drawn.y0 < drawn.y1 < height + 0.05, f"{path}: {drawn} is cut at {height}"
    for axes in figure.axes:
        if axes.get_visible():
            left, bottom, right, top = (figure.transFigure.inverted().transform_bbox(axes.get_window_extent())).extents
            rows = slice(int((1 - top) * len(pixels)), int((1 - bottom) * len(pixels)))
            inside = pixels[rows, int(left * pixels.shape[1]) : int(right * pixels.shape[1])]
            assert len(np.unique(inside)) > 2, path  # more than background and grid


def points(line: Line2D) -> NDArray[np.float64]:
    """Return the coordinates of a line's points, float64 `(2, points)`."""
    return np.array([line.get_xdata(), line.get_ydata()], np.float64)


def legend(owner: Axes | Figure) -> list[str]:
    """Return the entries of the only legend."""
    found = owner.get_legend() if isinstance(owner, Axes) else owner.legends[0]
    assert found is not None
    return [text.get_text() for text in found.get_texts()]
