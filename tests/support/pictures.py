"""Pictures as people send them: digits of MNIST's test split on all kinds of paper, with what is right for each."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

Page = NDArray[Any]
"""A page, grey `(height, width)` or colour `(height, width, 3)`, 0 to 255."""
Random = np.random.Generator
Rule = Literal["digit", "hard"]
"""What is right: `digit`, the digit without a doubt; `hard`, the digit, or a doubt or a refusal."""

SIDE = 300
_INK = 40.0
_PAPER = 235.0


def pen(digit: NDArray[np.uint8], *, height: int = 200) -> Page:
    """Return the digit's ink in [0, 1], enlarged so that its 28 x 28 image is `height` pixels high."""
    enlarged = Image.fromarray(digit).resize((height, height), Image.Resampling.BICUBIC)
    sharp = np.asarray(enlarged.filter(ImageFilter.GaussianBlur(height / 100)), dtype=np.float64) / 255
    return (3 * sharp - 1).clip(0, 1)  # the edge of a pen's stroke is sharper than that of an enlarged image


def placed(ink: Page, *, at: tuple[int, int] | None = None, shape: tuple[int, int] = (SIDE, SIDE)) -> Page:
    """Return a page of ink in [0, 1] with `ink` at row and column `at`, or in its middle."""
    page = np.zeros(shape)
    row, column = at or ((shape[0] - ink.shape[0]) // 2, (shape[1] - ink.shape[1]) // 2)
    part = page[max(row, 0) : row + ink.shape[0], max(column, 0) : column + ink.shape[1]]
    rows, columns = max(-row, 0), max(-column, 0)
    np.maximum(part, ink[rows : rows + part.shape[0], columns : columns + part.shape[1]], out=part)
    return page


def inked(ink: Page, *, paper: Any = _PAPER, colour: Any = _INK) -> Page:
    """Return the paper, a grey level, a colour or a page, with ink of that grey level or colour."""
    paper, colour = np.asarray(paper, dtype=np.float64), np.asarray(colour, dtype=np.float64)
    if paper.shape == (3,) or paper.ndim == 3 or colour.shape == (3,):
        ink = ink[..., np.newaxis]
        paper = paper if paper.shape in ((), (3,)) or paper.ndim == 3 else paper[..., np.newaxis]
    return paper * (1 - ink) + colour * ink


def grid(step: int, *, width: int = 1, rows: bool = True, columns: bool = True, shape: Any = (SIDE, SIDE)) -> Any:
    """Return where lines run, bool `(height, width)`."""
    down, across = np.arange(shape[0]) % step < width, np.arange(shape[1]) % step < width
    return (down[:, np.newaxis] & rows) | (across & columns)


def ring(margin: int, width: int, *, shape: tuple[int, int] = (SIDE, SIDE)) -> NDArray[np.bool_]:
    """Return where a frame of that width lies, `margin` pixels from the border."""
    image = Image.new("1", shape[::-1])
    box = (margin, margin, shape[1] - 1 - margin, shape[0] - 1 - margin)
    ImageDraw.Draw(image).rectangle(box, outline=1, width=width)
    return np.asarray(image)


def smooth(random: Random, *, scale: float, shape: tuple[int, int] = (SIDE, SIDE)) -> Page:
    """Return smooth noise with a mean of 0 and a standard deviation of 1."""
    noise = ndimage.gaussian_filter(random.normal(size=shape), scale, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def ramp(low: float, high: float, *, angle: float = 0.0, shape: tuple[int, int] = (SIDE, SIDE)) -> Page:
    y, x = np.mgrid[-0.5 : 0.5 : shape[0] * 1j, -0.5 : 0.5 : shape[1] * 1j]
    along = np.cos(np.radians(angle)) * x + np.sin(np.radians(angle)) * y
    return low + (high - low) * (along - along.min()) / np.ptp(along)


def png(page: Page, mode: str = "", **options: Any) -> bytes:
    return saved(image_of(page).convert(mode) if mode else image_of(page), "PNG", **options)


def jpeg(page: Page, *, quality: int = 75) -> bytes:
    return saved(image_of(page), "JPEG", quality=quality)


def image_of(page: Page) -> Image.Image:
    return Image.fromarray(page.round().clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def turned(page: Page, degrees: float, *, fill: float = _PAPER) -> Page:
    return np.asarray(image_of(page).rotate(degrees, Image.Resampling.BICUBIC, fillcolor=round(fill)), dtype=np.float64)


def blurred(page: Page, radius: float) -> Page:
    return ndimage.gaussian_filter(page, radius)


def noisy(page: Page, random: Random, level: float) -> Page:
    return page + random.normal(0, level, page.shape)


def with_alpha(ink: Page, colour: int) -> bytes:
    alpha = np.rint(255 * ink).astype(np.uint8)
    return saved(Image.merge("RGBA", [Image.new("L", alpha.shape[::-1], colour)] * 3 + [Image.fromarray(alpha)]), "PNG")


def in_16_bits(page: Page, bits: int) -> bytes:
    values = (page / 255 * ((1 << bits) - 1)).round().astype(np.uint16)
    return saved(Image.fromarray(values), "PNG")


def desk(page: Page, random: Random) -> Page:
    """Return a sheet of paper, slightly turned, on a dark desk."""
    whole = np.pad(page, 40, constant_values=np.nan)
    ground = 70 + 6 * smooth(random, scale=3, shape=whole.shape)
    sheet = Image.fromarray(np.nan_to_num(whole, nan=-1.0).astype(np.float32), mode="F")
    sheet = sheet.rotate(4, Image.Resampling.BILINEAR, fillcolor=-1)
    values = np.asarray(sheet, dtype=np.float64)
    return np.where(values < 20, ground, values)


def speckled(page: Page, random: Random, share: float) -> Page:
    where = random.random(page.shape)
    return np.where(where < share / 2, 0, np.where(where > 1 - share / 2, 255, page))


Draw = Callable[[NDArray[np.uint8], Random], bytes]


def _plain(**options: Any) -> Draw:
    return lambda digit, _: png(inked(placed(pen(digit)), **options))


def _over(change: Callable[[Page, Random], Page], *, quality: int = 0, **options: Any) -> Draw:
    """Return a style: the inked page changed, as PNG, or as JPEG of that quality."""

    def draw(digit: NDArray[np.uint8], random: Random) -> bytes:
        page = change(inked(placed(pen(digit)), **options), random)
        return jpeg(page, quality=quality) if quality else png(page)

    return draw


def _lined(lines: Any, level: float, *, quality: int = 0) -> Draw:
    """Return a style: dark lines on the paper, over which the digit is written."""
    return _over(lambda page, _: np.where(lines, np.minimum(page, level), page), quality=quality)


STYLES: dict[str, tuple[Rule, Draw]] = {
    "black on white": ("digit", _plain(paper=255, colour=0)),
    "white on black": ("digit", _plain(paper=0, colour=255)),
    "pencil": ("digit", _plain(colour=160)),
    "chalk on a green board": ("digit", _plain(paper=(40, 80, 60), colour=(220, 225, 215))),
    "blue on yellow paper": ("digit", _plain(paper=(250, 240, 150), colour=(30, 50, 160))),
    "red on white": ("digit", _plain(paper=(250, 250, 250), colour=(220, 30, 40))),
    "yellow on blue": ("digit", _plain(paper=(20, 40, 140), colour=(240, 230, 60))),
    "a small digit on a large page": (
        "digit",
        lambda digit, _: png(inked(placed(pen(digit, height=90), at=(40, 400), shape=(600, 800)))),
    ),
    "as small as MNIST": ("digit", lambda digit, _: saved(Image.fromarray(digit), "PNG")),
    "as small as MNIST, dark on light, JPEG": ("hard", lambda digit, _: jpeg(255.0 - digit, quality=75)),
    "a thousand pixels": ("digit", lambda digit, _: png(inked(placed(pen(digit, height=1000), shape=(1400, 1200))))),
    "cropped to the ink": ("digit", lambda digit, _: png(_cropped(inked(pen(digit))))),
    "cut off at the border": ("hard", lambda digit, _: png(inked(placed(pen(digit), at=(-70, 50))))),
    "a thick marker": ("hard", lambda digit, _: png(inked(placed(ndimage.grey_dilation(pen(digit), 9))))),
    "a thin pen": ("hard", lambda digit, _: png(inked(placed(_thinned(pen(digit)))))),
    "one bit": ("digit", lambda digit, _: png(inked(placed(pen(digit)), paper=255, colour=0), "1")),
    "dithered to one bit": ("hard", lambda digit, _: png(inked(placed(pen(digit))), "1")),
    "palette": ("digit", lambda digit, _: png(inked(placed(pen(digit))), "P")),
    "JPEG 10": ("digit", _over(lambda page, _: page, quality=10)),
    "JPEG 40": ("digit", _over(lambda page, _: page, quality=40)),
    "10 bits in 16": ("digit", lambda digit, _: in_16_bits(inked(placed(pen(digit))), 10)),
    "12 bits in 16": ("digit", lambda digit, _: in_16_bits(inked(placed(pen(digit))), 12)),
    "14 bits in 16, light on dark": ("digit", lambda digit, _: in_16_bits(255 - inked(placed(pen(digit))), 14)),
    "12 bits in 16, dim": ("digit", lambda digit, _: in_16_bits(0.3 * inked(placed(pen(digit))), 12)),
    "16 bits": ("digit", lambda digit, _: in_16_bits(inked(placed(pen(digit))), 16)),
    "white on transparent": ("digit", lambda digit, _: with_alpha(placed(pen(digit)), 255)),
    "black on transparent": ("digit", lambda digit, _: with_alpha(placed(pen(digit)), 0)),
    "light grey on transparent": ("digit", lambda digit, _: with_alpha(placed(pen(digit)), 235)),
    "framed": ("digit", _lined(ring(6, 4), 30)),
    "framed at the border": ("digit", _lined(ring(0, 5), 30)),
    "framed, JPEG": ("digit", _lined(ring(6, 4), 30, quality=60)),
    "framed at the border, JPEG": ("digit", _lined(ring(0, 3), 30, quality=40)),
    "framed twice": ("digit", _lined(ring(4, 2) | ring(12, 5), 30, quality=80)),
    "in a grey frame": ("digit", _lined(ring(0, 14), 128, quality=75)),
    "in a box of a form": ("digit", _lined(ring(40, 3), 30)),
    "in a box of a form, JPEG": ("digit", _lined(ring(40, 3), 30, quality=50)),
    "in a turned frame": ("hard", _over(lambda page, _: turned(np.where(ring(25, 4), 30, page), 3))),
    "in a frame open at one side": ("hard", _lined(ring(10, 4) & (np.arange(SIDE) < 280), 30)),
    "with corner marks": ("hard", _lined(ring(10, 4) & ~grid(300, width=260) & (np.arange(SIDE) > 240), 30)),
    "squared paper": ("digit", _lined(grid(30), 180)),
    "squared paper, dark lines": ("hard", _lined(grid(50, width=2), 60)),
    "squared paper, JPEG": ("digit", _lined(grid(30), 180, quality=60)),
    "squared paper, turned": (
        "hard",
        _over(lambda page, _: turned(np.where(grid(30), np.minimum(page, 180), page), 4)),
    ),
    "graph paper": ("hard", _lined(grid(12), 190)),
    "ruled paper": ("digit", _lined(grid(40, columns=False), 170)),
    "ruled paper, dark lines": ("hard", _lined(grid(60, width=2, columns=False), 60)),
    "ruled paper, turned, JPEG": (
        "hard",
        _over(lambda page, _: turned(np.where(grid(40, columns=False), np.minimum(page, 170), page), 3), quality=60),
    ),
    "ruled paper with a margin": ("hard", _lined(grid(40, columns=False) | (np.arange(SIDE) // 2 == 20), 150)),
    "dotted paper": ("digit", _lined(grid(25, columns=False, width=2) & grid(25, rows=False, width=2), 120)),
    "shadow from the left": ("digit", _over(lambda page, _: page * ramp(0.4, 1))),
    "strong shadow, slanted": ("digit", _over(lambda page, _: page * ramp(0.25, 1, angle=50), quality=80)),
    "round shadow": ("digit", _over(lambda page, _: page * (1 - 0.5 * np.hypot(*np.mgrid[0:1:300j, 0:1:300j])))),
    "vignette": ("digit", _over(lambda page, _: page * (1 - 0.6 * np.hypot(*np.mgrid[-0.7:0.7:300j, -0.7:0.7:300j])))),
    "edge of a shadow": (
        "hard",
        _over(lambda page, _: page * blurred(np.where(np.arange(SIDE) < 120, 0.5, 1) * np.ones((SIDE, 1)), 4)),
    ),
    "shadow of a hand": (
        "hard",
        _over(lambda page, random: page * (1 - 0.45 * blurred((smooth(random, scale=50) > 0.3) * 1.0, 8))),
    ),
    "glare": (
        "hard",
        _over(
            lambda page, _: np.maximum(page, 255 * np.exp(-8 * np.hypot(*np.mgrid[-0.2:0.8:300j, -0.2:0.8:300j]) ** 2)),
            paper=180,
        ),
    ),
    "light ramp on a dark ground": ("digit", _over(lambda page, _: page + ramp(0, 60), paper=30, colour=220)),
    "coloured ramp": (
        "digit",
        lambda digit, _: png(
            inked(
                placed(pen(digit)),
                paper=np.stack([ramp(255, 150), ramp(220, 250), ramp(120, 220)], axis=2),
                colour=(20, 20, 60),
            )
        ),
    ),
    "noise of a camera": ("digit", _over(lambda page, random: noisy(page, random, 10), quality=80)),
    "strong noise": ("hard", _over(lambda page, random: noisy(page, random, 30))),
    "noise and pencil": ("hard", _over(lambda page, random: noisy(page, random, 12), colour=150, quality=70)),
    "salt and pepper": ("hard", _over(lambda page, random: speckled(page, random, 0.03))),
    "dust": (
        "hard",
        _over(
            lambda page, random: np.where(
                ndimage.binary_dilation(random.random(page.shape) < 0.0005, iterations=2), 40, page
            )
        ),
    ),
    "rough paper": ("digit", _over(lambda page, random: page + 6 * smooth(random, scale=1.5), quality=85)),
    "crumpled paper": ("hard", _over(lambda page, random: page * (1 + 0.1 * smooth(random, scale=12)), quality=85)),
    "stained paper": ("hard", _over(lambda page, random: page - 60 * (smooth(random, scale=20) > 1.2), quality=85)),
    "blurred a little": ("digit", _over(lambda page, _: blurred(page, 3))),
    "blurred": ("hard", _over(lambda page, _: blurred(page, 8))),
    "blurred and noisy": ("hard", _over(lambda page, random: noisy(blurred(page, 4), random, 8), quality=70)),
    "moved": ("hard", _over(lambda page, _: ndimage.uniform_filter1d(page, 15, axis=1))),
    "turned by 10": ("hard", _over(lambda page, _: turned(page, 10))),
    "turned by -15": ("hard", _over(lambda page, _: turned(page, -15))),
    "paper on a desk": ("hard", _over(lambda page, random: desk(page, random), quality=85)),
    "photo of paper": (
        "digit",
        _over(lambda page, random: noisy(blurred(page * ramp(0.6, 0.95, angle=30), 1.5), random, 5), quality=70),
    ),
    "photo of squared paper": (
        "hard",
        _over(
            lambda page, random: noisy(
                blurred(np.where(grid(30, width=2), np.minimum(page, 170), page) * ramp(0.6, 0.95, angle=30), 1),
                random,
                4,
            ),
            quality=70,
        ),
    ),
    "underlined": (
        "hard",
        _lined((np.abs(np.arange(SIDE) - 270) < 3)[:, np.newaxis] & (np.abs(np.arange(SIDE) - 150) < 80), 40),
    ),
    "half of the page dark": ("hard", _over(lambda page, _: np.where(np.arange(SIDE) < 150, 255 - page, page))),
    "on a chequered ground": (
        "hard",
        _over(lambda page, _: np.where((np.add.outer(*[np.arange(SIDE) // 30] * 2)) % 2, page, page * 0.6)),
    ),
    "on stripes": ("hard", _over(lambda page, _: np.where(np.arange(SIDE) // 15 % 2, page, page * 0.75))),
    "on print": ("hard", lambda digit, _: png(np.minimum(inked(placed(pen(digit))), _print()))),
}


def _cropped(page: Page) -> Page:
    rows, columns = (np.flatnonzero((page < 100).any(axis=axis)) for axis in (1, 0))
    return page[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _thinned(ink: Page) -> Page:
    return np.asarray(ndimage.grey_erosion(ink, 7))


def _print() -> Page:
    image = Image.new("L", (SIDE, SIDE), 235)
    for row in range(5, SIDE, 24):
        ImageDraw.Draw(image).text(
            (8, row), "Lorem ipsum dolor sit amet, cons", font=ImageFont.load_default(18), fill=150
        )
    return np.asarray(image, dtype=np.float64)


def _row(digits: list[NDArray[np.uint8]], *, step: int = 150, height: int = 160) -> Page:
    """Return a page of ink with digits side by side, a new one each `step` pixels."""
    page = np.zeros((300, 2 * 60 + step * (len(digits) - 1) + height))
    for number, digit in enumerate(digits):
        part = placed(pen(digit, height=height), at=(70, 60 + step * number), shape=(page.shape[0], page.shape[1]))
        np.maximum(page, part, out=page)
    return page


def _framed(page: Page) -> Page:
    return np.where(ring(6, 4, shape=(page.shape[0], page.shape[1])), 30, page)


def _two_lines(digits: list[NDArray[np.uint8]]) -> Page:
    above, below = (placed(pen(digit, height=150), at=(at, 80)) for digit, at in zip(digits, (0, 145), strict=True))
    return np.maximum(above, below)


def _large_and_small(digits: list[NDArray[np.uint8]]) -> Page:
    large, small = digits
    page = placed(pen(large, height=200), at=(40, 20), shape=(300, 400))
    return np.maximum(page, placed(pen(small, height=70), at=(150, 280), shape=(300, 400)))


NUMBERS: dict[str, tuple[int, Callable[[list[NDArray[np.uint8]], Random], bytes]]] = {
    "two digits": (2, lambda digits, _: png(inked(_row(digits)))),
    "three digits, JPEG": (3, lambda digits, _: jpeg(inked(_row(digits)), quality=60)),
    "five digits": (5, lambda digits, _: png(inked(_row(digits)))),
    "two digits, light on dark": (2, lambda digits, _: png(inked(_row(digits), paper=20, colour=230))),
    "two digits, framed, JPEG": (2, lambda digits, _: jpeg(_framed(inked(_row(digits))), quality=70)),
    "three digits in a shadow": (
        3,
        lambda digits, _: png(inked(_row(digits)) * ramp(0.5, 1, angle=20, shape=_row(digits).shape)),
    ),
    "two digits, photo": (2, lambda digits, random: jpeg(noisy(inked(_row(digits)), random, 6), quality=70)),
    "two digits in two lines": (2, lambda digits, _: png(inked(_two_lines(digits)))),
    "a large and a small digit": (2, lambda digits, _: png(inked(_large_and_small(digits)))),
    "two digits, one cut off": (2, lambda digits, _: png(inked(_row(digits)[:, :300]))),
}
"""Pictures of several digits: how many, and the style. Right are all of them in order, or a doubt, or a refusal."""


def _scribble(random: Random) -> bytes:
    image = Image.new("L", (SIDE, SIDE), 240)
    for _ in range(25):
        ImageDraw.Draw(image).line(
            [tuple(point) for point in random.integers(0, SIDE, (3, 2)).tolist()], fill=40, width=5
        )
    return saved(image, "PNG")


NOTHING: dict[str, Callable[[Random], bytes]] = {
    "white paper": lambda _: png(np.full((SIDE, SIDE), 255.0)),
    "paper of a photo": lambda random: jpeg(noisy(np.full((SIDE, SIDE), 200.0), random, 5)),
    "a shadow": lambda _: png(235 * ramp(0.4, 1)),
    "a framed page": lambda _: png(np.where(ring(6, 4), 30.0, 235.0)),
    "squared paper": lambda _: png(np.where(grid(30), 150.0, 235.0)),
    "ruled paper": lambda _: png(np.where(grid(40, columns=False), 100.0, 235.0)),
    "noise": lambda random: png(random.integers(0, 256, (SIDE, SIDE)).astype(float)),
    "a chequered ground": lambda _: png(np.where(np.add.outer(*[np.arange(SIDE) // 30] * 2) % 2, 230.0, 60.0)),
    "a scribble": _scribble,
    "print": lambda _: png(_print()),
    "transparent": lambda _: with_alpha(np.zeros((SIDE, SIDE)), 255),
}
"""Pictures of no digit. Right is a doubt or a refusal."""
