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

from mnist_pipe.data.ink import ink_of
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
_SPECK = 0.05  # share of the typical piece's area; a smaller piece is noise
_FRAGMENT = 0.4  # share of the tallest digit's height; a lower piece beside a digit is a part of it
_GAP = 0.25  # share of the tallest digit's height; a fragment is at most this far from its digit
_MAX_PIECES = 1000  # bounds the time for a picture of a texture
_MAX_DIGITS = 100


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
    picture = read_picture(source, name=name)
    if _checked(rule) == RESIZE:
        return _resized(picture)
    ink, pieces, spans = _pieces(picture)
    return _cut(ink, pieces, spans, group=range(len(spans)), picture=picture).image


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
    if _checked(rule) == RESIZE:
        return [Digit(_resized(picture), (0, 0, *picture.size))]
    ink, pieces, spans = _pieces(picture)
    groups = _groups(spans)
    if len(groups) > _MAX_DIGITS:
        raise InputError.invalid(picture.name, "the picture", f"show at most {_MAX_DIGITS} digits", got=len(groups))
    return [_cut(ink, pieces, spans, group=group, picture=picture) for group in groups]


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


def _pieces(picture: Picture) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.intp]]:
    """Return the ink of a picture and its connected pieces, without those that are noise.

    Returns:
        ink: float32 `(height, width)`; the strongest is 1.
        pieces: int32 `(height, width)`; 0 where there is no ink, -1 in noise, else the number of the piece, from 1.
        spans: left, top, right and bottom of each piece, in pixels of `ink`, `(N, 4)`.

    Raises:
        InputError: the picture is blank, or has too many pieces.
    """
    ink, is_ink = ink_of(picture)
    labels, count = ndimage.label(is_ink, structure=np.ones((3, 3)), output=np.int32)
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
    return ink, pieces, np.array(spans)


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


def _cut(
    ink: NDArray[np.float32], pieces: NDArray[np.int32], spans: NDArray[np.intp], *, group: Any, picture: Picture
) -> Digit:
    """Return the pieces of `group`, row numbers of `spans`, as one digit."""
    left, top, right, bottom = _extent(spans[group])
    place = np.s_[top:bottom, left:right]
    # Paler pixels than ink, which are the digit's soft edge, stay; other digits and noise in this rectangle do not.
    others = (pieces[place] != 0) & ~np.isin(pieces[place], np.asarray(group) + 1)
    box = np.where(others, np.float32(0), ink[place])
    grey = np.rint(255 * _fitted(box / box.max())).astype(np.uint8)
    image = centred(grey, centre=SIDE / 2)  # pixel (14, 14), as in MNIST
    return Digit(image, picture.at_full_size((left, top, right, bottom)))


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
