"""Conversion of a drawn, scanned or photographed picture into images made the way the data set's images were made.

LeCun et al. 1998, section III.A: the digits were "size normalized to fit in a 20x20 pixel box while preserving their
aspect ratio", the grey levels come from the anti-aliasing of this step, and each digit was "centered in a 28x28 image
by computing the center of mass of the pixels, and translating the image so as to position this point at the center".
Other data sets have no such box; their pictures are only resized. The facts about the data set say which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageStat
from scipy import ndimage
from scipy.sparse import csgraph

from mnist_pipe.data.facts import MNIST, Facts
from mnist_pipe.data.ink import MAX_CONTACTS, Ink, border, contacts, ink_of
from mnist_pipe.data.pictures import Picture, read_picture
from mnist_pipe.data.sizing import channels_first, enough, inverted, sized
from mnist_pipe.errors import InputError

Number = TypeVar("Number", np.uint8, np.float32)
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels of the upright picture at its full size; right and bottom are exclusive."""

_BOX = 20 / 28  # length of the longer side of a digit, as a share of the image's shorter side
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
    """A picture of one digit, or of whatever the data set is of."""

    image: NDArray[np.uint8]
    """Image as the data set's images are, uint8 in their shape, `Facts.array_shape`."""
    doubt: str
    """Why the picture may show something else, as in `Findings`."""


class Digit(NamedTuple):
    """One digit of a picture."""

    image: NDArray[np.uint8]
    """Image as the data set's images are, uint8 in their shape, `Facts.array_shape`."""
    box: Box
    """Where the digit is in the picture."""


def load_image(source: Path | bytes, *, facts: Facts = MNIST, name: str = "") -> NDArray[np.uint8]:
    """Return the whole picture as one image of the data set, uint8 in the shape `facts.array_shape`.

    `facts.resize` says how. `digit_box`: the background is the median colour of the border, and ink is the distance
    from it, so a dark digit on a light background and a light one on a dark background give the same image. The ink,
    without specks of noise, is scaled to a box, of 20 pixels in 28, and centred by its mass.

    `fit` and `stretch`: see `sized`; the image is then inverted as `facts.invert` says. An image of the data set comes
    back bit by bit.

    Args:
        source: a picture file, or its content.
        facts: the facts about the data set.
        name: name of the content in error messages.

    Raises:
        InputError: the file does not exist, is not a picture, or is damaged, too large or blank.
    """
    return load_whole(source, facts=facts, name=name).image


def load_whole(source: Path | bytes, *, facts: Facts = MNIST, name: str = "") -> Whole:
    """Return the whole picture as one image, as `load_image` does, and whether it shows something else.

    Raises:
        InputError: as for `load_image`.
    """
    picture = read_picture(source, name=name, enough=enough(facts))
    if facts.resize != "digit_box":
        return Whole(_resized(picture, facts), "")
    found = _pieces(picture)
    groups = _groups(found.spans)
    several = f"has {len(groups)} digits, which are read as one" if len(groups) > 1 else ""
    image = _cut(found, group=np.arange(len(found.spans)), picture=picture, shape=facts.shape[1:]).image
    return Whole(image, several or _doubt(found, groups))


def load_digits(source: Path | bytes, *, facts: Facts = MNIST, name: str = "") -> list[Digit]:
    """Return the digits of a written number, from left to right; see `digits_of`.

    Args:
        source: a picture file, or its content.
        facts: the facts about the data set; only by the rule `digit_box` is a picture cut.
        name: name of the content in error messages.

    Raises:
        InputError: as for `load_image`, or the picture has too many pieces to be a number.
    """
    return digits_of(read_picture(source, name=name, enough=enough(facts)), facts=facts)


def digits_of(picture: Picture, *, facts: Facts = MNIST) -> list[Digit]:
    """Cut a picture of one written number, in one line, into its digits, from left to right.

    The pieces are the connected components of the ink. Pieces that overlap horizontally by more than half of the
    narrower one's width belong to one digit, and so does a low piece right beside a digit, such as the bar of a 5.
    Much smaller pieces are noise. A picture of one digit gives the image that `load_image` returns.

    Digits that touch each other are one piece and cannot be separated: they are read as one digit.

    Raises:
        InputError: the picture is blank, or has too many pieces to be a number.
    """
    return examine(picture, facts=facts).digits


