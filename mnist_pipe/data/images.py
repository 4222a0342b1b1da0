"""Conversion of a drawn, scanned or photographed picture into images made the way the data set's images were made.

LeCun et al. 1998, section III.A: the digits were "size normalized to fit in a 20x20 pixel box while preserving their
aspect ratio", the grey levels come from the anti-aliasing of this step, and each digit was "centered in a 28x28 image
by computing the center of mass of the pixels, and translating the image so as to position this point at the center".
Fashion-MNIST and Kuzushiji-MNIST have no such box; their pictures are only resized.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage
from scipy.sparse import csgraph

from mnist_pipe.data.ink import MAX_CONTACTS, Ink, border, contacts, ink_of
from mnist_pipe.data.pictures import Picture, read_picture
from mnist_pipe.data.splits import SIDE
from mnist_pipe.errors import InputError, unknown

Number = TypeVar("Number", np.uint8, np.float32)
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels of the upright picture at its full size; right and bottom are exclusive."""

DIGIT, RESIZE = "digit", "resize"
RULES = (DIGIT, RESIZE)
"""Ways in which a picture becomes images, as `Source.picture` and a model's card name them."""

_BOX = 20  # length of the longer side of a digit, in pixels
_FAINT = 25  # grey level of the data set's faintest ink
_SPECK = 0.05  # share of the typical piece's area; a smaller piece is noise
_FRAGMENT = 0.4  # share of the tallest digit's height; a lower piece beside a digit is a part of it
_GAP = 0.25  # share of the tallest digit's height; a fragment is at most this far from its digit
_SHORTEST = 0.5  # share of the tallest digit's height that every digit has, and of which neighbours lie in one line
_LARGE = 0.2  # share of a digit's ink, above which a piece is no detached bar
_SOLID = 0.95  # share of its box that a digit's ink fills at most, unless the digit is a bar, as a 1 is
_BAR = 0.5  # width of a bar, as a share of its height
_EDGE = 0.03  # width of a digit's soft edge, as a share of its longer side
_WIDEST = 2.0  # width of the widest of MNIST's digits, as a share of its height
_MAX_PIECES = 1000  # bounds the time for a picture of a texture
_MAX_DIGITS = 100


class Findings(NamedTuple):
    """What a picture shows."""

    digits: list[Digit]
    """The digits of a number, from left to right."""
    doubt: str
    """Why the picture may show something else, to follow "the picture"; empty if it shows digits on plain ground."""


class Whole(NamedTuple):
    """A picture of one digit."""

    image: NDArray[np.uint8]
    """Image as the data set's images are, uint8 `(28, 28)`, light on dark."""
    doubt: str
    """Why the picture may show something else, as in `Findings`."""


class Digit(NamedTuple):
    """One digit of a picture."""

    image: NDArray[np.uint8]
    """Image as the data set's images are, uint8 `(28, 28)`, light on dark."""
    box: Box
    """Where the digit is in the picture."""


def load_image(source: Path | bytes, *, rule: str = DIGIT, name: str = "") -> NDArray[np.uint8]:
    """Return the whole picture as one image, uint8 `(28, 28)`, light on dark.

    `digit`: the background is the median colour of the border, and ink is the distance from it, so a dark digit on a
    light background and a light one on a dark background give the same image. The ink, without specks of noise, is
    scaled to a box of 20 pixels and centred by its mass.

    `resize`: the picture becomes grey, is inverted if its corners are light, is padded to a square with the colour of
    its corners, and is resized. An image of the data set comes back bit by bit.

    Args:
        source: a PNG or JPEG file, or its content.
        rule: one of `RULES`.
        name: name of the content in error messages.

    Raises:
        InputError: the file does not exist, is not a PNG or JPEG, or is damaged, too large or blank.
    """
    return load_whole(source, rule=rule, name=name).image


def load_whole(source: Path | bytes, *, rule: str = DIGIT, name: str = "") -> Whole:
    """Return the whole picture as one image, as `load_image` does, and whether it shows something else.

    Raises:
        InputError: as for `load_image`.
    """
    picture = read_picture(source, name=name)
    if _checked(rule) == RESIZE:
        return Whole(_resized(picture), "")
    found = _pieces(picture)
    groups = _groups(found.spans)
    several = f"has {len(groups)} digits, which are read as one" if len(groups) > 1 else ""
    image = _cut(found, group=np.arange(len(found.spans)), picture=picture).image
    return Whole(image, several or _doubt(found, groups))


def load_digits(source: Path | bytes, *, rule: str = DIGIT, name: str = "") -> list[Digit]:
    """Return the digits of a written number, from left to right; see `digits_of`.

    Args:
        source: a PNG or JPEG file, or its content.
        rule: one of `RULES`; `resize` takes the whole picture as one.
        name: name of the content in error messages.

    Raises:
        InputError: as for `load_image`, or the picture has too many pieces to be a number.
    """
    return digits_of(read_picture(source, name=name), rule=rule)


