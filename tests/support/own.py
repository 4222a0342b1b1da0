"""A user's own images in each format, small, drawn so that their classes can be learned."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageDraw, ImageFont

from mnist_pipe.data import idx

Examples = tuple[NDArray[np.uint8], list[str]]
"""Images, `(N, height, width)` or with 3 channels last, and the name of the class of each."""


def drawn(
    num_rows: int,
    *,
    names: tuple[str, ...] = ("cat", "dog", "owl"),
    size: tuple[int, int] = (20, 16),
    channels: int = 1,
    seed: int = 0,
) -> Examples:
    """Return light bars on dark ground, turned by class and coloured in part, with classes in turn."""
    random = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    images = np.empty((num_rows, height, width, 3), dtype=np.uint8)
    for row in range(num_rows):
        number = row % len(names)
        angle = np.pi * number / len(names) + random.normal(0, 0.06)
        centre = np.array([height, width]) / 2 + random.normal(0, 0.05, 2) * size
        distance = np.abs((x - centre[1]) * np.sin(angle) - (y - centre[0]) * np.cos(angle))
        bar = np.clip(1.5 + min(size) / 12 - distance, 0, 1)
        near = np.maximum(np.abs(y - centre[0]) / height, np.abs(x - centre[1]) / width) < 0.36
        colour = np.roll([230, 120, 60], number) if channels == 3 else np.array([230] * 3)
        noise = random.integers(0, 25, (height, width, channels)) * near[..., np.newaxis]
        images[row] = (bar * near)[..., np.newaxis] * colour + noise
    return (images if channels == 3 else images[..., 0]), [names[row % len(names)] for row in range(num_rows)]


def letters(num_rows: int, *, seed: int = 0) -> Examples:
    """Return the letters A to Z in turn, grey `(28, 28)`, light on dark, turned, shifted, in several sizes."""
    random = np.random.default_rng(seed)
    names = [chr(ord("A") + row % 26) for row in range(num_rows)]
    images = np.empty((num_rows, 28, 28), dtype=np.uint8)
    for image, name in zip(images, names, strict=True):
        page = Image.new("L", (56, 56))
        font = ImageFont.load_default(size=float(random.uniform(26, 44)))
        place = tuple(28 + random.normal(0, 3, 2))
        ImageDraw.Draw(page).text(place, name, fill=int(random.integers(150, 256)), font=font, anchor="mm")
        page = page.rotate(random.normal(0, 12), Image.Resampling.BICUBIC).resize((28, 28), Image.Resampling.BOX)
        image[:] = np.clip(np.asarray(page) + random.normal(0, 25, (28, 28)), 0, 255)
    return images, names


def shape(name: str, *, size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    """Return a picture of a disc, ring, square, triangle or cross of any colour on ground of any colour."""
    ground, colour = random.integers(0, 256, (2, 3))
    while np.abs(ground - colour).max() < 90:
        colour = random.integers(0, 256, 3)
    radius = 0.3 * min(size) * random.uniform(0.75, 1.1)
    x, y = (length / 2 + random.normal(0, 0.06) * length for length in size)
    page = Image.new("RGB", size, tuple(ground.tolist()))
    draw, fill, turn = ImageDraw.Draw(page), tuple(colour.tolist()), float(random.uniform(0, 360))
    box = (x - radius, y - radius, x + radius, y + radius)
    if name == "disc":
        draw.ellipse(box, fill=fill)
    elif name == "ring":
        draw.ellipse(box, outline=fill, width=max(2, round(radius / 3)))
    elif name == "cross":
        for angle in (turn, turn + 90):
            way = radius * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
            draw.line((x - way[0], y - way[1], x + way[0], y + way[1]), fill=fill, width=max(2, round(radius / 3)))
    else:
        draw.regular_polygon((x, y, radius), n_sides={"square": 4, "triangle": 3}[name], rotation=turn, fill=fill)
    noise = random.normal(0, 12, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(page) + noise, 0, 255).astype(np.uint8))


SHAPES = ("cross", "disc", "ring", "square", "triangle")


def as_mixed_pictures(root: Path, *, num_pictures: int, seed: int = 0) -> Path:
    """Write a folder a shape, with pictures of several sizes and formats, as somebody collects them."""
    random = np.random.default_rng(seed)
    for number in range(num_pictures):
        name = SHAPES[number % len(SHAPES)]
        folder = root / f"{name}s"
        folder.mkdir(parents=True, exist_ok=True)
        picture = shape(name, size=tuple(random.integers(32, 160, 2).tolist()), random=random)
        way = number // len(SHAPES) % 8
        if way == 0:
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = 6
            picture.rotate(90, expand=True).save(folder / f"{number}.jpg", quality=92, exif=exif)
        elif way == 1:
            picture.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / f"{number}.png")
        elif way == 2:
            picture.convert("RGBA").save(folder / f"{number}.png")
        elif way == 3:
            picture.convert("L").save(folder / f"{number}.JPG", quality=95)
        else:
            picture.save(folder / f"{number}{('.png', '.bmp', '.tiff', '.webp')[way - 4]}")
    return root


def scratched(num_rows: int, *, share: float, seed: int = 0) -> Examples:
    """Return parts of 64 x 48 pixels, of which a share has a scratch, a faint line of any direction."""
    random = np.random.default_rng(seed)
    names = ["scratched" if row < round(share * num_rows) else "whole" for row in range(num_rows)]
    images = np.empty((num_rows, 64, 48), dtype=np.uint8)
    for image, name in zip(images, names, strict=True):
        page = Image.new("F", (48, 64), float(random.uniform(60, 120)))
        if name == "scratched":
            x, y, angle = random.uniform(14, 34), random.uniform(18, 46), random.uniform(0, np.pi)
            way = random.uniform(8, 13) * np.array([np.cos(angle), np.sin(angle)])
            ends = (x - way[0], y - way[1], x + way[0], y + way[1])
            ImageDraw.Draw(page).line(ends, fill=float(random.uniform(150, 190)), width=2)
        image[:] = np.clip(np.asarray(page) + random.normal(0, 22, (64, 48)), 0, 255)
    order = random.permutation(num_rows)
    return images[order], [names[row] for row in order]


def as_images(root: Path, splits: dict[str, Examples], *, suffix: str = ".png") -> Path:
    """Write a folder a class in a folder a split; of `train` alone, a folder a class."""
    number = 0
    for split, (images, names) in splits.items():
        for image, name in zip(images, names, strict=True):
            folder = root / name if set(splits) == {"train"} else root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}{suffix}")
            number += 1
    return root


def as_csv_of_paths(root: Path, splits: dict[str, Examples]) -> Path:
    """Write `path,label` beside the pictures."""
    (root / "pictures").mkdir(parents=True)
    for split, (images, names) in splits.items():
        lines = ["path,label"]
        for number, (image, name) in enumerate(zip(images, names, strict=True)):
            Image.fromarray(image).save(root / "pictures" / f"{split}{number}.png")
            lines.append(f"pictures/{split}{number}.png,{name}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return root


def as_csv_of_pixels(root: Path, splits: dict[str, Examples]) -> Path:
    """Write a label and a column for each pixel, as Kaggle does."""
    root.mkdir(parents=True)
    for split, (images, names) in splits.items():
        flat = images.reshape(len(images), -1)
        lines = [",".join(["label", *(f"pixel{number}" for number in range(flat.shape[1]))])]
        lines += [",".join([name, *map(str, row)]) for name, row in zip(names, flat.tolist(), strict=True)]
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return root


def png(image: NDArray[np.uint8]) -> bytes:
    """Return an image as the content of a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def as_hugging_face(root: Path, splits: dict[str, Examples]) -> Path:
    """Write Parquet as `datasets` does: a struct of bytes, numbers as labels, and their names in the metadata."""
    (root / "data").mkdir(parents=True)
    classes = sorted({name for _, names in splits.values() for name in names})
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    for split, (images, names) in splits.items():
        table = pa.table(
            {
                "image": pa.array([{"bytes": png(image), "path": None} for image in images]),
                "label": pa.array([classes.index(name) for name in names], pa.int64()),
            }
        )
        path = root / "data" / f"{split}-00000-of-00001.parquet"
        pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=17)
    return root