def examine(picture: Picture, *, facts: Facts = MNIST) -> Findings:
    """Return the digits of a picture as `digits_of` does, and whether it shows something else besides.

    Raises:
        InputError: the picture is blank, or has too many pieces to be a number.
    """
    if facts.resize != "digit_box":
        return Findings([Digit(_resized(picture, facts), (0, 0, *picture.size))], "")
    found = _pieces(picture)
    groups = _groups(found.spans)
    if len(groups) > _MAX_DIGITS:
        raise InputError.invalid(picture.name, "the picture", f"show at most {_MAX_DIGITS} digits", got=len(groups))
    digits = [_cut(found, group=group, picture=picture, shape=facts.shape[1:]) for group in groups]
    return Findings(digits, _doubt(found, groups))


def _resized(picture: Picture, facts: Facts) -> NDArray[np.uint8]:
    image = Image.fromarray(picture.pixels)
    # A drawing shows something on its ground; a photograph may be of a plain colour.
    if facts.invert == "auto" and all(low == high for low, high in ImageStat.Stat(image).extrema):
        levels = picture.pixels[0, 0].tolist()
        got = f"a plain grey of {levels[0]}" if len(set(levels)) == 1 else f"a plain colour of {tuple(levels)}"
        raise InputError.invalid(picture.name, "the image", "show something", got=got)
    pixels = np.asarray(sized(image, shape=facts.shape, resize=facts.resize))[np.newaxis]
    found: NDArray[np.uint8] = channels_first(inverted(pixels, invert=facts.invert))[0]
    return found


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


def _cut(found: _Pieces, *, group: NDArray[np.intp], picture: Picture, shape: tuple[int, int]) -> Digit:
    """Return the pieces of `group`, row numbers of `found.spans`, as one digit in an image of `shape`."""
    left, top, right, bottom = _extent(found.spans[group])
    place = np.s_[top:bottom, left:right]
    # Paler pixels than ink, which are the digit's soft edge, stay; other digits and noise in this rectangle do not.
    own = np.isin(found.labels[place], group + 1)
    edge = ndimage.binary_dilation(own, iterations=max(2, round(_EDGE * max(own.shape)))) & (found.labels[place] == 0)
    box = np.where(own | edge, found.ink.strength[place], np.float32(0))
    side = round(_BOX * min(shape))
    grey = np.rint(255 * _fitted(box / box.max(), side=side)).astype(np.uint8)
    image = centred(grey, shape=shape)
    original = _original(picture, shape=shape) if len(group) == len(found.spans) else None
    return Digit(image if original is None else original, picture.at_full_size((left, top, right, bottom)))


def _original(picture: Picture, *, shape: tuple[int, int]) -> NDArray[np.uint8] | None:
    """Return the grey levels of a picture that is an image of the data set, light on dark; None if it is none."""
    grey: NDArray[np.uint8] = picture.pixels[:, :, 0]
    if grey.shape != shape or (picture.pixels != grey[:, :, np.newaxis]).any():
        return None
    grey = 255 - grey if np.median(border(grey)) > 127 else grey
    is_ink = grey > _FAINT
    sides = [int(np.ptp(np.flatnonzero(is_ink.any(axis=axis)))) + 1 for axis in (0, 1)] if is_ink.any() else [0]
    offset = np.subtract(ndimage.center_of_mass(grey), np.divide(shape, 2))
    return grey if abs(max(sides) - round(_BOX * min(shape))) <= 1 and np.abs(offset).max() <= 1 else None


def _fitted(box: NDArray[np.float32], *, side: int) -> NDArray[np.float32]:
    """Return the ink of a digit's bounding box, scaled so that its longer side is `side`; all float32 in [0, 1]."""
    height, width = (max(1, round(length * side / max(box.shape))) for length in box.shape)
    if box.shape == (height, width):
        return box
    resized = Image.fromarray(box).resize((width, height), Image.Resampling.BICUBIC)
    scaled = np.asarray(resized).clip(0, 1)
    strongest: NDArray[np.float32] = scaled / scaled.max()
    return strongest


def centred(box: NDArray[Number], *, shape: tuple[int, int], back: float = 0.0) -> NDArray[Number]:
    """Return `box` in an image of zeros, its centre of mass at the centre to the nearest whole pixel.

    The centre of 28x28 is pixel (14, 14), as in MNIST.

    Args:
        box: uint8 or float32, at most `shape` large, with a sum above 0; it always stays inside.
        shape: height and width of the image.
        back: by how many pixels the target lies above and left of the centre.

    Returns:
        `shape` of the dtype of `box`.
    """
    image = np.zeros(shape, dtype=box.dtype)
    place: list[Any] = []
    for axis, (length, room) in enumerate(zip(box.shape, shape, strict=True)):
        mass = box.sum(axis=1 - axis)
        found = float((mass * np.arange(length)).sum() / mass.sum())
        start = min(max(round(room / 2 - back - found), 0), room - length)
        place.append(slice(start, start + length))
    image[tuple(place)] = box
    return image
