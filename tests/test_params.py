"""Test params.yaml: valid content is loaded, and every error is one line that names the key."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from ruamel.yaml import YAML

from mnist_pipe.errors import InputError
from mnist_pipe.params import loader, schema
from mnist_pipe.preflight import load_params
from tests.support import ROOT

SHIPPED = (ROOT / "params.yaml").read_text()
NAMES = {
    "models": ["cnn", "convnet", "lenet5", "linear", "mlp"],
    "optimizers": ["adadelta", "adagrad", "adam", "adamw", "muon", "nesterov", "rmsprop", "sgd"],
    "schedules": ["constant", "one_cycle", "triangle"],
    "samplers": ["random", "tpe"],
    "schedulers": ["asha", "fifo"],
    "datasets": ["digits", "fashion-mnist", "images", "kmnist", "mnist"],
    "published": ["digits", "fashion-mnist", "kmnist", "mnist"],
}


@dataclasses.dataclass
class Edited:
    """Shipped file with one line changed."""

    path: Path

    def load(self, key: str, replacement: str) -> schema.Params:
        """Replace the line of `key`, such as `train.seed`, and load the file."""
        self.line, text = edit(key, replacement)
        self.path.write_text(text)
        return loader.load(self.path, names=NAMES)

    def errors(self, key: str, replacement: str) -> str:
        """Return the error without the file's name; L stands for the number of the changed line, M for the next."""
        with pytest.raises(InputError) as caught:
            self.load(key, replacement)
        message = str(caught.value)
        for letter, number in (("L", self.line), ("M", self.line + 1)):
            message = message.replace(f"{self.path}:{number}: ", f"{letter}: ")
            message = re.sub(rf"\bline {number}\b", f"line {letter}", message)
        return message.replace(f"{self.path}: ", "")


def edit(key: str, replacement: str) -> tuple[int, str]:
    lines = SHIPPED.splitlines()
    number = 0
    for depth, part in enumerate(key.split(".")):
        number = next(n for n in range(number, len(lines)) if re.match(f"{'  ' * depth}{part}:", lines[n]))
    lines[number : number + 1] = replacement.splitlines()
    return number + 1, "\n".join(lines) + "\n"


@pytest.fixture
def edited(tmp_path: Path) -> Edited:
    return Edited(tmp_path / "params.yaml")


def test_the_shipped_file_is_valid() -> None:
    loaded = load_params(ROOT / "params.yaml")
    assert loaded.ingest.dataset == "mnist"
    assert loaded.ingest.mirrors[0] == "../shared/mnist"
    assert loaded.register_.max_p_value_against_baseline == 0.01


def test_shipped_values_agree_with_dvcs_yaml_parser() -> None:
    """Compare with the parser that DVC uses, so that both always read the same numbers."""
    content = YAML(typ="safe", pure=True).load(SHIPPED)
    assert loader.load(ROOT / "params.yaml", names=None).model_dump(by_alias=True) == content


def test_loaded_params_are_immutable() -> None:
    loaded = loader.load(ROOT / "params.yaml", names=NAMES)
    with pytest.raises(ValueError, match="frozen"):
        loaded.train.seed = 1