def digits_of(picture: Picture, *, rule: str = DIGIT) -> list[Digit]:
    """Cut a picture of one written number, in one line, into its digits, from left to right.

    The pieces are the connected components of the ink. Pieces that overlap horizontally by more than half of the
    narrower one's width belong to one digit, and so does a low piece right beside a digit, such as the bar of a 5.
    Much smaller pieces are noise. A picture of one digit gives the image that `load_image` returns.

    Digits that touch each other are one piece and cannot be separated: they are read as one digit.

    Raises:
        InputError: the picture is blank, or has too many pieces to be a number.
    """
    return examine(picture, rule=rule).digits


def examine(picture: Picture, *, rule: str = DIGIT) -> Findings:
    """Return the digits of a picture as `digits_of` does, and whether it shows something else besides.

    Raises:
        InputError: the picture is blank, or has too many pieces to be a number.
    """
    if _checked(rule) == RESIZE:
        return Findings([Digit(_resized(picture), (0, 0, *picture.size))], "")
    found = _pieces(picture)
    groups = _groups(found.spans)
    if len(groups) > _MAX_DIGITS:
        raise InputError.invalid(picture.name, "the picture", f"show at most {_MAX_DIGITS} digits", got=len(groups))
    return Findings([_cut(found, group=group, picture=picture) for group in groups], _doubt(found, groups))


def _checked(rule: str) -> str:
    if rule not in RULES:
        raise unknown("a picture", "rule", rule, RULES)
    return rule


def _resized(picture: Picture) -> NDArray[np.uint8]:
    grey = Image.fromarray(picture.pixels).convert("L")
    pixels = np.asarray(grey)
    if pixels.min() == pixels.max():
        raise InputError.invalid(picture.name, "the image", "show something", got=f"a plain grey of {pixels.max()}")
    # Not the median of the border: it is light in 2 of Fashion-MNIST's 60,000 training images, that of the corners in
    # none of its 70,000 images.
    background = round(float(np.median(pixels[[0, 0, -1, -1], [0, -1, 0, -1]])))
    if background > 127:
        grey, background = ImageOps.invert(grey), 255 - background
    padded = ImageOps.pad(grey, (SIDE, SIDE), method=Image.Resampling.BICUBIC, color=background)
    return np.asarray(padded)


class _Pieces(NamedTuple):
    """The connected pieces of the ink of a picture, without those that are noise."""

    ink: Ink
    labels: NDArray[np.int32]
    """0 where there is no ink, -1 in noise, else the number of the piece, from 1; `(height, width)`."""
    spans: NDArray[np.intp]
    """Left, top, right and bottom of each piece, in pixels of `labels`, `(N, 4)`."""
    areas: NDArray[np.intp]
    """Number of pixels of each piece, `(N,)`."""


def _pieces(picture: Picture) -> _Pieces:
    """Return the pieces of a picture.

    Raises:
        InputError: the picture is blank, or has too many pieces.
    """
    ink = ink_of(picture)
    labels, count = ndimage.label(ink.is_ink, structure=np.ones((3, 3)), output=np.int32)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    # The typical piece is the one that the median pixel of ink lies in; the median piece may itself be a speck.
    ascending = np.sort(areas)
    typical = ascending[np.searchsorted(ascending.cumsum(), areas.sum() / 2)]
    kept = np.flatnonzero(areas >= _SPECK * typical)
    if len(kept) > _MAX_PIECES:
        got = f"{len(kept):,} separate pieces"
        raise InputError.invalid(picture.name, "the image", "show a digit on a plain background", got=got)
    number = np.full(count + 1, -1, dtype=np.int32)
    number[0], number[kept + 1] = 0, np.arange(1, len(kept) + 1)
    pieces = number[labels]
    spans = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(pieces.clip(0))]
    return _Pieces(ink, pieces, np.array(spans), areas[kept])


def _doubt(found: _Pieces, groups: list[NDArray[np.intp]]) -> str:
    """Return why the pieces, in these groups, may be more or less than the digits of one number."""
    if not found.ink.is_plain:
        return "has an uneven background"
    reached = contacts(found.labels[found.ink.place] > 0)
    if any(reached) and (not all(reached) or sum(reached) > MAX_CONTACTS):
        return "has ink that reaches its border"
    extents = np.array([_extent(found.spans[group]) for group in groups])
    height = extents[:, 3] - extents[:, 1]
    if height.min() < _SHORTEST * height.max():
        return "has digits of very different sizes"
    overlap = _overlaps(extents[:, 1], extents[:, 3])
    if len(groups) > 1 and (np.diag(overlap, 1) < _SHORTEST * np.minimum(height[1:], height[:-1])).any():
        return "has digits in more than one line"
    for group, extent in zip(groups, extents, strict=True):
        large = group[found.areas[group] >= _LARGE * found.areas[group].sum()]
        above = -_overlaps(found.spans[large, 1], found.spans[large, 3]) if len(large) > 1 else np.zeros(1)
        if above.max() > 0:
            return "has pieces one above the other"
        wide, high = extent[2] - extent[0], extent[3] - extent[1]
        if found.areas[group].sum() > _SOLID * wide * high and wide > _BAR * high:
            return "has a filled shape, which is no digit"
        if wide > _WIDEST * high:
            return "has digits that touch each other"
    return ""


