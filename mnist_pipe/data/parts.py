"""The splits of a user's own images in each format that `ingest` reads: what they hold, not yet decoded.

- images: a folder a class, `train/<class>/*.png`, optionally beside `test/` and `validation/`
- csv: a path and a label a row, or a label and a column for each pixel
- parquet: encoded pictures, lists of pixels or a column for each pixel, and a label
- npz: arrays of images and labels, as MedMNIST and Keras name them
- idx: the four files of MNIST
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray
from pyarrow import fs

from mnist_pipe.atomic import digest
from mnist_pipe.data import columns, idx, parquet
from mnist_pipe.data.arrays import grey_levels, images_of, labels_of, whole_numbers
from mnist_pipe.data.decoding import PICTURES_AT_ONCE, Chunk, Rows, chunked
from mnist_pipe.data.facts import Shape
from mnist_pipe.data.pictures import SUFFIXES
from mnist_pipe.data.sources import MAX_CONTENT_BYTES, SPLITS
from mnist_pipe.errors import CorruptDataError, InputError, PipelineError, UnavailableError, one_line

NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "valid", "val"), "validation"
)
"""The split that a folder or file of this name holds."""
_LABELS = ("label", "labels", "class", "target", "category")
_PATHS = ("path", "file", "filename", "file_name", "image", "image_path")
_IMAGES = ("image", "img", "picture", "pixels", "images")
_LITTER = ("thumbs.db", "desktop.ini")
_MAX_HEADER_BYTES = 1 << 20
_MAX_NPZ_BYTES = 4 * MAX_CONTENT_BYTES
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a user's images are."""

    path: str
    """A file or folder, in `filesystem`."""
    filesystem: fs.FileSystem | None = None
    """None is this machine's."""
    shape: Shape | None = None
    """The shape of images that are stored as rows of pixels, if `ingest.shape` says it."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One split: pictures or an array of images, and the name of the class of each."""

    names: Sequence[str]
    chunks: Sequence[Chunk] = ()
    """The pictures, if they are encoded."""
    images: NDArray[np.uint8] | None = None
    """The images, `(N, height, width)` or `(N, height, width, 3)`, if they are not."""
    classes: Sequence[str] = ()
    """The names of all classes in their order, if the format has them."""
    identity: str = ""
    """What changes if one of the pictures does."""


Parts = dict[str, Part]
"""The splits by name: `train`, and `test` and `validation` if there are such."""


# --- a folder a class


def read_images(place: Place) -> Parts:
    """Return the pictures in a folder of folders; each innermost name below the split is that of a class.

    The order is that of the files' names, numbers in them by value, whatever their folders.

    Raises:
        InputError: there is no such folder, a picture is in no class's folder, or there are fewer than two classes.
    """
    found = _listed(place)
    tops = {path.split("/")[0].lower() for path in found if "/" in path and path.lower().endswith(SUFFIXES)}
    has_splits = "train" in tops and tops <= NAMES.keys()
    by_split: dict[str, list[tuple[str, str]]] = {}
    for path in found:
        *folders, name = path.split("/")
        if has_splits and folders and folders[0].lower() not in NAMES:
            continue
        if len(folders) <= has_splits:
            if name.lower().endswith(SUFFIXES):
                where, rule = f"{place.path}/{path}", "be in the folder of its class"
                raise InputError.invalid(where, "the picture", rule, got="/".join(folders) or "no folder")
            continue
        split = NAMES[folders[0].lower()] if has_splits else "train"
        by_split.setdefault(split, []).append((folders[has_splits], path))
    if not by_split.get("train"):
        rule = "hold a folder of pictures for each class, or such folders in train/"
        raise InputError.invalid(place.path, "the folder", rule, got="none")
    parts = {}
    for split, pictures in by_split.items():
        ordered = sorted(pictures, key=lambda one: (_natural(one[1].rpartition("/")[2]), one[1]))
        chunks = chunked([f"{place.path}/{path}" for _, path in ordered], filesystem=place.filesystem)
        identity = digest([[path, found[path]] for _, path in ordered])
        parts[split] = Part(names=[name for name, _ in ordered], chunks=chunks, identity=identity)
    return parts


