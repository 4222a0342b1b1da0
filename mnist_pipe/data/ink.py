"""The ink of a picture: how far each pixel is from the paper around it, whatever the paper."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mnist_pipe.data.pictures import Picture
from mnist_pipe.errors import InputError

Place = tuple[slice, slice]

MAX_CONTACTS = 8
"""Largest number of places in which a digit reaches the border of a picture that is cropped to its ink."""
_MIN_CONTRAST = 0.1  # smallest distance of ink and paper, as a share of full scale
_MIN_INK = 0.1  # share of the strongest ink; JPEG artefacts and the faintest anti-aliasing lie below it
_NOISY_INK = 0.25  # the same if the paper is noisy; its blots are no ink
_MAX_INK = 0.5  # upper limit of the threshold: a digit that touches the border would pass for noise
_MIN_SHADE = 64  # grey levels; below this, noise would be amplified too much
_STROKE = 0.3  # share of the picture's shorter side; a wider stroke passes for a shadow on uneven paper
_MAX_FRAMES = 8  # a frame's soft edge counts as a frame of its own
_SHEET = 0.3  # share of the picture that a sheet of paper or a frame takes up
_RECTANGLE = 0.85  # share of the smallest rectangle around it that a sheet fills; an ellipse, as a 0 is, fills 0.785
_RING = 0.6  # share of a frame's inside that is not the frame itself
_HOLES = 0.4  # share of a sheet of paper that is written on at most
_CONTENT = 0.2  # share of a frame's height that the digit in it has at least
_LINE = 0.9  # share of a row or column that is ink where a line of squared or ruled paper runs
_LINE_WIDTH = 0.03  # share of the picture's height or width that such a line takes up at most


class Ink(NamedTuple):
    """The ink of a picture."""

    strength: NDArray[np.float32]
    """Distance of each pixel from the paper, float32 `(height, width)`; the strongest is 1."""
    is_ink: NDArray[np.bool_]
    """Which pixels are ink rather than paper, `(height, width)`."""
    place: Place
    """Rows and columns of the paper, without what frames it."""
    is_plain: bool
    """Whether the paper has one colour, or changes it smoothly."""


def ink_of(picture: Picture) -> Ink:
    """Return the ink of a picture.

    The paper is the median colour of the border, so that dark on light and light on dark give the same ink. If that
    leaves the border uneven, as under a shadow, the paper is a surface fitted to most of the picture or, if that fails
    too, is estimated around each pixel by a morphological closing or opening. A frame around the digit and the desk
    around a sheet of paper are taken away, and so are lines from one side of the paper to the other.

    Raises:
        InputError: the picture has no contrast.
    """
    place, ink, is_plain = _page(picture.pixels)
    if ink.max() < _MIN_CONTRAST:
        got = f"a contrast of {ink.max():.0%}"
        raise InputError.invalid(picture.name, "the image", "show a digit on a plain background", got=got)
    ink = _without_lines(ink / ink.max())
    if ink.max() < _MIN_INK:
        rule = "show a digit on a plain background"
        raise InputError.invalid(picture.name, "the image", rule, got="nothing but lines")
    ink = ink / ink.max()
    whole = np.zeros(picture.pixels.shape[:2], dtype=np.float32)
    whole[place] = ink
    return Ink(whole, whole > _threshold(ink), place, is_plain)


def border(picture: NDArray[Any]) -> NDArray[Any]:
    """Return the outermost pixels of an array `(height, width, ...)`."""
    return np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])


def contacts(is_ink: NDArray[np.bool_]) -> list[int]:
    """Return how often ink reaches each side of a picture, `(height, width)`: top, bottom, left and right."""
    return [ndimage.label(side)[1] for side in (is_ink[0], is_ink[-1], is_ink[:, 0], is_ink[:, -1])]


def _noise(ink: NDArray[np.float32], *, num_dirty: int = 0) -> float:
    """Return the ink of the paper along the border, without that of the worst sides."""
    width = max(1, round(_LINE_WIDTH * min(ink.shape)))
    sides = (ink[:width], ink[-width:], ink.T[:width], ink.T[-width:])
    # Along the border there may be a line.
    return sorted(float(np.quantile(side, 0.9, axis=1).min()) for side in sides)[3 - num_dirty]


def _threshold(ink: NDArray[np.float32], *, num_dirty: int = 2) -> float:
    # Four times the 90th percentile is about 6 standard deviations of a camera's noise, which no background pixel has.
    level = 4 * _noise(ink, num_dirty=num_dirty)
    return _MIN_INK if level <= _MIN_INK else min(max(_NOISY_INK, level), _MAX_INK)


def _page(pixels: NDArray[np.uint8]) -> tuple[Place, NDArray[np.float32], bool]:
    """Return the place inside of frames and sheets, the ink there, in [0, 1], and whether the paper is plain."""
    place = np.s_[0 : pixels.shape[0], 0 : pixels.shape[1]]
    ink, is_plain = _distance(pixels)
    for _ in range(_MAX_FRAMES):
        if ink.max() < _MIN_CONTRAST:
            break
        inside = _inside(_without_lines(ink / ink.max()) > _threshold(ink / ink.max()))
        if inside is None:
            break
        part, is_inside = inside
        pixels = _continued(pixels[part], is_inside)
        found, is_even = _distance(pixels)
        if found.max() < _MIN_CONTRAST:  # it was no sheet but a bar
            break
        rows, columns = (
            slice(outer.start + inner.start, outer.start + inner.stop) for outer, inner in zip(place, part, strict=True)
        )
        place, ink, is_plain = (rows, columns), found, is_even
    return place, ink, is_plain


def _distance(picture: NDArray[np.uint8]) -> tuple[NDArray[np.float32], bool]:
    """Return each pixel's distance from the paper, float32 `(height, width)` in [0, 1], and whether that is plain."""
    pixels = picture.astype(np.float32)
    width = max(1, round(_LINE_WIDTH * min(pixels.shape[:2])))
    rim = (pixels[:width], pixels[-width:], pixels[:, :width], pixels[:, -width:])
    paper = np.median(np.concatenate([side.reshape(-1, 3) for side in rim]), axis=0).astype(np.float32)
    even, is_clean = _one_sided(pixels - paper)
    if even.max() < _MIN_CONTRAST or is_clean or _is_cropped(even > _MAX_INK * even.max()):
        return even, True
    paper = _surface(pixels)
    shaded, is_clean = _one_sided(pixels - paper, paper=paper)
    if is_clean or shaded.max() < _MIN_CONTRAST:
        return shaded, True
    local = _local(pixels)
    if _is_clean(local):
        return local, False
    found = next((ink for ink in (even, shaded, local) if _is_clean(ink, num_dirty=2)), even)
    return found, found is not local