@pytest.mark.parametrize(
    ("key", "replacement", "message"),
    [
        ("normalize.seed", "  seed: -1", "L: normalize.seed must be >= 0, but got -1"),
        ("normalize.seed", "  seed: 4294967296", "L: normalize.seed must be <= 4294967295, but got 4294967296"),
        ("normalize.seed", "  seed: '3'", "L: normalize.seed must be a whole number, but got '3'"),
        ("normalize.seed", "  seed: 2.5", "L: normalize.seed must be a whole number, but got 2.5"),
        ("normalize.seed", "  seed: true", "L: normalize.seed must be a whole number, but got true"),
        ("normalize.seed", "  seed: yes", "L: normalize.seed must be a whole number, but got 'yes'"),
        ("normalize.seed", "  seed:", "L: normalize.seed must be a whole number, but got null"),
        ("normalize.seed", "", "normalize.seed is missing"),
        (
            "normalize.seed",
            "  seeed: 0",
            "normalize.seed is missing\n"
            "L: normalize.seeed must be a known key, but got 'seeed'; did you mean 'seed'?",
        ),
        (
            "normalize.seed",
            "  seed: 0\n  colour: red",
            "M: normalize.colour must be a known key, but got 'colour'; known here: seed, validation_rows",
        ),
        (
            "normalize.seed",
            "  seed: 0\n  seed: 1",
            "normalize.seed must be defined once, but got line L and line M; keep one",
        ),
        ("baseline.learning_rate", "  learning_rate: 0", "L: baseline.learning_rate must be > 0, but got 0"),
        ("baseline.learning_rate", "  learning_rate: 11", "L: baseline.learning_rate must be <= 10, but got 11"),
        ("evaluate.confidence", "  confidence: .nan", "L: evaluate.confidence must be a finite number, but got nan"),
        ("evaluate.confidence", "  confidence: -.inf", "L: evaluate.confidence must be a finite number, but got -inf"),
        ("baseline.learning_rate", "  learning_rate: x", "L: baseline.learning_rate must be a number, but got 'x'"),
        ("baseline.num_epochs", "  num_epochs: 0", "L: baseline.num_epochs must be >= 1, but got 0"),
        ("baseline.batch_size", "  batch_size: 65537", "L: baseline.batch_size must be <= 65536, but got 65537"),
        ("evaluate.confidence", "  confidence: 1", "L: evaluate.confidence must be < 1, but got 1"),
        ("train.num_workers", "  num_workers: -1", "L: train.num_workers must be >= 0 or a list or auto, but got -1"),
        (
            "train.num_workers",
            "  num_workers: many",
            "L: train.num_workers must be a whole number or a list or auto, but got 'many'",
        ),
        ("train.use_gpu", "  use_gpu: 1", "L: train.use_gpu must be true or false or auto, but got 1"),
        (
            "train.precision",
            "  precision: bf16",
            "L: train.precision must be one of auto, float32, tf32, bfloat16, but got 'bf16'; did you mean 'bfloat16'?",
        ),
        ("search.train_rows", "  train_rows: 1", "L: search.train_rows must be >= 100, but got 1"),
        ("search.scheduler", "  scheduler: 3", "L: search.scheduler must be text, but got 3"),
        (
            "search.scheduler",
            "  scheduler: ahsa",
            "L: search.scheduler must be one of asha, fifo, but got 'ahsa'; did you mean 'asha'?",
        ),
        ("search.space.model", "    model: []", "L: search.space.model must have 1 or more entries, but got []"),
        ("search.space.model", "    model: cnn", "L: search.space.model must be a list, but got 'cnn'"),
        (
            "search.space.model",
            "    model: [linear, resnet, 3]",
            "L: search.space.model[1] must be one of cnn, convnet, lenet5, linear, mlp, but got 'resnet'; "
            "did you mean 'lenet5'?\n"
            "L: search.space.model[2] must be text, but got 3",
        ),
        (
            "search.space.optimizer",
            "    optimizer: [sdg]",
            "L: search.space.optimizer[0] must be one of adadelta, adagrad, adam, adamw, muon, nesterov, rmsprop, "
            "sgd, but got 'sdg'; did you mean 'sgd'?",
        ),
        (
            "search.space.learning_rate",
            "    learning_rate: {sgd: [1, 0.1]}",
            "L: search.space.learning_rate.sgd must be [low, high] with low <= high, but got [1, 0.1]; swap them",
        ),
        (
            "search.space.learning_rate",
            "    learning_rate: {sgd: [1], 7: [0.1, 1]}",
            "L: search.space.learning_rate.sgd must have 2 or more entries, but got [1]\n"
            "L: search.space.learning_rate.7 must be text, but got 7",
        ),
        (
            "search.space.weight_decay",
            "    weight_decay: [0, 0.1, 1]",
            "L: search.space.weight_decay must have 2 or fewer entries, but got [0, 0.1, 1]",
        ),
        (
            "search.space.weight_decay",
            "    weight_decay: [0, .nan]",
            "L: search.space.weight_decay[0] must be > 0, but got 0\n"
            "L: search.space.weight_decay[1] must be <= 1, but got nan",
        ),
        (
            "ingest.dataset",
            "  dataset: minst",
            "L: ingest.dataset must be one of digits, fashion-mnist, images, kmnist, mnist, but got 'minst'; "
            "did you mean 'mnist'?",
        ),
        ("ingest.path", "  path: null", "L: ingest.path must be text, but got null"),
        ("ingest.dataset", "  dataset: images", "ingest.name must be a name of your own, under which the model "
         "registers, but got null"),
        ("ingest.name", "  name: mine", "ingest.name must be null while ingest.dataset is mnist, which has a name, "
         "but got 'mine'"),
        ("ingest.name", "  name: a/b", "L: ingest.name must be letters, digits, dots, dashes and underscores, but got "
         "'a/b'"),
        ("ingest.fallback", "  fallback: images", "L: ingest.fallback must be one of digits, fashion-mnist, kmnist, "
         "mnist, but got 'images'; did you mean 'digits'?"),
        ("ingest.shape", "  shape: [2, 28, 28]", "ingest.shape[0] must be 1 or 3, the number of channels, but got 2"),
        ("ingest.shape", "  shape: [28, 28]", "L: ingest.shape must have 3 or more entries or auto, but got [28, 28]"),
        ("ingest.channels", "  channels: 2", "L: ingest.channels must be one of 1, 3, auto, but got 2"),
        ("ingest.fallback", "  fallback: 3", "L: ingest.fallback must be text, but got 3"),
        ("ingest.timeout_seconds", "  timeout_seconds: 0", "L: ingest.timeout_seconds must be > 0, but got 0"),
        (
            "recipe",
            "recipe: fastest",
            "recipe must be one of best, fashion, fast, standard, but got 'fastest'; did you mean 'fast'?",
        ),
        (
            "recipes.fast.schedule",
            "    schedule: cosine",
            "L: recipes.fast.schedule must be one of constant, one_cycle, triangle, but got 'cosine'",
        ),
        (
            "recipes.fast.average_decay",
            "    average_decay: 1",
            "L: recipes.fast.average_decay must be < 1, but got 1",
        ),
        (
            "search.space.learning_rate",
            "    learning_rate: {a: 1}",
            "L: search.space.learning_rate.a must be one of adadelta, adagrad, adam, adamw, muon, nesterov, rmsprop, "
            "sgd, but got 'a'",
        ),
        (
            "models.linear",
            "  linear: 3",
            "L: models.linear must be a mapping, but got 3",
        ),
        (
            "models.linear",
            "  liner: {}",
            "L: models.liner must be one of cnn, convnet, lenet5, linear, mlp, but got 'liner'; did you mean 'linear'?",
        ),
    ],
)  # fmt: skip
def test_an_error_is_reported_in_one_line(edited: Edited, key: str, replacement: str, message: str) -> None:
    assert edited.errors(key, replacement) == message


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train_rows", "500", "be null when train.data is stream, which reads every row, but got 500"),
        (
            "balance",
            "sampling",
            "be none or weights when train.data is stream, which reads every row once, but got 'sampling'",
        ),
    ],
)
def test_what_a_stream_cannot_do_is_reported_for_the_chosen_recipe(
    edited: Edited, key: str, value: str, message: str
) -> None:
    _, text = edit("train.data", "  data: stream")
    chosen = re.search(r"^recipe: (\w+)", text, re.MULTILINE)
    assert chosen
    before, after = text.split(f"  {chosen[1]}:\n")
    edited.path.write_text(f"{before}  {chosen[1]}:\n" + re.sub(rf"\b{key}: \S+", f"{key}: {value}", after, count=1))
    with pytest.raises(InputError) as caught:
        loader.load(edited.path, names=NAMES)
    assert str(caught.value) == f"{edited.path}: recipes.{chosen[1]}.{key} must {message}"


