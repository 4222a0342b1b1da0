"""Decoding of many pictures into images of one size, on every CPU or, from a bucket, on a cluster.

A chunk of pictures is decoded at a time, and kept on the disk until the whole data set is read, so that a reading that
was killed goes on where it was.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pyarrow import fs

from mnist_pipe import paths
from mnist_pipe.data import columns, parquet, sizing
from mnist_pipe.data.facts import Facts, Resize
from mnist_pipe.data.parquet import RowGroup
from mnist_pipe.data.pictures import quick, read_picture, size_of
from mnist_pipe.errors import InputError, one_line
from mnist_pipe.hardware import num_cpus

PICTURES_AT_ONCE = 500
"""Number of pictures in a chunk."""
MAX_KEPT_SIDE = 128
"""Largest side, in pixels, of the size that all pictures of a data set have, to be kept by `ingest.shape: auto`."""
AUTO_SIDE = 64
"""Longer side, in pixels, of the images that `ingest.shape: auto` makes of larger pictures."""
STATE = paths.STATE / "pictures"

Size = tuple[int, int]
"""Height and width, in pixels."""


class Named(NamedTuple):
    """A picture file's content, and what messages call it."""

    name: str
    content: bytes | InputError
    """The error, if it cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """A chunk of picture files."""

    paths: tuple[str, ...]
    filesystem: fs.FileSystem | None = None
    """File system of the paths; None is this machine's."""

    def __len__(self) -> int:
        return len(self.paths)

    def contents(self) -> Iterator[Named]:
        """Yield the content of each file."""
        for path in self.paths:
            try:
                if self.filesystem:
                    with self.filesystem.open_input_stream(path) as stream:
                        yield Named(path, stream.read())
                else:
                    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - `Path` takes as long
                        yield Named(path, file.read())
            except OSError as error:
                yield Named(
                    path, InputError.invalid(path, "the file", "be readable", got=one_line(error.strerror or error))
                )


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A chunk of pictures in a column of a Parquet file."""

    group: RowGroup
    start: int
    """The first row, counted from the start of the group."""
    stop: int
    """The row after the last."""
    column: str
    filesystem: fs.FileSystem | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    def contents(self) -> Iterator[Named]:
        """Yield the content of each row."""
        row = self.group.first_row + self.start
        for table in parquet.read_row_group(
            self.group, start=self.start, stop=self.stop, columns=[self.column], filesystem=self.filesystem
        ):
            found = columns.encoded(self.group.file, table.column(self.column).combine_chunks(), row)
            for value in found.to_pylist():
                yield Named(f"{self.group.file}: image[{row}]", value)
                row += 1


Chunk = Files | Rows


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the images shall be, as far as the user said; None is up to the pictures."""

    channels: int | None = None
    size: Size | None = None
    resize: Resize = "fit"


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The images of a chunk."""

    images: NDArray[np.uint8]
    """Grey `(N, height, width)`, or `(N, height, width, 3)`; empty if no size was wanted and the pictures have several.
    """
    kept: NDArray[np.int64]
    """Which pictures of the chunk they are, `(N,)`."""
    sizes: dict[Size, int] = field(default_factory=dict)
    """Number of pictures by their own size, if no size was wanted."""
    unreadable: list[str] = field(default_factory=list)
    """A message for each picture that cannot be read."""

    def to_bytes(self) -> bytes:
        """Return the content as a file of numpy."""
        notes = json.dumps(
            {"sizes": [[*size, number] for size, number in self.sizes.items()], "messages": self.unreadable}
        )
        stream = io.BytesIO()
        np.savez(stream, images=self.images, kept=self.kept, notes=np.frombuffer(notes.encode(), np.uint8))
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Decoded:
        """Return what `to_bytes` returned the content of."""
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            notes = json.loads(found["notes"].tobytes())
            sizes = {(height, width): number for height, width, number in notes["sizes"]}
            return cls(images=found["images"], kept=found["kept"], sizes=sizes, unreadable=notes["messages"])


Decode = Callable[[Sequence[Chunk], Wanted], Iterator[Decoded]]
"""Function that decodes chunks in their order: `decode_here`, or one that does so on a cluster."""


def decode(chunk: Chunk, wanted: Wanted) -> Decoded:
    """Decode the pictures of a chunk; those of several sizes, or of large ones, only if a size is wanted."""
    shown: list[NDArray[np.uint8]] = []
    kept, unreadable, sizes = [], [], Counter[Size]()
    for number, (name, content) in enumerate(chunk.contents()):
        try:
            if isinstance(content, InputError):
                raise content
            if wanted.size is None:
                size = size_of(content, name=name)
                sizes[size] += 1
                if len(sizes) > 1 or max(size) > MAX_KEPT_SIDE:
                    continue
            shown.append(_image(name, content, wanted))
            kept.append(number)
        except InputError as error:
            unreadable.append(str(error))
    if len(sizes) > 1:
        shown, kept = [], []
    return Decoded(
        images=_together(shown, wanted), kept=np.array(kept, np.int64), sizes=dict(sizes), unreadable=unreadable
    )


def _image(name: str, content: bytes, wanted: Wanted) -> NDArray[np.uint8]:
    """Return a picture as an image, grey `(height, width)` or `(height, width, 3)`."""
    if wanted.resize == "digit_box" and wanted.size:
        from mnist_pipe.data import images

        return images.load_whole(content, facts=Facts(shape=(1, *wanted.size)), name=name).image
    picture = quick(content)
    if picture is None:
        enough = sizing.enough(Facts(shape=(1, *wanted.size), resize="fit")) if wanted.size else None
        picture = Image.fromarray(read_picture(content, name=name, enough=enough).pixels)
    height, width = wanted.size or (picture.height, picture.width)
    channels = wanted.channels or (1 if picture.mode == "L" else 3)
    return np.asarray(sizing.sized(picture, shape=(channels, height, width), resize=wanted.resize))


def _together(shown: Sequence[NDArray[np.uint8]], wanted: Wanted) -> NDArray[np.uint8]:
    """Return images as one array, grey if all are: a picture of three equal channels is grey."""
    if not shown:
        return np.empty((0, 0, 0), np.uint8)
    if all(one.ndim == 2 for one in shown):
        return np.stack(shown)
    whole = np.stack([one if one.ndim == 3 else _three_channels(one) for one in shown])
    is_grey = wanted.channels is None and (whole == whole[..., :1]).all()
    return whole[..., 0] if is_grey else whole


def _three_channels(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return grey images in colour, with three equal channels behind their other dimensions."""
    return np.repeat(grey[..., np.newaxis], 3, axis=-1)


