"""Test the page of `mnist-pipe serve` in Chromium, with a champion that was trained on the published files."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, CDPSession, Page, Request, Route, expect

from mnist_pipe.data.pictures import FORMATS
from mnist_pipe.serving.web import PAGE
from tests.support.browser import chromium
from tests.support.serving import Endpoint, new_project, register_trained, serving
from tests.support.strokes import DIGITS, Point, Stroke

pytestmark = [
    pytest.mark.browser,
    pytest.mark.ray,
    pytest.mark.services,
    pytest.mark.long,
]
MIN_RIGHT = 27
"""Of the 30 drawings with the mouse, how many the page must get right."""

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory, empty_database: Path, mnist_mirror: Path) -> Iterator[Endpoint]:
    root = new_project(tmp_path_factory.mktemp("page") / "project", empty_database)
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("RAY_", "MLFLOW_", "MNIST_PIPE_")) or name.lower().endswith("_proxy"):
                patch.delenv(name)
        register_trained(root, mnist_mirror)
        with serving(root) as found:
            yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def open_page(browser: Browser, endpoint: Endpoint) -> Iterator[Open]:
    """Function that opens the page as a new user, logged in or not, and fails the test if the page has an error."""
    problems: list[str] = []
    contexts = []

    def open_(*, token: bool = True, **options: Any) -> Page:
        contexts.append(browser.new_context(viewport={"width": 1000, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", on_request)
        page.goto(endpoint.url + (f"/#token={endpoint.token}" if token else "/"))
        if token:
            expect(page.locator("#model")).to_contain_text("toy-classifier version 1, 75.00 %")
        return page

    def on_request(request: Request) -> None:
        if not request.url.startswith((endpoint.url, "data:", "blob:")):
            problems.append(request.url)

    yield open_
    for context in contexts:
        context.close()
    assert problems == []


def at(page: Page, point: Point) -> Point:
    """Return the place on the page of a point of the board, whose side is 1."""
    box = page.locator("#board").bounding_box()
    assert box
    return box["x"] + point[0] * box["width"], box["y"] + point[1] * box["height"]


def draw(page: Page, strokes: list[Stroke]) -> None:
    for first, *others in strokes:
        page.mouse.move(*at(page, first))
        page.mouse.down()
        for point in others:
            page.mouse.move(*at(page, point), steps=2)
        page.mouse.up()


def answer(page: Page) -> str:
    """Return the digit that the page shows, once the last change of the drawing was answered."""
    expect(page.locator("#sure")).to_contain_text("sure")
    expect(page.locator("#prediction")).to_have_attribute("aria-busy", "false")
    return page.inner_text("#answer")


def pixels(page: Page, name: str, *, size: tuple[int, int] = (28, 28)) -> np.ndarray:
    """Return the pixels of a canvas, `(height, width, 3)`."""
    height, width = size
    assert page.evaluate(f"[{name}.height, {name}.width]") == [height, width]
    values = page.evaluate(f"[...{name}.getContext('2d').getImageData(0, 0, {width}, {height}).data]")
    return np.array(values, dtype=np.uint8).reshape(height, width, 4)[:, :, :3]


def png(strokes: list[Stroke], *, path: Path) -> Path:
    from PIL import ImageDraw

    picture = Image.new("L", (280, 280), 255)
    for stroke in strokes:
        ImageDraw.Draw(picture).line([(280 * x, 280 * y) for x, y in stroke], fill=0, width=20, joint="curve")
    picture.save(path)
    return path


def test_digits_drawn_with_the_mouse_are_recognised(open_page: Open) -> None:
    page = open_page()
    wrong = []
    for digit, styles in DIGITS.items():
        for style, strokes in enumerate(styles):
            page.click("#clear")
            expect(page.locator("#sure")).to_have_text("Nothing is drawn yet.")
            draw(page, strokes)
            if (found := answer(page)) != str(digit):
                wrong.append(f"{digit} in style {style} was read as {found}")
    print(f"{30 - len(wrong)} of 30 right; {wrong}")
    assert sum(len(styles) for styles in DIGITS.values()) == 30
    assert len(wrong) <= 30 - MIN_RIGHT, wrong


def test_a_digit_drawn_with_a_finger_is_recognised(open_page: Open) -> None:
    page = open_page(has_touch=True)
    session: CDPSession = page.context.new_cdp_session(page)
    for stroke in DIGITS[4][0]:
        for number, point in enumerate(stroke):
            x, y = at(page, point)
            kind = "touchMove" if number else "touchStart"
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert answer(page) == "4"


def test_a_digit_drawn_with_the_keyboard_is_recognised(open_page: Open) -> None:
    page = open_page()
    page.locator("#board").focus()
    page.keyboard.press("Space")
    for _ in range(26):
        page.keyboard.press("ArrowDown")
    assert answer(page) == "1"
    expect(page.locator("#board")).to_have_attribute("aria-label", re.compile("pen down at 50 % from the left"))
    page.keyboard.press("Escape")
    expect(page.locator("#sure")).to_have_text("Nothing is drawn yet.")
    assert page.inner_text("#answer") == ""


def test_the_bars_move_while_one_draws(open_page: Open) -> None:
    page = open_page()
    page.mouse.move(*at(page, (0.5, 0.2)))
    page.mouse.down()
    page.mouse.move(*at(page, (0.5, 0.8)), steps=5)
    assert answer(page) == "1"  # before the button is released
    rows = page.locator("#bars li")
    expect(rows).to_have_count(10)
    shares = [float(text.removesuffix(" %")) for text in page.locator("#bars .share").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert shares[1] == max(shares)
    page.mouse.up()


def test_a_picture_is_chosen_dropped_or_pasted(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    page.set_input_files("#file", png(DIGITS[7][0], path=tmp_path / "seven.png"))
    assert answer(page) == "7"
    for kind, digit in (("drop", 3), ("paste", 2)):
        content = list(png(DIGITS[digit][0], path=tmp_path / f"{digit}.png").read_bytes())
        page.evaluate(
            """([kind, content]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(content)], "digit.png", {type: "image/png"}));
                const options = {bubbles: true, cancelable: true};
                document.body.dispatchEvent(kind === "drop" ? new DragEvent(kind, {...options, dataTransfer: data})
                    : new ClipboardEvent(kind, {...options, clipboardData: data}));
            }""",
            [kind, content],
        )
        expect(page.locator("#answer")).to_have_text(str(digit))


def test_a_file_that_is_no_picture_is_reported_as_the_command_reports_it(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    (tmp_path / "text.png").write_bytes(b"no picture")
    page.set_input_files("#file", tmp_path / "text.png")
    expect(page.locator("#error")).to_have_text(
        f"the body: the content must be {FORMATS}, but got bytes that start with b'no pictu'"
    )


def test_the_page_shows_what_the_network_saw_and_its_saliency(
    open_page: Open, endpoint: Endpoint, tmp_path: Path
) -> None:
    picture = png(DIGITS[5][0], path=tmp_path / "five.png")
    page = open_page()
    page.set_input_files("#file", picture)
    assert answer(page) == "5"
    [expected] = endpoint.predict(picture.read_bytes(), "image/png", "?saliency=true").json()["predictions"]
    for name in ("seen", "saliency"):
        image = np.frombuffer(base64.b64decode(expected[name]), np.uint8).reshape(28, 28)
        np.testing.assert_array_equal(pixels(page, name)[:, :, 0], image)
    expect(page.locator("#seen")).to_have_attribute("aria-label", "The 5 as the network saw it, light on dark")
    expect(page.locator("#saliency")).to_have_attribute("aria-label", re.compile("Saliency map: the .* quarter"))


@pytest.mark.parametrize(
    ("shape", "resize", "title"),
    [
        ([28, 28], "digit_box", "Draw a digit"),
        ([4, 6], "fit", "Draw or choose a picture"),
        ([3, 4, 6], "fit", "Choose a picture"),
    ],
)
def test_the_page_has_the_shape_and_the_classes_of_the_model(
    browser: Browser, shape: list[int], resize: str, title: str
) -> None:
    names = [f"bird {number}" for number in range(62)]
    model = {"name": "birds-classifier", "version": 3, "accuracy": 0.5, "labels": names, "problem": None}
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    strength = np.zeros(shape[-2:], np.uint8)
    strength[-1, -1] = 200
    seen, saliency = (base64.b64encode(array.tobytes()).decode() for array in (image, strength))
    probabilities = [0.5 if number == 40 else 0.5 / 61 for number in range(62)]
    reply = {"predictions": [{"probabilities": probabilities, "seen": seen, "saliency": saliency}], "doubt": None}
    context = browser.new_context()
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    for path, content in (("model", {**model, "shape": shape, "resize": resize}), ("predict*", reply)):
        page.route(f"http://page/{path}", partial(Route.fulfill, json=content))
    page.route("http://page/", lambda route: route.fulfill(path=PAGE, content_type="text/html"))
    page.goto("http://page/")
    expect(page.locator("#title")).to_have_text(title)
    assert page.title() == f"{title} · mnist-pipe"
    expect(page.locator("#others")).to_have_text("the 20 most probable of 62 classes")
    page.locator("#board").click()
    expect(page.locator("#answer")).to_have_text("bird 40")
    expect(page.locator("#bars li")).to_have_count(20)
    assert page.locator("#bars .name").all_inner_texts()[:3] == ["bird 40", "bird 0", "bird 1"]
    found = pixels(page, "seen", size=(shape[-2], shape[-1]))
    expected = np.stack([image] * 3) if image.ndim == 2 else image
    np.testing.assert_array_equal(found.transpose(2, 0, 1), expected)
    assert page.inner_text("#size").startswith(f"{shape[-1]} × {shape[-2]} pixels")
    expect(page.locator("#saliency")).to_have_attribute("aria-label", re.compile("the lower right quarter"))
    context.close()
    assert problems == []


def test_a_user_logs_in_by_the_form_and_stays_logged_in(open_page: Open, endpoint: Endpoint) -> None:
    page = open_page(token=False)
    page.fill("#token", "wrong")
    page.press("#token", "Enter")
    expect(page.locator("#error")).to_have_text("the endpoint refused the token")
    page.fill("#token", endpoint.token)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#login")).to_be_hidden()
    expect(page.locator("#model")).to_contain_text("version 1")
    page.reload()
    expect(page.locator("#model")).to_contain_text("version 1")
    assert endpoint.token not in page.url


def test_a_token_in_the_address_is_taken_out_of_it(open_page: Open, endpoint: Endpoint) -> None:
    assert open_page().url == endpoint.url + "/"


def test_everything_has_a_name_and_is_reached_by_the_keyboard(open_page: Open) -> None:
    page = open_page()
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert reached == ["board", "clear", "file", "HTTP interface"]
    for name, role in (("Drawing board", "application"), ("Clear", "button"), ("Probability of each class", "list")):
        expect(page.get_by_role(role, name=name)).to_be_visible()
    assert page.get_attribute("html", "lang") == "en"
    assert page.locator("#sure").get_attribute("aria-live") == "polite"


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_the_page_follows_the_colour_scheme(scheme: str, is_dark: bool, open_page: Open) -> None:
    page = open_page(color_scheme=scheme)
    draw(page, DIGITS[8][0])
    assert answer(page) == "8"
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))
    assert (np.median(shot) < 100) == is_dark