def _is_clean(ink: NDArray[np.float32], *, num_dirty: int = 0) -> bool:
    return bool(ink.max() >= _MIN_CONTRAST) and 4 * _noise(ink, num_dirty=num_dirty) < _MAX_INK * ink.max()


def _is_cropped(is_ink: NDArray[np.bool_]) -> bool:
    """Return whether the picture ends where its ink ends."""
    found = contacts(is_ink)
    return min(found) > 0 and sum(found) <= MAX_CONTACTS and border(is_ink).mean() < _MAX_INK


def _one_sided(
    difference: NDArray[np.float32], *, paper: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], bool]:
    """Return how far pixels are from the paper, in [0, 1], and whether the border shows nothing but paper.

    Pixels that are lighter than the paper are no ink if ink is darker, and conversely.

    Args:
        difference: the pixels minus the paper, `(height, width, 3)`, in grey levels.
        paper: the grey levels of shaded paper, in the same shape. A shadow darkens ink and paper by the same factor, so
            a distance then counts as a share of the largest possible.
    """
    ink, brightness = _farthest(np.abs(difference)), difference.mean(axis=2)
    strongest = ink > _MAX_INK * ink.max()
    side = np.sign(brightness.mean(where=strongest)) if strongest.any() else 0
    # Ink of another colour may be as bright as the paper.
    is_wrong = side * brightness < -_MAX_INK * 255 * ink
    if paper is not None:
        largest = (paper if side < 0 else 255 - paper).clip(_MIN_SHADE)
        ink = _farthest(np.abs(difference * 255 / largest).clip(0, 255))
    return np.where(is_wrong, np.float32(0), ink), _is_clean(ink)