def _listed(place: Place) -> dict[str, list[int]]:
    """Return the path of each file below a folder, relative to it, with its size and time; hidden ones are left out.

    Raises:
        InputError: there is no such folder.
        UnavailableError: the file system does not answer.
    """
    found: dict[str, list[int]] = {}
    if place.filesystem:
        try:
            infos = place.filesystem.get_file_info(fs.FileSelector(place.path, recursive=True))
        except FileNotFoundError:
            raise InputError.missing(place.path, where="ingest.path") from None
        except OSError as error:
            raise UnavailableError.unreachable("the storage", where=place.path, cause=one_line(error)) from error
        for info in infos:
            if info.is_file:
                found[info.path.removeprefix(f"{place.path}/")] = [info.size or 0, info.mtime_ns or 0]
    elif not Path(place.path).is_dir():
        state = "is no folder" if Path(place.path).exists() else "does not exist"
        raise InputError.missing(place.path, state=state, where="ingest.path")
    else:
        folders, seen = [place.path], {os.path.realpath(place.path)}
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir():
                        target = os.path.realpath(entry.path)
                        if target not in seen:  # a link to a folder above it would lead in a circle
                            folders.append(entry.path)
                        seen.add(target)
                    else:
                        status = os.lstat(entry.path)
                        found[entry.path.removeprefix(f"{place.path}/")] = [status.st_size, status.st_mtime_ns]
    return {
        path: facts
        for path, facts in found.items()
        if not any(part.startswith((".", "__MACOSX")) for part in path.split("/"))
        and path.rpartition("/")[2].lower() not in _LITTER
    }


