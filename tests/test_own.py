"""Test the reading of a user's own images: every format, what becomes of pictures, and every refusal."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from mnist_pipe.data import decoding, images, ingestion, normalization, parts, sources
from mnist_pipe.data.decoding import Wanted, auto_size
from mnist_pipe.data.pictures import quick, read_picture
from mnist_pipe.data.splits import RawSplit, read_raw
from mnist_pipe.errors import InputError, PipelineError
from mnist_pipe.params import schema
from tests.support.data import ingest_params
from tests.support.own import FORMATS, NUMBERED, as_csv_of_paths, as_csv_of_pixels, as_images, drawn, png

NAMES = ("cat", "dog", "owl")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty project, where unfinished readings are kept."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")


def read(dataset: str, path: Path, **changes: Any) -> dict[str, RawSplit]:
    return ingestion.read(ingest_params(dataset=dataset, name="mine", **changes), path=str(path))


def error(dataset: str, path: Path, **changes: Any) -> str:
    with pytest.raises(PipelineError) as caught:
        read(dataset, path, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{path}", "HERE")


def channels_last(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images if images.ndim == 3 else images.transpose(0, 2, 3, 1)


def sorted_rows(images: NDArray[np.uint8], labels: list[str]) -> list[tuple[str, bytes]]:
    return sorted(zip(labels, (image.tobytes() for image in images), strict=True))


def rows_of(split: RawSplit) -> list[tuple[str, bytes]]:
    return sorted_rows(channels_last(split.images), [split.facts.labels[label] for label in split.labels])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_pixels_classes_and_splits(tmp_path: Path, form: str, channels: int) -> None:
    dataset, write = FORMATS[form]
    splits = {
        "train": drawn(60, size=(16, 16), channels=channels),
        "test": drawn(12, size=(16, 16), channels=channels, seed=1),
    }
    found = read(dataset, write(tmp_path / "mine", splits))
    for name, split in found.items():
        pixels, names = splits[name]
        if form in NUMBERED:
            names = [str(NAMES.index(one)) for one in names]
        assert rows_of(split) == sorted_rows(pixels, names)
        facts = split.facts
        assert (facts.shape, facts.resize) == ((channels, 16, 16), "fit")
        assert facts.labels == (("0", "1", "2") if form in NUMBERED else NAMES)
        assert (split.provenance["dataset"], split.provenance["format"]) == ("mine", dataset)
    # Rows that are in turn stay in the order of the files.
    np.testing.assert_array_equal(channels_last(found["train"].images), splits["train"][0])


@pytest.mark.services
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Prefect leaves a run's socket open
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_goes_through_the_real_stage(tmp_path: Path, form: str) -> None:
    from pipelines.ingest import ingest

    dataset, write = FORMATS[form]
    splits = {"train": drawn(60, size=(16, 16), channels=3), "test": drawn(12, size=(16, 16), channels=3, seed=1)}
    path = write(tmp_path / "mine", splits)
    ingest(ingest_params(dataset=dataset, name="mine", path=str(path)))
    for name, expected in read(dataset, path).items():
        found = read_raw(Path(f"data/raw/{name}.parquet"))
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.labels, expected.labels)
        assert found.provenance == expected.provenance


# --- pictures


def test_a_picture_becomes_at_ingest_what_it_becomes_at_predict(tmp_path: Path) -> None:
    """Of several sizes, colour models and formats, light and dark: one rule for training and for use."""
    random = np.random.default_rng(0)
    root, kinds = (
        tmp_path / "mine",
        [
            ("L", ".png"),
            ("RGB", ".jpg"),
            ("P", ".png"),
            ("RGBA", ".webp"),
            ("I;16", ".tif"),
            ("1", ".bmp"),
            ("LA", ".png"),
            ("RGB", ".png"),
            ("CMYK", ".tif"),
        ],
    )
    for number in range(36):
        mode, suffix = kinds[number % len(kinds)]
        shape = (int(random.integers(10, 90)), int(random.integers(10, 90)))
        grey = np.full(shape, (20, 235)[number // 9 % 2], dtype=np.uint8)
        grey[shape[0] // 4 : shape[0] // 2, shape[1] // 3 : shape[1] // 2] = random.integers(0, 256)
        picture = (
            Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
        )
        folder = root / NAMES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{number}{suffix}")
    splits = read("images", root, test_share=0.5)
    facts = splits["train"].facts
    expected = []
    for path in root.rglob("*.*"):
        expected.append(
            (path.parent.name, channels_last(images.load_image(path, facts=facts)[np.newaxis])[0].tobytes())
        )
    assert sorted([*rows_of(splits["train"]), *rows_of(splits["test"])]) == sorted(expected)
    assert facts.shape == (1, 64, 64) or facts.shape[1] == facts.shape[2] <= 64


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3]))))
def test_the_quick_reader_of_png_gives_what_the_thorough_one_gives(pixels: NDArray[np.uint8]) -> None:
    content = png(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    found = quick(content)
    assert found is not None
    assert found.mode == ("L" if pixels.shape[2] == 1 else "RGB")
    np.testing.assert_array_equal(np.asarray(found.convert("RGB")), read_picture(content).pixels)


def test_the_quick_reader_leaves_every_other_picture_to_the_thorough_one() -> None:
    grey = drawn(1)[0][0]
    for mode in ("P", "LA", "RGBA", "1"):
        stream = io.BytesIO()
        Image.fromarray(grey).convert(mode).save(stream, "PNG")
        assert quick(stream.getvalue()) is None
    intact, wrong = png(grey), []
    for bit in range(8 * len(intact)):
        flipped = bytearray(intact)
        flipped[bit // 8] ^= 1 << bit % 8
        found = quick(bytes(flipped))
        wrong += [] if found is None or np.array_equal(np.asarray(found), grey) else [bit]
    assert wrong == []
    assert all(quick(intact[:length]) is None for length in range(len(intact)))


def test_a_lying_photograph_is_turned_and_its_size_counted_upright(tmp_path: Path) -> None:
    tall = np.zeros((40, 20, 3), np.uint8)
    tall[:20] = 255
    turned = Image.fromarray(np.rot90(tall).copy())
    exif = turned.getexif()
    exif[0x0112] = 6  # shown after a turn to the right
    for number, name in enumerate(NAMES * 2):
        (tmp_path / name).mkdir(exist_ok=True)
        turned.save(tmp_path / name / f"{number}.jpg", exif=exif, quality=100)
    split = read("images", tmp_path, channels=3)["train"]
    assert split.facts.shape == (3, 40, 20)
    assert split.images[0, 0, :15].min() > 200
    assert split.images[0, 0, 25:].max() < 60


@pytest.mark.parametrize(("sizes", "expected"), [
    ({(64, 48): 9}, (64, 48)),
    ({(128, 100): 9}, (128, 100)),
    ({(480, 640): 9}, (48, 64)),
    ({(28, 28): 5, (30, 20): 6}, (30, 30)),
    ({(28, 28): 1, (300, 200): 6}, (64, 64)),
])  # fmt: skip
def test_auto_takes_the_size_of_the_pictures_or_a_small_square(
    sizes: dict[tuple[int, int], int], expected: tuple[int, int]
) -> None:
    assert auto_size(Counter(sizes)) == expected


@pytest.mark.parametrize(("changes", "shape"), [
    ({}, (1, 20, 16)),
    ({"shape": [1, 10, 10]}, (1, 10, 10)),
    ({"shape": [3, 12, 8]}, (3, 12, 8)),
    ({"channels": 3}, (3, 20, 16)),
    ({"shape": [1, 28, 28], "resize": "stretch"}, (1, 28, 28)),
    ({"resize": "digit_box"}, (1, 28, 28)),
])  # fmt: skip
@pytest.mark.parametrize("dataset", ["images", "npz"])
def test_shape_channels_and_resize_are_what_was_asked_for(
    tmp_path: Path, dataset: str, changes: dict[str, Any], shape: tuple[int, ...]
) -> None:
    path = FORMATS[dataset][1](tmp_path / "mine", {"train": drawn(30)})
    split = read(dataset, path, **changes)["train"]
    if dataset == "npz" and changes == {"resize": "digit_box"}:
        shape = (1, 20, 16)  # arrays are images already
    assert split.facts.shape == shape
    assert split.images.shape[1:] == (shape if shape[0] == 3 else shape[1:])


def test_drawings_on_light_ground_are_inverted_and_photographs_are_not(tmp_path: Path) -> None:
    dark, names = drawn(30)
    splits = {
        "plain": read("images", as_images(tmp_path / "plain", {"train": (dark, names)}))["train"],
        "light": read("images", as_images(tmp_path / "light", {"train": (255 - dark, names)}))["train"],
    }
    assert rows_of(splits["plain"]) == rows_of(splits["light"])
    assert (splits["light"].facts.invert, splits["light"].facts.background) == ("auto", (0,))
    kept = read("images", tmp_path / "light", invert=False)["train"]
    assert (kept.facts.invert, kept.facts.background) == (False, (255,))
    assert rows_of(kept) != rows_of(splits["light"])
    turned = read("images", tmp_path / "plain", invert=True)["train"]
    assert rows_of(turned) == rows_of(kept)
    random = np.random.default_rng(0)
    photographs = random.integers(0, 256, dark.shape, dtype=np.uint8)
    photograph = read("images", as_images(tmp_path / "photographs", {"train": (photographs, names)}))["train"]
    assert photograph.facts.invert is False


# --- order and splits


def test_rows_that_are_sorted_by_class_are_mixed_and_others_stay(tmp_path: Path) -> None:
    pixels, names = drawn(90)
    order = np.argsort(names, kind="stable")
    in_turn = read("npz", FORMATS["npz"][1](tmp_path / "a", {"train": (pixels, names), "test": drawn(3)}))["train"]
    np.testing.assert_array_equal(in_turn.images, pixels)
    by_class = (pixels[order], [names[row] for row in order])
    mixed = read("npz", FORMATS["npz"][1](tmp_path / "b", {"train": by_class, "test": drawn(3)}))["train"]
    assert rows_of(mixed) == rows_of(in_turn)
    assert set(mixed.labels[:12].tolist()) == {0, 1, 2}


def test_files_are_in_the_order_of_the_numbers_in_their_names(tmp_path: Path) -> None:
    pixels, names = drawn(120)
    found = read("images", as_images(tmp_path / "mine", {"train": (pixels, names), "test": drawn(3)}))
    np.testing.assert_array_equal(found["train"].images, pixels)


def test_without_a_test_split_a_stratified_share_is_taken_with_the_seed(tmp_path: Path) -> None:
    path = as_images(tmp_path / "mine", {"train": drawn(90)})
    splits = read("images", path)
    assert np.bincount(splits["test"].labels).tolist() == [6, 6, 6]
    assert sorted([*rows_of(splits["train"]), *rows_of(splits["test"])]) == sorted_rows(*drawn(90))
    assert rows_of(read("images", path)["test"]) == rows_of(splits["test"])
    assert rows_of(read("images", path, seed=1)["test"]) != rows_of(splits["test"])
    assert len(read("images", path, test_share=0.5)["test"].labels) == 45


def test_a_given_validation_split_is_the_one_that_is_used(tmp_path: Path) -> None:
    splits = {"train": drawn(60), "validation": drawn(15, seed=2), "test": drawn(12, seed=1)}
    raw = read("images", as_images(tmp_path / "mine", splits))
    assert raw["train"].provenance["given_validation"] == 15
    normalized, report = normalization.normalize(raw["train"], raw["test"], validation_rows=3, seed=0)
    held_out = raw["train"].images[normalized["validation"].index]
    np.testing.assert_array_equal(np.sort(held_out, axis=0), np.sort(splits["validation"][0], axis=0))
    assert report["rows"] == {"train": 60, "validation": 15, "test": 12}


def test_duplicates_across_splits_are_counted_and_dropped_from_training_alone(tmp_path: Path) -> None:
    pixels, names = drawn(200)
    test = (np.concatenate([pixels[:1], drawn(199, seed=1)[0]]), ["cat", *drawn(199, seed=1)[1]])
    twice = (np.concatenate([pixels, pixels[5:7]]), [*names, *names[5:7]])
    path = as_images(tmp_path / "mine", {"train": twice, "test": test})
    raw = read("images", path)
    _, report = normalization.normalize(raw["train"], raw["test"], validation_rows=30, seed=0)
    assert report["test_images_in_train"] == 1
    dropped = read("images", path, drop_duplicates=True)
    assert dropped["train"].provenance["dropped_duplicates"] == 3
    assert (len(dropped["train"].labels), len(dropped["test"].labels)) == (199, 200)
    _, report = normalization.normalize(dropped["train"], dropped["test"], validation_rows=30, seed=0)
    assert (report["test_images_in_train"], report["dropped_duplicates"]) == (0, 3)


@pytest.mark.parametrize(("names", "order"), [
    (("10", "9", "100"), ("9", "10", "100")),
    (("b", "a", "10"), ("10", "a", "b")),
    (("01", "1"), ("01", "1")),
])  # fmt: skip
def test_classes_are_in_the_order_of_their_numbers_or_of_their_names(
    tmp_path: Path, names: tuple[str, ...], order: tuple[str, ...]
) -> None:
    path = as_csv_of_paths(tmp_path / "mine", {"train": drawn(30, names=names)})
    assert read("csv", path)["train"].facts.labels == order


# --- a reading that takes long


def test_a_reading_that_was_interrupted_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "PICTURES_AT_ONCE", 10)
    path = as_images(tmp_path / "mine", {"train": drawn(60)})
    expected = read("images", path)
    assert not list(decoding.STATE.glob("*"))  # nothing is kept of a finished reading
    decoded: list[int] = []

    def breaks_off(chunks: Any, wanted: Wanted) -> Any:
        for number, chunk in enumerate(chunks):
            if number == 4 and len(chunks) == 6:
                raise KeyboardInterrupt
            decoded.append(number)
            yield decoding.decode(chunk, wanted)

    params = ingest_params(dataset="images", name="mine")
    with pytest.raises(KeyboardInterrupt):
        ingestion.read(params, path=str(path), decode_chunks=breaks_off)
    decoded.clear()
    seen: list[int] = []
    found = ingestion.read(
        params, path=str(path), decode_chunks=breaks_off, on_pictures=lambda done, _: seen.append(done)
    )
    assert decoded == [0, 1]  # of six chunks, four had been decoded
    assert seen == [10, 20, 30, 40, 50, 60]
    np.testing.assert_array_equal(found["train"].images, expected["train"].images)


def test_a_changed_picture_is_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_images(tmp_path / "mine", {"train": drawn(30), "test": drawn(3)})
    monkeypatch.setattr(decoding, "forget", lambda _: None)
    before = read("images", path)
    Image.fromarray(drawn(30, seed=5)[0][0]).save(path / "train/cat/0.png")
    assert not np.array_equal(read("images", path)["train"].images[0], before["train"].images[0])


def test_pictures_are_decoded_on_every_cpu_as_on_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "PICTURES_AT_ONCE", 10)
    path = as_images(tmp_path / "mine", {"train": drawn(60)})
    several = read("images", path)
    monkeypatch.setattr(decoding, "num_cpus", lambda: 1)
    one = read("images", path)
    np.testing.assert_array_equal(several["train"].images, one["train"].images)


def test_every_format_of_the_parameters_has_a_reader() -> None:
    assert tuple(parts.READERS) == schema.FORMATS


# --- refusals, each with its whole message


def damaged(root: Path) -> Path:
    path = as_images(root, {"train": drawn(12)})
    (path / "cat" / "0.png").write_bytes(b"no picture")
    (path / "dog" / "1.png").write_bytes(png(drawn(1)[0][0])[:40])
    return path


def test_unreadable_pictures_are_refused_or_listed(tmp_path: Path) -> None:
    path = damaged(tmp_path / "mine")
    message = error("images", path)
    assert message.startswith(
        "ingest: the unreadable pictures must be at most 0 (ingest.max_unreadable), but got 2: HERE/cat/0.png: the "
        "content must be a PNG, JPEG, BMP, TIFF or WebP image, but got "
    )
    assert message.endswith("; remove them or raise that number")
    found = read("images", path, max_unreadable=2)["train"].provenance
    assert found["num_unreadable"] == 2
    assert [re.sub(r" must.*", "", message.replace(str(path), "HERE")) for message in found["unreadable"]] == [
        "HERE/cat/0.png: the content",
        "HERE/dog/1.png: the content",
    ]


REFUSALS: dict[str, tuple[str, Callable[[Path], Path], dict[str, Any], str]] = {}


def refusal(message: str, dataset: str = "images", **changes: Any) -> Callable[[Callable[[Path], Path]], None]:
    def add(make: Callable[[Path], Path]) -> None:
        REFUSALS[make.__name__] = dataset, make, changes, message

    return add


@refusal("ingest.path: HERE does not exist")
def nothing(root: Path) -> Path:
    return root


@refusal("ingest.path: HERE is no folder")
def a_file_for_a_folder(root: Path) -> Path:
    root.write_text("x")
    return root


@refusal("HERE: the folder must hold a folder of pictures for each class, or such folders in train/, but got none")
def an_empty_folder(root: Path) -> Path:
    (root / "cat").mkdir(parents=True)
    (root / "README.md").write_text("x")
    return root


@refusal("HERE/3.png: the picture must be in the folder of its class, but got no folder")
def a_picture_in_no_folder(root: Path) -> Path:
    path = as_images(root, {"train": drawn(12)})
    (path / "dog" / "1.png").rename(path / "3.png")
    return path


@refusal("HERE/train/3.png: the picture must be in the folder of its class, but got train")
def a_picture_in_no_class(root: Path) -> Path:
    path = as_images(root, {"train": drawn(12), "test": drawn(6)})
    (path / "train" / "dog" / "1.png").rename(path / "train" / "3.png")
    return path


@refusal("HERE: the images must have 2 to 256 classes, but got 1")
def one_class(root: Path) -> Path:
    return as_images(root, {"train": drawn(4, names=("cat",))})


@refusal("HERE: the images must have 2 to 256 classes, but got 300")
def too_many_classes(root: Path) -> Path:
    return as_images(root, {"train": drawn(300, names=tuple(map(str, range(300))), size=(4, 4))})


@refusal("HERE: the class owl must have 2 images or more for training, but got 1; add images or remove it")
def a_class_with_one_image(root: Path) -> Path:
    pixels, names = drawn(9)
    return as_images(root, {"train": (pixels, [*names[:3], *["cat"] * 3, *["dog"] * 3])})


@refusal("HERE: every image of test must have one of the 3 classes of train, but got 'eel'")
def a_class_of_test_alone(root: Path) -> Path:
    return as_images(root, {"train": drawn(9), "test": drawn(6, names=("cat", "eel"))})


@refusal(
    "HERE/train.csv: the columns must hold one of label, labels, class, target, category (label), but got path, name",
    "csv",
)
def a_csv_without_labels(root: Path) -> Path:
    path = as_csv_of_paths(root, {"train": drawn(6)})
    (path / "train.csv").write_text((path / "train.csv").read_text().replace("path,label", "path,name"))
    return path


@refusal(
    "HERE/train.csv: the columns must hold one of path, file, filename, file_name, image, image_path (path), but got "
    "where, label",
    "csv",
)
def a_csv_without_paths(root: Path) -> Path:
    path = as_csv_of_paths(root, {"train": drawn(6)})
    (path / "train.csv").write_text((path / "train.csv").read_text().replace("path,label", "where,label"))
    return path


@refusal("HERE/train.csv: label[1] must have a value, but got none", "csv")
def a_csv_with_an_empty_label(root: Path) -> Path:
    path = as_csv_of_paths(root, {"train": drawn(6)})
    (path / "train.csv").write_text((path / "train.csv").read_text().replace(",dog", ",", 1))
    return path


@refusal("HERE: the folder must hold one *.csv, but got a.csv, b.csv; name the file", "csv")
def two_csv_files(root: Path) -> Path:
    root.mkdir()
    for name in ("a.csv", "b.csv"):
        (root / name).write_text("path,label\n")
    return root


@refusal("HERE: the table must have rows, but got 0", "csv")
def a_csv_without_rows(root: Path) -> Path:
    root.write_text("path,label\n")
    return root


@refusal("HERE: the file must be CSV with a header, but got CSV parse error: Expected 2 columns, got 3: a,b,c", "csv")
def a_ragged_csv(root: Path) -> Path:
    root.write_text("path,label\na,b,c\n")
    return root


@refusal("HERE/train.csv: every value must be a whole number from 0 to 255, but got 295", "csv")
def a_csv_with_a_pixel_out_of_range(root: Path) -> Path:
    pixels, names = drawn(6, size=(5, 5))
    return as_csv_of_pixels(root, {"train": (pixels.astype(np.uint16) + 295 * (pixels == 0), names)})


@refusal("HERE/train.csv: the pixels must be NxHxW or NxHxWx3 (images), but got 6x20", "csv")
def a_csv_of_oblong_images(root: Path) -> Path:
    return as_csv_of_pixels(root, {"train": drawn(6, size=(4, 5))})


@refusal("HERE/train.csv: image[2] must have a value, but got null", "csv")
def a_csv_with_a_missing_pixel(root: Path) -> Path:
    path = as_csv_of_pixels(root, {"train": drawn(6, size=(5, 5))})
    lines = (path / "train.csv").read_text().splitlines()
    lines[3] = lines[3].rpartition(",")[0] + ","
    (path / "train.csv").write_text("\n".join(lines) + "\n")
    return path


@refusal("HERE: no *.parquet file is in the folder", "parquet")
def no_parquet_file(root: Path) -> Path:
    root.mkdir()
    return root


@refusal(
    "HERE: the columns must hold one of image, img, picture, pixels, images (image), but got what, label", "parquet"
)
def parquet_without_images(root: Path) -> Path:
    pq.write_table(pa.table({"what": [1, 2], "label": [0, 1]}), root)
    return root


@refusal("HERE: image[1] must have a value, but got null", "parquet")
def parquet_without_an_image(root: Path) -> Path:
    pixels = drawn(6)[0]
    content = [png(image) for image in pixels]
    pq.write_table(pa.table({"image": [content[0], None, *content[2:]], "label": [0, 1] * 3}), root)
    return root


@refusal("HERE: the labels must be whole numbers or text, but got list<element: int64>", "parquet")
def parquet_with_lists_of_labels(root: Path) -> Path:
    pq.write_table(pa.table({"image": [png(image) for image in drawn(2)[0]], "label": [[0, 1], [1]]}), root)
    return root


@refusal("HERE: image[1] must have 16 values, but got 17", "parquet")
def parquet_with_lists_of_other_lengths(root: Path) -> Path:
    pq.write_table(pa.table({"image": [[0] * 16, [0] * 17], "label": [0, 1]}), root)
    return root


@refusal("HERE: the file must hold train_images and train_labels, or x_train and y_train, but got neither", "npz")
def npz_without_training(root: Path) -> Path:
    np.savez(root, test_images=drawn(3)[0], test_labels=np.arange(3))
    return root.with_name("mine.npz").rename(root)


@refusal(
    "HERE: the file must be npz without pickles, but got Object arrays cannot be loaded when allow_pickle=False", "npz"
)
def npz_with_a_pickle(root: Path) -> Path:
    np.savez(root, train_images=drawn(3)[0], train_labels=np.array([{}, {}, {}], dtype=object))
    return root.with_name("mine.npz").rename(root)


@refusal("HERE: train_labels must be N or Nx1 (labels), but got 3x14", "npz")
def npz_with_many_labels(root: Path) -> Path:
    np.savez(root, train_images=drawn(3)[0], train_labels=np.zeros((3, 14)))
    return root.with_name("mine.npz").rename(root)


@refusal("HERE: train_images must be NxHxW or NxHxWx3 (images), but got 3x8x8x8", "npz")
def npz_of_volumes(root: Path) -> Path:
    np.savez(root, train_images=np.zeros((3, 8, 8, 8), np.uint8), train_labels=np.arange(3))
    return root.with_name("mine.npz").rename(root)


@refusal("HERE: the split train must have one label per image, but got 6 images and 5 labels", "npz")
def npz_with_a_label_too_few(root: Path) -> Path:
    np.savez(root, train_images=drawn(6)[0], train_labels=np.array([0, 1, 0, 1, 0]))
    return root.with_name("mine.npz").rename(root)


@refusal("HERE: the images must have one shape in all splits, but got 20x16 in train, 16x16 in test", "npz")
def npz_with_another_shape_for_testing(root: Path) -> Path:
    labels = np.array([0, 1] * 3)
    np.savez(
        root, train_images=drawn(6)[0], train_labels=labels, test_images=drawn(6, size=(16, 16))[0], test_labels=labels
    )
    return root.with_name("mine.npz").rename(root)


@refusal(
    "ingest: path must hold train-labels-idx1-ubyte.gz or train-labels-idx1-ubyte, but got neither in HERE nor up to "
    "two folders below it",
    "idx",
)
def idx_without_labels(root: Path) -> Path:
    path = FORMATS["idx"][1](root, {"train": drawn(6)})
    (path / "train-labels-idx1-ubyte").unlink()
    return path


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_one_line_that_says_where_rule_and_value(tmp_path: Path, name: str) -> None:
    dataset, make, changes, message = REFUSALS[name]
    assert error(dataset, make(tmp_path / "mine"), **changes) == message


# --- what formats have of their own


def test_kaggles_test_file_without_labels_is_left_out(tmp_path: Path) -> None:
    path = as_csv_of_pixels(tmp_path / "mine", {"train": drawn(30, size=(5, 5)), "test": drawn(3, size=(5, 5))})
    lines = (path / "test.csv").read_text().splitlines()
    (path / "test.csv").write_text("\n".join(line.partition(",")[2] for line in lines) + "\n")
    assert len(read("csv", path)["test"].labels) == 6


def test_a_csv_of_numbers_divided_by_255_is_read(tmp_path: Path) -> None:
    pixels, names = drawn(30, size=(5, 5))
    scaled = (pixels / 255).round(6)
    path = as_csv_of_pixels(tmp_path / "mine", {"train": (scaled, names), "test": drawn(3, size=(5, 5))})  # type: ignore[dict-item]
    np.testing.assert_array_equal(read("csv", path, invert=False)["train"].images, pixels)


def test_oblong_rows_of_pixels_have_the_shape_that_was_given(tmp_path: Path) -> None:
    for channels in (1, 3):
        pixels, names = drawn(30, size=(4, 6), channels=channels)
        path = as_csv_of_pixels(
            tmp_path / f"mine{channels}", {"train": (pixels, names), "test": drawn(3, size=(4, 6), channels=channels)}
        )
        split = read("csv", path, shape=[channels, 4, 6])["train"]
        np.testing.assert_array_equal(channels_last(split.images), pixels)


def test_names_of_classes_in_hugging_faces_metadata_keep_their_order(tmp_path: Path) -> None:
    names = ("zebra", "ant", "bee")
    features = {"label": {"names": [*names, "unused"]}}
    table = pa.table({"image": [png(image) for image in drawn(30)[0]], "label": [row % 3 for row in range(30)]})
    pq.write_table(
        table.replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": features}}).encode()}),
        tmp_path / "x.parquet",
    )
    assert read("parquet", tmp_path / "x.parquet")["train"].facts.labels == names


def test_links_and_litter_in_a_folder_do_no_harm(tmp_path: Path) -> None:
    path = as_images(tmp_path / "mine", {"train": drawn(30), "test": drawn(3)})
    expected = read("images", path)
    (path / ".DS_Store").write_text("x")
    (path / "train/cat/Thumbs.db").write_text("x")
    (path / "README.md").write_text("x")
    (path / "train/cat/circle").symlink_to(path)
    (path / "train/dog").rename(tmp_path / "dogs")
    (path / "train/dog").symlink_to(tmp_path / "dogs")
    (path / "__MACOSX/train/cat").mkdir(parents=True)
    (path / "__MACOSX/train/cat/._0.png").write_text("x")
    found = read("images", path)
    np.testing.assert_array_equal(found["test"].images, expected["test"].images)


KAGGLE = {name: name.replace("-idx", ".idx") for pair in sources.SPLITS.values() for name in pair}
LAYOUTS: dict[str, Callable[[str], str]] = {
    "dotted": KAGGLE.__getitem__,
    "dotted and packed": lambda name: f"{KAGGLE[name]}.gz",
    "one folder down": lambda name: f"raw/{name}",
    "as torchvision leaves them": lambda name: f"MNIST/raw/{name}.gz",
    "each in its own folder": lambda name: f"{name}/{KAGGLE[name]}",
    "in upper case": lambda name: f"{name}.gz".upper(),
    "with an upper-case suffix": lambda name: f"{name}.GZ",
    "named test": lambda name: name.replace("t10k", "test"),
    "packed, without a suffix": lambda name: f"packed/{name}",
    "as QMNIST's": lambda name: f"qmnist-{name.replace('t10k', 'test').replace('idx1-ubyte', 'idx2-int')}.gz",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_idx_files_are_found_by_the_names_in_which_they_are_published(tmp_path: Path, layout: str) -> None:
    plain = FORMATS["idx"][1](tmp_path / "plain", {"train": drawn(30), "test": drawn(6)})
    for name in KAGGLE:
        path = tmp_path / "mine" / LAYOUTS[layout](name)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = (plain / name).read_bytes()
        path.write_bytes(gzip.compress(content) if path.suffix.lower() == ".gz" or "packed" in layout else content)
    found = parts.idx_files(str(tmp_path / "mine"))
    assert {name: path.relative_to(tmp_path / "mine") for name, path in found.items()} == {
        name: Path(LAYOUTS[layout](name)) for name in KAGGLE
    }
    np.testing.assert_array_equal(read("idx", tmp_path / "mine")["train"].images, drawn(30)[0])


def test_idx_files_that_lie_together_are_preferred_to_their_copies(tmp_path: Path) -> None:
    write = FORMATS["idx"][1]
    write(tmp_path / "mine/whole", {"train": drawn(6), "test": drawn(6)})
    write(tmp_path / "mine/part", {"train": drawn(6)})
    assert {path.parent.name for path in parts.idx_files(str(tmp_path / "mine")).values()} == {"whole"}
    write(tmp_path / "mine/other", {"train": drawn(6), "test": drawn(6)})
    with pytest.raises(InputError) as caught:
        parts.idx_files(str(tmp_path / "mine"))
    assert str(caught.value).startswith("ingest: path must hold one train-images-idx3-ubyte, but got other/")


# --- fuzzing: no crash, no hang, no wrong pixel


@pytest.mark.parametrize("form", FORMATS)
def test_a_flipped_bit_is_detected_harmless_or_another_valid_file(tmp_path: Path, form: str) -> None:
    """PNG, gzip, npz and Parquet's pages have checksums, of which none lets a wrong pixel through; CSV has none."""
    dataset, write = FORMATS[form]
    path = write(tmp_path / "mine", {"train": drawn(12, size=(8, 8)), "test": drawn(6, size=(8, 8))})
    expected = read(dataset, path)["train"]
    random = np.random.default_rng(0)
    files = sorted(file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    silent = []
    for _ in range(60):
        file = files[int(random.integers(len(files)))]
        intact = file.read_bytes()
        bit = int(random.integers(8 * len(intact)))
        flipped = bytearray(intact)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            found = read(dataset, path)["train"]
        except PipelineError:
            pass
        else:
            if found.images.tobytes() != expected.images.tobytes():
                silent.append((file.name, bit))
        file.write_bytes(intact)
    if form in ("images", "npz"):
        assert silent == []


@given(st.sampled_from(["csv", "parquet", "npz", "images"]), st.binary(max_size=200))
def test_random_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, dataset: str, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "file"
    if dataset == "images":
        for name in ("a", "b"):
            (folder / name).mkdir()
            (folder / name / "x.png").write_bytes(content)
        path = folder
    else:
        path.write_bytes(content)
    with pytest.raises(PipelineError):
        read(dataset, path)


@given(
    st.sampled_from(["csv of paths", "csv of pixels", "parquet of Hugging Face", "parquet of pixels", "npz", "idx"]),
    st.data(),
)
def test_a_truncated_file_is_refused_or_read_without_its_end(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    dataset, write = FORMATS[form]
    path = write(tmp_path_factory.mktemp("fuzz") / "mine", {"train": drawn(9, size=(6, 6))})
    file = path if path.is_file() else next(file for file in sorted(path.rglob("*")) if "train" in file.name)
    content = file.read_bytes()
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    try:
        found = read(dataset, path)
    except PipelineError:
        return
    assert dataset == "csv"
    expected = set(sorted_rows(*drawn(9, size=(6, 6))))
    assert {*rows_of(found["train"]), *rows_of(found["test"])} <= expected