def _local(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return each pixel's distance from the paper around it, which strokes of up to `_STROKE` leave as it is."""
    smooth = ndimage.median_filter(pixels, size=(3, 3, 1))
    side = max(3, round(_STROKE * min(pixels.shape[:2])))
    paper = ndimage.grey_closing(smooth, size=(side, side, 1), mode="nearest")
    dark = _farthest((paper - pixels).clip(0) * 255 / paper.clip(_MIN_SHADE))
    paper = ndimage.grey_opening(smooth, size=(side, side, 1), mode="nearest")
    light = _farthest((pixels - paper).clip(0) * 255 / (255 - paper).clip(_MIN_SHADE))
    # What lies between light strokes counts as dark ink and conversely, so the right ink is the outer one.
    return max(*((ink - np.median(ink)).clip(0) for ink in (dark, light)), key=_extent)


def _surface(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cubic surface that fits most of the pixels, `(height, width, channels)`, in the same shape."""
    height, width, _ = pixels.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([x**i * y**j for i in range(4) for j in range(4 - i)], axis=2)
    step = max(1, min(height, width) // 64)
    sample, found = terms[::step, ::step].reshape(-1, terms.shape[2]), pixels[::step, ::step].reshape(-1, 3)
    weight = np.ones(len(found))
    for _ in range(8):  # reweighted least squares, in which ink loses its weight
        factors = np.linalg.lstsq(sample * weight[:, np.newaxis], found * weight[:, np.newaxis], rcond=None)[0]
        distance = np.abs(sample @ factors - found).max(axis=1)
        weight = 1 / (1 + (distance / max(float(np.median(distance)), 1.0)) ** 2)
    surface: NDArray[np.float32] = (terms @ factors).clip(0, 255).astype(np.float32)
    return surface


def _extent(ink: NDArray[np.float32]) -> float:
    """Return the area of the rectangle around the ink that does not reach the border, or around all if all does."""
    if ink.max() < _MIN_CONTRAST:
        return 0.0
    is_ink = ink > _MAX_INK * ink.max()
    labels, _ = ndimage.label(is_ink)
    inner = is_ink & ~np.isin(labels, border(labels))
    rows, columns = (np.flatnonzero((inner if inner.any() else is_ink).any(axis=axis)) for axis in (1, 0))
    return float(np.ptp(rows) + 1) * float(np.ptp(columns) + 1)


def _farthest(difference: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the largest of a pixel's three distances, each in [0, 1]."""
    red, green, blue = np.moveaxis(difference, 2, 0)  # `max(axis=2)` takes ten times as long
    farthest: NDArray[np.float32] = np.maximum(np.maximum(red, green), blue) / 255
    return farthest


def _inside(is_ink: NDArray[np.bool_]) -> tuple[Place, NDArray[np.bool_]] | None:
    """Return the place of the sheet or of the inside of a frame that the ink shows, and which pixels there are in it.

    None if the ink shows neither.
    """
    labels, count = ndimage.label(is_ink, structure=np.ones((3, 3)))
    if not count:
        return None
    spans = ndimage.find_objects(labels)
    sizes = [(rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in spans]
    number = int(np.argmax(sizes))
    if sizes[number] < _SHEET * is_ink.size:
        return None
    place = spans[number]
    piece = labels[place] == number + 1
    filled = ndimage.binary_fill_holes(piece)
    holes = filled & ~piece
    if holes.sum() >= _RING * filled.sum():
        parts = np.bincount(ndimage.label(holes)[0].ravel())[1:]
        if parts.max() < _LINE * parts.sum():  # squared paper
            return None
        content = is_ink[place] & holes
        rows = np.flatnonzero(content.any(axis=1))
        if not len(rows) or np.ptp(rows) + 1 < _CONTENT * len(piece):
            return None
        inside = holes
    elif holes.sum() <= _HOLES * filled.sum() and _is_rectangle(filled) and filled.sum() >= _SHEET * is_ink.size:
        inside = filled
    else:
        return None
    margin = max(1, round(0.015 * min(is_ink.shape)))
    inside = ndimage.binary_erosion(inside, iterations=margin)
    if not inside.any():
        return None
    labels, _ = ndimage.label(inside)
    inside = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    inner = ndimage.find_objects(inside.astype(np.int8))[0]
    above, left = place
    down, across = inner
    part = (
        slice(above.start + down.start, above.start + down.stop),
        slice(left.start + across.start, left.start + across.stop),
    )
    return part, inside[inner]


def _is_rectangle(filled: NDArray[np.bool_]) -> bool:
    """Return whether pixels are a rectangle, turned by any angle."""
    image = Image.fromarray(filled.astype(np.uint8) * 255)
    image.thumbnail((96, 96))
    area = float(np.asarray(image).mean()) / 255 * image.width * image.height
    boxes = (image.rotate(angle, expand=True).point(lambda v: 255 * (v > 127)).getbbox() for angle in range(-45, 45, 3))
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in filter(None, boxes)]
    return area >= _RECTANGLE * min(areas)


def _continued(pixels: NDArray[np.uint8], is_inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the pixels, each one outside replaced by the nearest one inside."""
    if is_inside.all():
        return pixels
    nearest = ndimage.distance_transform_edt(~is_inside, return_distances=False, return_indices=True)
    continued: NDArray[np.uint8] = pixels[tuple(nearest)]
    return continued


def _without_lines(ink: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ink, whose strongest is 1, without lines from one side of the picture to the other."""
    lines = [
        ink[(ink > _MIN_INK).mean(axis=1) >= _LINE].ravel(),
        ink[:, (ink > _MIN_INK).mean(axis=0) >= _LINE].ravel(),
    ]
    found = np.concatenate(lines)
    if not len(found):
        return ink
    if (level := float(np.quantile(found, 0.5))) >= _MAX_INK:
        rows, columns = _thin_lines(ink), _thin_lines(ink.T)
        return _mended(_mended(ink, rows).T, columns).T
    level = min(1.2 * level, _MAX_INK)
    return ((ink - level).clip(0) / (1 - level)).astype(np.float32)


def _thin_lines(ink: NDArray[np.float32]) -> list[slice]:
    """Return the rows of each thin horizontal line from one side of the picture to the other."""
    widest = max(1, round(_LINE_WIDTH * len(ink)))
    found = ndimage.find_objects(ndimage.label((ink > _MIN_INK).mean(axis=1) >= _LINE)[0])
    return [rows for (rows,) in found if rows.stop - rows.start <= widest]


def _mended(ink: NDArray[np.float32], lines: list[slice]) -> NDArray[np.float32]:
    """Return ink without the rows of `lines`; a stroke that crosses one is mended."""
    mended = np.pad(ink, ((1, 1), (0, 0)))
    for rows in lines:
        mended[rows.start + 1 : rows.stop + 1] = np.minimum(mended[rows.start], mended[rows.stop + 1])
    return mended[1:-1]