def _natural(name: str) -> list[Any]:
    """Return a sort key by which `9.png` comes before `10.png`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


# --- CSV


def read_csv(place: Place) -> Parts:
    """Return the rows of a CSV file with a header, or of `train.csv`, and `test.csv` and `validation.csv`, in a folder.

    A row has a label, and the path of a picture relative to the file, or the pixels of an image, row by row and, in
    colour, the channels of a pixel beside each other. A test file without labels, such as Kaggle's, is left out.

    Raises:
        InputError: there is no such file, or it has no column of labels or of images.
        CorruptDataError: a file is no CSV, or a value is missing or no grey level.
    """
    parts = {}
    for split, path in _files_of(place, ".csv").items():
        header = _header(path)
        label = _one_of(header, _LABELS)
        if label is None and split == "test":
            continue
        if label is None:
            raise _no_column(path, "label", _LABELS, header)
        table = _read_table(path, label=label)
        names = _label_names(path, table.column(label))
        pixels = columns.pixel_columns(pa.schema([field for field in table.schema if field.name != label]))
        if pixels:
            flat = _pixel_values(path, table, pixels)
            parts[split] = Part(names=names, images=_shaped(path, flat, place.shape))
            continue
        column = _one_of(header, _PATHS)
        if column is None:
            raise _no_column(path, "path", _PATHS, header)
        folder = Path(path).parent
        pictures = [str(folder / str(value)) for value in table.column(column).to_pylist()]
        parts[split] = Part(names=names, chunks=chunked(pictures), identity=_identity(pictures))
    return parts


def _header(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:  # noqa: PTH123
            return next(csv.reader([stream.readline(_MAX_HEADER_BYTES)]), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CorruptDataError.invalid(path, "the file", "be CSV with a header", got=one_line(error)) from error


def _read_table(path: str, *, label: str) -> pa.Table:
    # Labels and paths stay text: `01` is another class than `1`.
    texts = {name: pa.string() for name in (label, *_PATHS)}
    try:
        table = pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(column_types=texts))
    except (pa.ArrowException, OSError) as error:
        raise CorruptDataError.invalid(path, "the file", "be CSV with a header", got=one_line(error)) from error
    if not len(table):
        raise CorruptDataError.invalid(path, "the table", "have rows", got=0)
    if len(set(table.column_names)) < len(table.column_names):
        got = next(name for name in table.column_names if table.column_names.count(name) > 1)
        raise CorruptDataError.invalid(path, "every column", "have a unique name", got=repr(got))
    return table


def _pixel_values(path: str, table: pa.Table, names: Sequence[str]) -> NDArray[np.uint8]:
    """Return columns of pixels, uint8 `(N, columns)`; those of whole numbers one by one, which takes little memory."""
    for name in names:
        columns.check_present(path, table.column(name), 0)
    found = [table.column(name) for name in names]
    if any(pa.types.is_floating(column.type) for column in found):
        return grey_levels(path, np.stack([column.to_numpy().astype(np.float32) for column in found], axis=1))
    pixels = np.empty((len(table), len(names)), dtype=np.uint8)
    for number, column in enumerate(found):
        pixels[:, number] = whole_numbers(path, column.to_numpy())
    return pixels


def _shaped(path: str, flat: NDArray[Any], shape: Shape | None) -> NDArray[np.uint8]:
    """Return rows of pixels as images, of the given shape if it has as many values, or else square."""
    levels = grey_levels(path, flat)
    if shape and levels.ndim == 2 and shape[0] * shape[1] * shape[2] == levels.shape[1]:
        channels, height, width = shape
        levels = levels.reshape(-1, *((height, width) if channels == 1 else (height, width, channels)))
    return images_of(path, levels, name="the pixels")


# --- Parquet


def read_parquet(place: Place) -> Parts:
    """Return the rows of a Parquet file, or of the files in a folder whose names say their split.

    The column of images holds encoded pictures, which may be the field `bytes` of a struct, as Hugging Face writes it,
    raw pixels as fixed-size binary or lists, or there is a column for each pixel. Names of classes in Hugging Face's
    metadata are used.

    Raises:
        InputError: there is no such file, or it has no column of labels or of images.
        CorruptDataError: a file is not Parquet, or a value is missing or no grey level.
        UnavailableError: the file system does not answer.
    """
    grouped: dict[str, list[str]] = {}
    for file in _parquet_files(place):
        grouped.setdefault(_split_of(Path(file).stem), []).append(file)
    if set(grouped) == {"test"} or set(grouped) == {"validation"}:
        grouped = {"train": next(iter(grouped.values()))}
    return {split: _parquet_part(files, place) for split, files in grouped.items()}


def _parquet_part(files: Sequence[str], place: Place) -> Part:
    schema = parquet.read_schema(files[0], filesystem=place.filesystem)
    for field in schema:
        if not columns.is_plain(field):  # decoding an extension type can run code
            raise InputError.invalid(files[0], f"the column {field.name}", "be of a plain type", got=field.type)
    label = _one_of(schema.names, _LABELS)
    if label is None:
        raise _no_column(files[0], "label", _LABELS, schema.names)
    image = next((n for n in schema.names if n.lower() in _IMAGES and columns.holds_images(schema.field(n).type)), None)
    pixels = columns.pixel_columns(pa.schema([field for field in schema if field.name != label]))
    if image is None and not pixels:
        raise _no_column(files[0], "image", _IMAGES, schema.names)
    groups = [group for file in files for group in parquet.row_groups(file, filesystem=place.filesystem)]
    wanted = [label] if image and _is_encoded(schema.field(image).type) else [label, *([image] if image else pixels)]
    tables = [
        table
        for group in groups
        for table in parquet.read_row_group(group, columns=wanted, filesystem=place.filesystem)
    ]
    if not tables:
        raise CorruptDataError.invalid(files[0], "the table", "have rows", got=0)
    table = pa.concat_tables(tables)
    classes = _hugging_face_classes(schema, label)
    names = _label_names(files[0], table.column(label))
    if classes:
        names = _named(files[0], names, classes)
    if image is None:
        return Part(names=names, images=_shaped(files[0], _pixel_values(files[0], table, pixels), place.shape))
    if image in wanted:
        column = table.column(image).combine_chunks()
        if pa.types.is_fixed_size_binary(column.type):
            columns.check_present(files[0], column, 0)
            flat: NDArray[Any] = parquet.array_values(column, np.dtype(np.uint8), column.type.byte_width)
        else:
            flat = columns.numbers(files[0], column, 0)
        return Part(names=names, images=_shaped(files[0], flat, place.shape), classes=classes)
    chunks = [
        Rows(
            group=group,
            start=start,
            stop=min(start + PICTURES_AT_ONCE, group.num_rows),
            column=image,
            filesystem=place.filesystem,
        )
        for group in groups
        for start in range(0, group.num_rows, PICTURES_AT_ONCE)
    ]
    identity = _identity(files) if place.filesystem is None else digest([str(group) for group in groups])
    return Part(names=names, chunks=chunks, classes=classes, identity=identity)


def _is_encoded(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) or columns.is_binary(kind))


def _hugging_face_classes(schema: pa.Schema, label: str) -> tuple[str, ...]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (LookupError, ValueError, TypeError):
        return ()


def _named(path: str, numbers: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return the names of classes that are numbers."""
    known = {str(number): name for number, name in enumerate(classes)}
    wrong = next((number for number in numbers if number not in known), None)
    if wrong is not None:
        raise CorruptDataError.invalid(path, "every label", f"be 0 to {len(classes) - 1}", got=wrong)
    return [known[number] for number in numbers]


# --- npz


