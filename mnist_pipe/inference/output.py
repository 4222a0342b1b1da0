"""The forms in which a reading of a picture is written: text, JSON, CSV, and the picture with boxes."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from mnist_pipe.errors import InputError, one_line_path
from mnist_pipe.inference.predict import Prediction, Reading

_SHOWN_SIDE = 512  # pixels; a smaller picture is enlarged to this, so that boxes and labels can be told apart
_SURE, _UNSURE = "#0a7d32", "#c2410c"


def to_text(reading: Reading) -> str:
    """Return one line for one digit; for several, a line with the number, then an indented line for each digit.

    The probability of a number is the product of those of its digits.
    """
    if len(reading.predictions) == 1:
        return f"{one_line_path(reading.path)}: {_line(reading.predictions[0])}"
    whole = math.prod(found.probability for found in reading.predictions)
    first = f"{one_line_path(reading.path)}: {reading.text} ({100 * whole:.2f} %)"
    return "\n".join([first, *(f"  {_line(found)}" for found in reading.predictions)])


def _line(found: Prediction) -> str:
    shares = "  ".join(f"{label}: {share:.4f}" for label, share in found.probabilities.items())
    return f"{found.label} ({100 * found.probability:.2f} %)   {shares}"


def to_json(reading: Reading) -> str:
    """Return one line of JSON; the class of a prediction that is not sure is null."""
    return json.dumps(
        {
            "path": str(reading.path),
            "model": reading.model,
            "text": reading.text,
            "doubt": reading.doubt or None,
            "predictions": [
                {
                    "label": found.label,
                    "class": found.number if found.is_sure else None,
                    "probability": found.probability,
                    "probabilities": found.probabilities,
                    "box": found.box,
                }
                for found in reading.predictions
            ],
        }
    )


def to_csv(reading: Reading, *, header: bool) -> str:
    """Return a row of CSV for each digit, after a row of names if `header`; an unsure prediction's class is empty."""
    rows: list[Iterable[Any]] = []
    if header:
        shares = (f"probability of {label}" for label in reading.predictions[0].probabilities)
        names = ("path", "model", "position", "label", "class", "probability", "left", "top", "right", "bottom")
        rows.append((*names, *shares, "doubt"))
    for position, found in enumerate(reading.predictions):
        number = found.number if found.is_sure else ""
        head = (reading.path, reading.model, position, found.label, number, found.probability)
        rows.append((*head, *found.box, *found.probabilities.values(), reading.doubt))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().removesuffix("\n")


def to_png(reading: Reading) -> bytes:
    """Return the picture with a box and a label for each prediction, as a PNG file."""
    height, width = reading.picture.pixels.shape[:2]
    zoom = max(1, _SHOWN_SIDE // max(height, width))
    shown = Image.fromarray(reading.picture.pixels).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
    font = ImageFont.load_default(max(14, shown.height // 12))
    margin = math.ceil(font.getbbox("Ag")[3]) + 4  # room for the label of a box at the top
    page = Image.new("RGB", (shown.width, shown.height + margin), "white")
    page.paste(shown, (0, margin))
    draw = ImageDraw.Draw(page)
    across, down = shown.width / reading.picture.size[0], shown.height / reading.picture.size[1]
    for found in reading.predictions:
        colour = _SURE if found.is_sure else _UNSURE
        left, top, right, bottom = found.box
        corner = (round(left * across), round(top * down) + margin)
        draw.rectangle((*corner, right * across - 1, bottom * down + margin - 1), outline=colour, width=2)
        above = (corner[0], corner[1] - 2)
        draw.rectangle(draw.textbbox(above, found.label, font=font, anchor="lb"), fill="white")
        draw.text(above, found.label, font=font, anchor="lb", fill=colour)
    content = io.BytesIO()
    page.save(content, "PNG")
    return content.getvalue()


def check_target(path: Path, *, pictures: Sequence[object]) -> None:
    """Check that `to_png` of these pictures can be written to `path`.

    Raises:
        InputError: there is not exactly one picture, it is `path` itself, or `path` is no PNG file in a folder.
    """
    if len(pictures) != 1:
        raise InputError.invalid("predict", "--show", "be given with exactly one picture", got=len(pictures))
    if path.suffix.lower() != ".png":
        raise InputError.invalid("predict", "--show", "name a PNG file", got=path)
    if not path.parent.is_dir():
        raise InputError.missing(path.parent, where="predict: --show", fix="create that folder")
    if isinstance(pictures[0], Path) and path.resolve() == pictures[0].resolve():
        raise InputError.invalid("predict", "--show", "name another file than the picture", got=path)