def decode_here(chunks: Sequence[Chunk], wanted: Wanted) -> Iterator[Decoded]:
    """Decode chunks on every CPU of this machine, and yield them in their order."""
    if len(chunks) <= 1 or num_cpus() == 1:
        yield from (decode(chunk, wanted) for chunk in chunks)
        return
    from joblib import Parallel, delayed

    yield from Parallel(n_jobs=num_cpus(), return_as="generator")(delayed(decode)(chunk, wanted) for chunk in chunks)


def decode_on_cluster(chunks: Sequence[Chunk], wanted: Wanted, *, readers: int) -> Iterator[Decoded]:
    """Decode chunks as a job of Ray Data, `readers` at a time, and yield them in their order; Ray must be connected."""
    from mnist_pipe.cluster.ordered_reader import read_in_order

    tables = read_in_order([(chunk, wanted) for chunk in chunks], _decode_as_table, node=None, readers=readers)
    for table in tables:
        for content in table.column("decoded").to_pylist():
            yield Decoded.from_bytes(content)


def _decode_as_table(chunk: Chunk, wanted: Wanted) -> Iterable[pa.Table]:
    return [pa.table({"decoded": pa.array([decode(chunk, wanted).to_bytes()], pa.large_binary())})]


class Reading(NamedTuple):
    """The pictures of a data set, decoded."""

    images: NDArray[np.uint8]
    """Grey `(N, height, width)`, or `(N, height, width, 3)`."""
    kept: NDArray[np.int64]
    """Which of the pictures they are, `(N,)`."""
    unreadable: list[str]
    """A message for each of the others."""