def as_parquet_of_pixels(root: Path, splits: dict[str, Examples]) -> Path:
    """Write Parquet with flat pixels as fixed-size binary and text as labels."""
    root.mkdir(parents=True)
    for split, (images, names) in splits.items():
        flat = images.reshape(len(images), -1)
        content = pa.array([row.tobytes() for row in flat], pa.binary(flat.shape[1]))
        pq.write_table(pa.table({"image": content, "class": names}), root / f"{split}.parquet", row_group_size=11)
    return root


def as_npz(root: Path, splits: dict[str, Examples]) -> Path:
    """Write arrays as MedMNIST does, with numbers as labels."""
    root.mkdir(parents=True)
    classes = sorted({name for _, names in splits.values() for name in names})
    arrays: dict[str, Any] = {}
    for split, (images, names) in splits.items():
        short = {"validation": "val"}.get(split, split)
        arrays[f"{short}_images"] = images
        arrays[f"{short}_labels"] = np.array([[classes.index(name)] for name in names], dtype=np.uint8)
    np.savez(root / "mine.npz", **arrays)
    return root / "mine.npz"


def as_idx(root: Path, splits: dict[str, Examples]) -> Path:
    """Write MNIST's files, with numbers as labels."""
    root.mkdir(parents=True)
    classes = sorted({name for _, names in splits.values() for name in names})
    for split, (images, names) in splits.items():
        prefix = "train" if split == "train" else "t10k"
        labels = np.array([classes.index(name) for name in names], dtype=np.uint8)
        (root / f"{prefix}-images-idx{images.ndim}-ubyte").write_bytes(idx.encode(images))
        (root / f"{prefix}-labels-idx1-ubyte").write_bytes(idx.encode(labels))
    return root


FORMATS: dict[str, tuple[str, Callable[[Path, dict[str, Examples]], Path]]] = {
    "images": ("images", as_images),
    "csv of paths": ("csv", as_csv_of_paths),
    "csv of pixels": ("csv", as_csv_of_pixels),
    "parquet of Hugging Face": ("parquet", as_hugging_face),
    "parquet of pixels": ("parquet", as_parquet_of_pixels),
    "npz": ("npz", as_npz),
    "idx": ("idx", as_idx),
}
"""The value of `ingest.dataset` and the writer of each way to store images."""
NUMBERED = ("npz", "idx")
"""Those of `FORMATS` that store classes as numbers."""