def read_npz(place: Place) -> Parts:
    """Return the arrays of an npz file: `train_images` and `train_labels`, or `x_train` and `y_train`, and so on.

    Raises:
        InputError: there is no such file, or it has no images and labels for training.
        CorruptDataError: the file is damaged, or an array has another shape or another type.
    """
    path = _file_of(place, ".npz")
    parts: Parts = {}
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
            if size > _MAX_NPZ_BYTES:
                rule = f"be at most {_MAX_NPZ_BYTES} bytes"
                raise CorruptDataError.invalid(path, "the content", rule, got=f"{size} bytes")
            if wrong := archive.testzip():  # numpy reads no further than an array's header says, and so to no checksum
                raise CorruptDataError.invalid(path, wrong, "match its checksum", got="a different one")
        with np.load(path, allow_pickle=False) as arrays:
            for images, labels, split in _arrays_of(path, arrays.files):
                found, given = arrays[images], arrays[labels]
                pixels = grey_levels(path, images_of(path, found, name=images))
                parts[split] = Part(names=_texts(labels_of(path, given, name=labels)), images=pixels)
    except FileNotFoundError:
        raise InputError.missing(path, where="ingest.path") from None
    except PipelineError:
        raise
    except (ValueError, OSError, EOFError, LookupError, MemoryError, NotImplementedError, *_ZIP_ERRORS) as error:
        raise CorruptDataError.invalid(path, "the file", "be npz without pickles", got=one_line(error)) from error
    if "train" not in parts:
        rule = "hold train_images and train_labels, or x_train and y_train"
        raise InputError.invalid(path, "the file", rule, got="neither")
    return parts


def _arrays_of(path: str, names: Iterable[str]) -> list[tuple[str, str, str]]:
    """Return the names of the images and labels of each split, and the split's name.

    Raises:
        CorruptDataError: a split has one of the two alone.
    """
    known, found = set(names), []
    pairs = [(f"{name}_images", f"{name}_labels", split) for name, split in NAMES.items()]
    for images, labels, split in [*pairs, *((f"x_{name}", f"y_{name}", split) for name, split in NAMES.items())]:
        if missing := {images, labels} - known:
            if len(missing) == 1:
                [one] = missing
                raise CorruptDataError.invalid(path, "the file", f"hold {images} and {labels}", got=f"no {one}")
            continue
        found.append((images, labels, split))
    return found


# --- IDX


def read_idx(place: Place) -> Parts:
    """Return the IDX files of a folder: images and labels for training, and for testing if they are there.

    Raises:
        InputError: a file is missing, or several could be meant.
        CorruptDataError: a file is damaged or holds something else.
    """
    found = idx_files(place.path)
    parts = {}
    for split, (images, labels) in SPLITS.items():
        if images in found:
            pixels = idx.read(found[images], kind="images", max_bytes=MAX_CONTENT_BYTES)
            numbers = idx.read(found[labels], kind="labels", max_bytes=MAX_CONTENT_BYTES)
            parts[split] = Part(names=_texts(numbers), images=pixels)
    return parts


def idx_files(folder: str) -> dict[str, Path]:
    """Return the paths of MNIST's four files, or of the two for training, by their names in `SPLITS`.

    They lie in the folder or up to two below it, together or each in its own folder. Their names may be in upper case,
    end in `.gz`, `.xz` or `.bz2`, have a dot before `idx`, as Kaggle's have, another rank and type behind it, as
    QMNIST's have, and `test` for `t10k`.

    Raises:
        InputError: a file is missing, or several could be meant.
    """
    root = Path(folder)
    if not root.is_dir():
        state = "is no folder" if root.exists() else "does not exist"
        raise InputError.missing(folder, state=state, where="ingest.path")
    found: dict[str, dict[Path, Path]] = {name: {} for pair in SPLITS.values() for name in pair}
    known = {re.sub(r"idx.*", "", name): name for name in found}
    for pattern in ("*", "*/*", "*/*/*"):
        # Of a packed and an unpacked file in one folder, the packed one is taken.
        for path in sorted(root.glob(pattern), key=lambda path: (path.parent, not _is_packed(path), path)):
            name = re.sub(r"[._]", "-", path.name.lower()).replace("test-", "t10k-")
            match = re.fullmatch(r"(?:.*-)?((?:train|t10k)-(?:images|labels)-)idx\d-\w+(?:-gz|-xz|-bz2)?", name)
            if match and path.is_file():
                found[known[match[1]]].setdefault(path.parent, path)
        if all(found.values()):
            break
    if not any(found[name] for name in SPLITS["test"]):
        found = {name: found[name] for name in SPLITS["train"]}
    together = set.intersection(*map(set, found.values()))
    if len(together) == 1:
        [parent] = together
        return {name: by_folder[parent] for name, by_folder in found.items()}
    for name, by_folder in found.items():
        if not by_folder:
            rule, got = f"hold {name}.gz or {name}", f"neither in {root} nor up to two folders below it"
            raise InputError.invalid("ingest", "path", rule, got=got)
        if len(by_folder) > 1:
            got = " and ".join(str(path.relative_to(root)) for path in by_folder.values())
            raise InputError.invalid("ingest", "path", f"hold one {name}", got=got, fix="name the right folder")
    return {name: path for name, by_folder in found.items() for path in by_folder.values()}


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() in (".gz", ".xz", ".bz2")