def read_all(
    chunks: Sequence[Chunk],
    wanted: Wanted,
    *,
    key: str,
    decode_chunks: Decode = decode_here,
    max_unreadable: int = 0,
    on_pictures: Callable[[int], None] = lambda _: None,
) -> Reading:
    """Return all pictures as images of one size.

    Without a wanted size it is that of the pictures if all have the same and no side is above `MAX_KEPT_SIDE`.
    Otherwise their proportions stay if all have one size, and the longer side becomes `AUTO_SIDE`; pictures of several
    sizes become squares of that side, or of the median of their longer sides if that is smaller.

    Args:
        chunks: the pictures.
        wanted: what the images shall be.
        key: the name of what was kept of an interrupted reading of the same pictures.
        decode_chunks: how the chunks are decoded.
        max_unreadable: the largest number of pictures that may be unreadable.
        on_pictures: called with the number of pictures that were read so far.

    Raises:
        InputError: more pictures are unreadable; the message names the first one.
    """
    resumed = partial(_resumed, chunks, decode_chunks=decode_chunks, on_pictures=on_pictures)
    found = list(resumed(wanted, key=key))
    if wanted.size is None:
        sizes = sum((Counter(one.sizes) for one in found), Counter[Size]())
        size = auto_size(sizes)
        if len(sizes) > 1 or size not in sizes:
            wanted = replace(wanted, size=size)
            found = list(resumed(wanted, key=f"{key}-sized"))
    unreadable = [message for one in found for message in one.unreadable]
    if len(unreadable) > max_unreadable:
        rule = f"be at most {max_unreadable} (ingest.max_unreadable)"
        got = f"{len(unreadable)}: {unreadable[0]}"
        raise InputError.invalid(
            "ingest", "the unreadable pictures", rule, got=got, fix="remove them or raise that number"
        )
    starts = np.cumsum([0, *map(len, chunks)])[:-1]
    kept = [start + one.kept for start, one in zip(starts.tolist(), found, strict=True)]
    parts = [one.images for one in found if len(one.images)]
    if any(part.ndim == 4 for part in parts):
        parts = [part if part.ndim == 4 else _three_channels(part) for part in parts]
    forget(key)
    return Reading(np.concatenate(parts) if parts else np.empty((0, 0, 0), np.uint8), np.concatenate(kept), unreadable)


def auto_size(sizes: Counter[Size]) -> Size:
    """Return the height and width of the images that are made of pictures of these sizes; see `read_all`."""
    if len(sizes) == 1:
        [(height, width)] = sizes
        scale = 1.0 if max(height, width) <= MAX_KEPT_SIDE else AUTO_SIDE / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))
    longer = sorted(max(size) for size in sizes.elements())
    side = min(AUTO_SIDE, longer[len(longer) // 2]) if longer else AUTO_SIDE
    return side, side


def _resumed(
    chunks: Sequence[Chunk],
    wanted: Wanted,
    *,
    key: str,
    decode_chunks: Decode,
    on_pictures: Callable[[int], None],
) -> Iterator[Decoded]:
    """Yield the chunks as decoded, those that an interrupted reading has kept from the disk."""
    folder, first, done = STATE / key, 0, 0
    for chunk in chunks:
        try:
            one = Decoded.from_bytes((folder / str(first)).read_bytes())
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # none, or the machine stopped while it was written
            break
        first, done = first + 1, done + len(chunk)
        on_pictures(done)
        yield one
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(decode_chunks(chunks[first:], wanted), start=first):
        # Not through `atomic`, which waits for the disk: that would take as long as the decoding.
        temporary = folder / f".{number}.tmp"
        temporary.write_bytes(one.to_bytes())
        temporary.replace(folder / str(number))
        done += len(chunks[number])
        on_pictures(done)
        yield one


def forget(key: str) -> None:
    """Remove what was kept of a reading."""
    for name in (key, f"{key}-sized"):
        shutil.rmtree(STATE / name, ignore_errors=True)


def chunked(files: Sequence[str], *, filesystem: fs.FileSystem | None = None) -> list[Files]:
    """Return picture files in chunks."""
    starts = range(0, len(files), PICTURES_AT_ONCE)
    return [Files(paths=tuple(files[start : start + PICTURES_AT_ONCE]), filesystem=filesystem) for start in starts]