def _groups(spans: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Return which pieces make up each digit, as row numbers of `spans`, from left to right."""
    overlap = _overlaps(spans[:, 0], spans[:, 2])
    width = spans[:, 2] - spans[:, 0]
    joined = overlap > np.minimum(width[:, np.newaxis], width) / 2
    _, member = csgraph.connected_components(joined, directed=False)
    groups = [np.flatnonzero(member == number) for number in range(member.max() + 1)]
    extents = np.array([_extent(spans[group]) for group in groups])
    height = extents[:, 3] - extents[:, 1]
    is_whole = height >= _FRAGMENT * height.max()
    whole = np.flatnonzero(is_whole)
    for fragment in np.flatnonzero(~is_whole):
        gap = -_overlaps(extents[:, 0], extents[:, 2])[fragment, whole]
        if gap.min() <= _GAP * height.max():
            nearest = whole[gap.argmin()]
            groups[nearest] = np.concatenate([groups[nearest], groups[fragment]])
        else:
            whole = np.append(whole, fragment)
    return sorted((groups[number] for number in whole), key=lambda group: int(spans[group, 0].min()))


def _overlaps(start: NDArray[np.intp], stop: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return by how much each two of N intervals overlap, `(N, N)`; a gap is negative."""
    return np.minimum(stop[:, np.newaxis], stop) - np.maximum(start[:, np.newaxis], start)


def _extent(spans: NDArray[np.intp]) -> tuple[int, int, int, int]:
    left, top = spans[:, :2].min(axis=0)
    right, bottom = spans[:, 2:].max(axis=0)
    return int(left), int(top), int(right), int(bottom)


def _cut(found: _Pieces, *, group: NDArray[np.intp], picture: Picture) -> Digit:
    """Return the pieces of `group`, row numbers of `found.spans`, as one digit."""
    left, top, right, bottom = _extent(found.spans[group])
    place = np.s_[top:bottom, left:right]
    # Paler pixels than ink, which are the digit's soft edge, stay; other digits and noise in this rectangle do not.
    own = np.isin(found.labels[place], group + 1)
    edge = ndimage.binary_dilation(own, iterations=max(2, round(_EDGE * max(own.shape)))) & (found.labels[place] == 0)
    box = np.where(own | edge, found.ink.strength[place], np.float32(0))
    grey = np.rint(255 * _fitted(box / box.max())).astype(np.uint8)
    image = centred(grey, centre=SIDE / 2)  # pixel (14, 14), as in MNIST
    original = _original(picture) if len(group) == len(found.spans) else None
    return Digit(image if original is None else original, picture.at_full_size((left, top, right, bottom)))


def _original(picture: Picture) -> NDArray[np.uint8] | None:
    """Return the grey levels of a picture that is an image of the data set, light on dark; None if it is none."""
    grey: NDArray[np.uint8] = picture.pixels[:, :, 0]
    if grey.shape != (SIDE, SIDE) or (picture.pixels != grey[:, :, np.newaxis]).any():
        return None
    grey = 255 - grey if np.median(border(grey)) > 127 else grey
    is_ink = grey > _FAINT
    sides = [int(np.ptp(np.flatnonzero(is_ink.any(axis=axis)))) + 1 for axis in (0, 1)] if is_ink.any() else [0]
    offset = np.subtract(ndimage.center_of_mass(grey), SIDE / 2)
    return grey if abs(max(sides) - _BOX) <= 1 and np.abs(offset).max() <= 1 else None


def _fitted(box: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the ink of a digit's bounding box, scaled so that its longer side is 20 pixels; all float32 in [0, 1]."""
    height, width = (max(1, round(side * _BOX / max(box.shape))) for side in box.shape)
    if box.shape == (height, width):
        return box
    resized = Image.fromarray(box).resize((width, height), Image.Resampling.BICUBIC)
    scaled = np.asarray(resized).clip(0, 1)
    strongest: NDArray[np.float32] = scaled / scaled.max()
    return strongest


def centred(box: NDArray[Number], *, centre: float) -> NDArray[Number]:
    """Return `box` in an image of zeros, its centre of mass at pixel (centre, centre) to the nearest whole pixel.

    Args:
        box: uint8 or float32 `(height, width)`, at most 28 on a side, with a sum above 0; it always stays inside.
        centre: row and column of the target, in pixels.

    Returns:
        `(28, 28)` of the dtype of `box`.
    """
    image = np.zeros((SIDE, SIDE), dtype=box.dtype)
    place: list[Any] = []
    for axis, length in enumerate(box.shape):
        mass = box.sum(axis=1 - axis)
        found = float((mass * np.arange(length)).sum() / mass.sum())
        start = min(max(round(centre - found), 0), SIDE - length)
        place.append(slice(start, start + length))
    image[tuple(place)] = box
    return image