def test_a_section_that_is_no_mapping_is_reported(edited: Edited) -> None:
    assert edited.errors("normalize", "normalize: 3\nspare:").startswith("L: normalize must be a mapping, but got 3\n")


@pytest.mark.parametrize(
    "mirror", ["''", "ftp://example.org", "http://", "http://:80", "http://h:99999", "http://h:x", "http://h/?token=1"]
)
def test_a_mirror_is_a_directory_or_a_base_url(edited: Edited, mirror: str) -> None:
    rule = "have 1 or more characters" if mirror == "''" else "be a directory or an http(s) base URL"
    shown = mirror if mirror == "''" else repr(mirror)
    assert edited.errors("ingest.mirrors", f"  mirrors: [{mirror}]\n  _:").splitlines()[0] == (
        f"L: ingest.mirrors[0] must {rule}, but got {shown}"
    )


def test_no_message_contains_a_mirrors_password(edited: Edited) -> None:
    assert "secret" not in edited.errors("ingest.mirrors", "  mirrors: ['http://user:secret@h:x']\n  _:")


def test_all_errors_are_reported_at_once(edited: Edited) -> None:
    text = SHIPPED.replace("num_trials:", "num_trails:").replace("confidence: 0.95", "confidence: 2")
    edited.path.write_text(text)
    with pytest.raises(InputError) as caught:
        loader.load(edited.path, names=NAMES)
    line = {key: text[: text.index(key)].count("\n") + 1 for key in ("num_trails:", "confidence:")}
    assert str(caught.value).splitlines() == [
        f"{edited.path}: search.num_trials is missing",
        f"{edited.path}:{line['num_trails:']}: search.num_trails must be a known key, but got 'num_trails'; "
        "did you mean 'num_trials'?",
        f"{edited.path}:{line['confidence:']}: evaluate.confidence must be < 1, but got 2",
    ]
    assert caught.value.exit_code == 2