# --- what several formats share


def _file_of(place: Place, suffix: str) -> str:
    """Return the file at a place, or the only one with this suffix in its folder."""
    path = Path(place.path)
    if not path.is_dir():
        return place.path
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == suffix and not file.name.startswith("."))
    if len(files) != 1:
        got = ", ".join(file.name for file in files) or "none"
        raise InputError.invalid(place.path, "the folder", f"hold one *{suffix}", got=got, fix="name the file")
    return str(files[0])


def _files_of(place: Place, suffix: str) -> dict[str, str]:
    """Return the file of each split at a place: a file, or a folder of files whose names say their split."""
    path = Path(place.path)
    if not path.is_dir():
        if not path.exists():
            raise InputError.missing(place.path, where="ingest.path")
        return {"train": place.path}
    files = {file.stem.lower(): str(file) for file in sorted(path.iterdir()) if file.suffix.lower() == suffix}
    found = {split: files[name] for name, split in reversed(NAMES.items()) if name in files}
    return {"train": found.pop("train"), **found} if "train" in found else {"train": _file_of(place, suffix)}


def _parquet_files(place: Place) -> list[str]:
    """Return the Parquet files at a place, in a folder also those one folder below, sorted.

    Raises:
        InputError: there are none.
        UnavailableError: the file system does not answer.
    """
    if place.filesystem is None and Path(place.path).is_dir():
        files = sorted(str(file) for file in itertools.chain(*(Path(place.path).glob(p) for p in ("*", "*/*"))))
        files = [file for file in files if file.endswith(".parquet")]
        if not files:
            raise InputError.missing("no *.parquet file", state="is in the folder", where=place.path)
        return files
    return parquet.parquet_files(place.path, filesystem=place.filesystem)


def _split_of(stem: str) -> str:
    """Return the split that the name of a file starts with, as in `train-00000-of-00001`; by default train."""
    return NAMES.get(re.split(r"[-_.]", stem.lower())[0], "train")


def _one_of(names: Sequence[str], known: Sequence[str]) -> str | None:
    """Return the name that is one of the known ones, in the order of those, whatever its case."""
    lower = {name.lower(): name for name in names}
    return next((lower[name] for name in known if name in lower), None)


def _no_column(path: str, what: str, known: Sequence[str], names: Sequence[str]) -> InputError:
    got = f"{', '.join(names[:8])}{', …' if len(names) > 8 else ''}" or "none"
    return InputError.invalid(path, "the columns", f"hold one of {', '.join(known)} ({what})", got=got)


def _label_names(path: str, column: pa.ChunkedArray) -> list[str]:
    """Return a column of labels, whole numbers or text, as names.

    Raises:
        CorruptDataError: a label is missing, or is neither.
    """
    column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type) or pa.types.is_boolean(column.type):
        column = pa.array(labels_of(path, column.to_numpy(zero_copy_only=False)))
    if not (
        pa.types.is_integer(column.type) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ):
        raise CorruptDataError.invalid(path, "the labels", "be whole numbers or text", got=column.type)
    values = column.to_pylist()
    missing = next((row for row, value in enumerate(values) if value in (None, "")), None)
    if missing is not None:
        raise CorruptDataError.invalid(path, f"label[{missing}]", "have a value", got="none")
    return [str(value) for value in values]


def _texts(labels: NDArray[Any]) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in labels.tolist()]


def _identity(files: Sequence[str]) -> str:
    """Return what changes if one of the files does, as far as its size and time tell."""
    facts = []
    for file in files:
        try:
            status = Path(file).stat()
            facts.append([file, status.st_size, status.st_mtime_ns])
        except OSError:
            facts.append([file])
    return digest(facts)


READERS: Mapping[str, Callable[[Place], Parts]] = {
    "images": read_images,
    "csv": read_csv,
    "parquet": read_parquet,
    "npz": read_npz,
    "idx": read_idx,
}
"""The reader of each of `schema.FORMATS`."""
