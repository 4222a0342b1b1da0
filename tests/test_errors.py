"""Test that every message is one line of bounded length, in which no word is cut."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from mnist_pipe.errors import MAX_MESSAGE, InputError, UnavailableError, message_and_code, shortened

WORDS = st.lists(st.text("abc<>{}%/:;.'é", min_size=1, max_size=400), max_size=60).map(" ".join)
PATHS = (
    st.lists(st.text("abc {}%'é", min_size=1, max_size=255), min_size=1, max_size=40).map("/".join).map("/{}".format)
)
FIX = "run: dvc repro --force <stage>"


def check(message: str, *parts: str) -> None:
    assert len(message) <= MAX_MESSAGE
    assert len(message.splitlines()) <= 1
    known = " ".join(parts).replace("/", " / ").replace(":", " : ").replace(";", " ; ").replace(",", " , ").split()
    found = message.replace("/", " / ").replace(":", " : ").replace(";", " ; ").replace(",", " , ").split()
    assert set(found) <= {*known, "…", ":", ";", "/", ",", "must", "but", "got", "does", "not", "exist", "answer"}


@given(where=PATHS | WORDS, name=WORDS, rule=WORDS, got=WORDS, fix=WORDS)
def test_no_part_makes_a_message_too_long_or_cuts_a_word(where: str, name: str, rule: str, got: str, fix: str) -> None:
    check(str(InputError.invalid(where, name, rule, got=got, fix=fix)), where, name, rule, got, fix)
    check(str(InputError.missing(where, state=got, where=rule, fix=fix)), where, rule, got, fix)
    check(str(UnavailableError.unreachable(name, cause=got, where=where, fix=fix)), where, name, got, fix)
    check(str(InputError(f"{where} {got}")), where, got)
    check(message_and_code(ValueError(got))[0], "ValueError: ", got, "; add --debug for the traceback")


@given(where=PATHS, got=WORDS)
def test_the_remedy_and_the_end_of_a_path_stay(where: str, got: str) -> None:
    where = f"{where}/train.parquet"
    message = str(InputError.invalid(where, "the columns", "be image and label", got=got, fix=FIX))
    assert message.endswith(f"; {FIX}")
    assert "/train.parquet: the columns must be image and label, but got " in message


def test_a_long_value_makes_room_for_the_remedy() -> None:
    names = ", ".join(f"pixel{number}" for number in range(784))
    message = str(InputError.invalid("in.parquet", "the columns", "have image", got=names, fix=FIX))
    assert message.startswith("in.parquet: the columns must have image, but got pixel0, pixel1, pixel2, ")
    assert message.endswith(f", …; {FIX}")
    assert 280 < len(message) <= MAX_MESSAGE


def test_a_message_of_the_largest_length_is_left_as_it_is() -> None:
    text = "x" * 100 + " " + "y" * 199
    assert str(InputError(text)) == text
    assert shortened(text + "y") == "x" * 100 + " …"


def test_an_error_survives_pickling_as_it_is() -> None:
    error = InputError.invalid("/a/" * 200, "the file", "be " * 100, got="c " * 300, fix=FIX)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