def test_without_names_any_name_is_valid_and_other_rules_hold(edited: Edited) -> None:
    _, text = edit("ingest.dataset", "  dataset: tomorrow")
    edited.path.write_text(text)
    assert loader.load(edited.path, names=None).ingest.dataset == "tomorrow"
    assert loader.load(edited.path, names={"models": NAMES["models"]}).ingest.dataset == "tomorrow"
    edited.path.write_text(text.replace("dataset: tomorrow", "dataset: 3"))
    with pytest.raises(InputError, match=r"ingest\.dataset must be text, but got 3$"):
        loader.load(edited.path, names=None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "params.yaml: the file must be a mapping of sections, but got nothing"),
        ("3", "params.yaml: the file must be a mapping of sections, but got int"),
        ("- 1", "params.yaml: the file must be a mapping of sections, but got list"),
        ("a: [1", "params.yaml:1:6: the file must be YAML, but got expected ',' or ']', but got '<stream end>'"),
        (
            "a:\n\tb: 1",
            r"params.yaml:2:1: the file must be YAML, but got found character '\t' that cannot start any token",
        ),
        ("a: *b", "params.yaml:1:4: the file must be YAML, but got found undefined alias 'b'"),
        ("a: &a [*a]", "params.yaml: the file must be YAML, but got bottomless nesting"),
        ("a: " + "[" * 500, "params.yaml: the file must be YAML, but got bottomless nesting"),
        ("a: !!int x", "params.yaml: the file must be YAML, but got invalid literal for int() with base 10: 'x'"),
        ("a: !!bool x", "params.yaml: the file must be YAML, but got 'x'"),
        (
            "a: !!python/object:os.system x",
            "params.yaml:1:4: the file must be YAML, but got could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object:os.system'",
        ),
        (
            "a: " + "9" * 5000,
            "params.yaml: the file must be YAML, but got Exceeds the limit (4300 digits) for integer string "
            "conversion: value has 5000 digits; use sys.set_int_max_str_digits() to increase the limit",
        ),
    ],
)  # fmt: skip
def test_invalid_yaml_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        loader.load(Path("params.yaml"), names=NAMES)
    assert str(caught.value) == message


def test_an_unreadable_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    messages = []
    Path("binary").write_bytes(b"a: \xff")
    Path("folder").mkdir()
    for name in ("missing", "binary", "folder"):
        with pytest.raises(InputError) as caught:
            loader.load(Path(name), names=NAMES)
        messages.append(str(caught.value))
    assert messages == [
        "missing: the file must be readable text, but got No such file or directory",
        "binary: the file must be readable text, but got bytes that are not UTF-8",
        "folder: the file must be readable text, but got Is a directory",
    ]


def leaves(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        kind = field.annotation
        keys += leaves(kind, f"{key}.") if isinstance(kind, type) and issubclass(kind, BaseModel) else [key]
    return keys


LEAVES = [key for key in leaves(schema.Params) if not key.startswith("models") and key != "ingest.mirrors"]
SCALARS = st.one_of(
    st.text(max_size=20),
    st.integers(),
    st.floats(),
    st.sampled_from(
        ["yes", "~", "0x1f", "012", "1e999", "-.inf", ".NaN", "2001-01-01", "!!binary YQ==", "1_0", "auto"]
    ),
)


@settings(max_examples=50)
@given(st.sampled_from(LEAVES), SCALARS)
def test_any_scalar_for_any_value_is_valid_or_refused(key: str, value: Any) -> None:
    _, text = edit(key, f"{'  ' * key.count('.')}{key.rpartition('.')[2]}: {value}")
    load_or_refuse(text)


@settings(max_examples=50)
@given(st.lists(st.sampled_from(SHIPPED.splitlines()), max_size=12), st.text(max_size=20))
def test_any_shuffle_of_the_lines_is_valid_or_refused(lines: list[str], more: str) -> None:
    load_or_refuse("\n".join([*lines, more]))


def load_or_refuse(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        with suppress(InputError):
            loader.load(path, names=NAMES)
