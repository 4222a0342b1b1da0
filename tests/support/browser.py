"""Use the dashboards in Chromium as a user does: log in, find a run by its name, take a screenshot.

Every function opens its own context in `browser`, waits for what it looks for, and raises playwright's TimeoutError if
that does not appear.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

SECONDS = 60.0
"""Maximum seconds until a page shows what is expected; long, because the machine is shared."""
HYPER_PARAMETERS = ("model", "optimizer", "learning_rate", "batch_size", "weight_decay")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a headless Chromium found on PATH; if there is none, skip the test."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium on PATH")
    expect.set_options(timeout=1000 * SECONDS)
    with sync_playwright() as playwright:
        # Chromium has no sandbox when run as root, as in a container; TensorBoard draws its curves with WebGL.
        flags = ["--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def _page(browser: Browser, screenshot: Path, *, user: str = "", password: str = "") -> Iterator[Page]:
    """Yield a page of a new user, and save its screenshot at the end, whether the block succeeds or fails."""
    credentials = {"username": user, "password": password} if user else None
    # Wide, because MLflow's table omits the columns that do not fit.
    context = browser.new_context(viewport={"width": 3200, "height": 1200}, http_credentials=credentials)
    context.set_default_timeout(1000 * SECONDS)
    page = context.new_page()
    try:
        yield page
    finally:
        screenshot.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=screenshot)
        context.close()


def open_every_page(
    urls: Mapping[str, str],
    *,
    secrets: Mapping[str, str],
    user: str,
    flow_runs: Mapping[str, str],
    epochs: int,
    experiment: str,
    pictures: Path,
) -> None:
    """Find the runs by name on every dashboard, and save a screenshot of each in `pictures`.

    A Ray job and MLflow's runs have the name of their flow run.

    Args:
        urls: URL of each page.
        secrets: password or token of each page.
        user: MLflow's user.
        flow_runs: name of the flow run of each stage.
        epochs: number of epochs of a trial of the search.
        experiment: MLflow's experiment with the search.
        pictures: folder for the screenshots.
    """
    search = flow_runs["search"]
    with chromium() as browser:
        for stage, name in flow_runs.items():
            picture = pictures / f"prefect-{stage}.png"
            shown = ("ray-job", stage) if stage in ("search", "train") else ()
            open_prefect(
                browser, urls["prefect"], password=secrets["prefect"], name=name, artifacts=shown, screenshot=picture
            )
        ray, token = urls["ray"], secrets["ray"]
        open_ray_job(browser, ray, token=token, name=search, screenshot=pictures / "ray-job.png")
        open_ray_job(browser, ray, token=token, name=flow_runs["train"], screenshot=pictures / "ray-train.png")
        log, picture = re.compile(rf"trial \d+: epoch 1/{epochs}: train loss"), pictures / "ray-actor.png"
        open_ray_actor(browser, ray, token=token, name=search, log=log, screenshot=picture)
        open_tensorboard(browser, urls["tensorboard"], name=search, screenshot=pictures / "tensorboard.png")
        open_optuna(browser, urls["optuna"], name=search, screenshot=pictures / "optuna.png")
        open_mlflow(
            browser,
            urls["mlflow"],
            user=user,
            password=secrets["mlflow"],
            experiment=experiment,
            name=search,
            screenshot=pictures / "mlflow.png",
        )


def open_prefect(
    browser: Browser, url: str, *, password: str, name: str, artifacts: Sequence[str], screenshot: Path
) -> None:
    """Log in to Prefect, and find the completed flow run `name` and its `artifacts` by their keys."""
    with _page(browser, screenshot) as page:
        page.goto(url)
        page.fill("input[type=password]", password)
        page.click("button:has-text('Login')")
        expect(page.locator("input[type=password]")).to_have_count(0)
        page.goto(f"{url}/v2/runs")
        page.get_by_placeholder("Search by flow run name").fill(name)
        page.get_by_role("link", name=name, exact=True).first.click()
        page.wait_for_url(re.compile("/flow-run/"))
        expect(page.get_by_text("Completed", exact=True).first).to_be_visible()
        if artifacts:
            page.get_by_role("tab", name="Artifacts").click()
        for key in artifacts:
            expect(page.get_by_role("link", name=re.compile(rf"\b{key}\b")).first).to_be_visible()


def open_ray_job(browser: Browser, url: str, *, token: str, name: str, screenshot: Path) -> None:
    """Log in to Ray's dashboard, and find the succeeded job `name`."""
    with _page(browser, screenshot) as page:
        _log_in_to_ray(page, f"{url}/#/jobs", token=token)
        expect(page.locator("tr").filter(has_text=name).first).to_contain_text("SUCCEEDED")


def open_ray_actor(
    browser: Browser, url: str, *, token: str, name: str, log: re.Pattern[str], screenshot: Path
) -> None:
    """Log in to Ray's dashboard, find the actor named `name`, and find `log` in its output."""
    with _page(browser, screenshot) as page:
        _log_in_to_ray(page, f"{url}/#/actors", token=token)
        page.get_by_label("repr").fill(name)
        page.keyboard.press("Enter")
        page.locator("tr").filter(has_text=name).first.get_by_role("link", name="Log").click()
        page.get_by_role("tab", name="STDOUT").click()
        expect(page.get_by_text(log).first).to_be_visible()
        page.get_by_text(log).first.scroll_into_view_if_needed()


def open_tensorboard(browser: Browser, url: str, *, name: str, screenshot: Path) -> None:
    """Find the search `name` in TensorBoard: its curves, then validation accuracy against its hyperparameters."""
    with _page(browser, screenshot.with_stem(f"{screenshot.stem}-curves")) as page:
        page.goto(f"{url}/#timeseries")
        expect(page.get_by_text(name).first).to_be_visible()
        expect(page.get_by_text("validation_accuracy").first).to_be_visible()
        page.wait_for_timeout(2000)  # only for the screenshot: the lines are drawn late
    with _page(browser, screenshot) as page:
        page.goto(f"{url}/#hparams")
        expect(page.get_by_text(name).first).to_be_visible()
        # TensorBoard shows only the first five of each kind until their boxes are checked.
        for column in (*HYPER_PARAMETERS, "validation_accuracy"):
            box = page.get_by_role("checkbox", name=column, exact=True)
            if box.get_attribute("aria-checked") == "false":
                box.click()
        for column in (*HYPER_PARAMETERS, "validation_accuracy"):
            expect(page.get_by_text(column, exact=True).nth(1)).to_be_attached()  # the first match is the box's label


def open_optuna(browser: Browser, url: str, *, name: str, screenshot: Path) -> None:
    """Find the search `name` in optuna-dashboard: its importances and timeline, then its parallel coordinates."""
    with _page(browser, screenshot) as page:
        page.goto(url)
        page.get_by_text(name).first.click()
        page.wait_for_url(re.compile(r"/studies/\d+"))
        for title in ("Hyperparameter Importance", "Timeline"):
            expect(page.get_by_text(title, exact=True).first).to_be_visible()
        # The bars of the importances are labelled with the settings.
        for field in HYPER_PARAMETERS:
            expect(page.locator("svg text").filter(has_text=field).first).to_be_attached()
    with _page(browser, screenshot.with_stem(f"{screenshot.stem}-parallel")) as page:
        page.goto(url)
        page.get_by_text(name).first.click()
        page.wait_for_url(re.compile(r"/studies/\d+"))
        page.goto(f"{page.url}/smartSelection")
        axes = page.locator(".parcoords .axis-title")
        for field in HYPER_PARAMETERS:
            expect(axes.filter(has_text=field).first).to_be_attached()


def open_mlflow(
    browser: Browser, url: str, *, user: str, password: str, experiment: str, name: str, screenshot: Path
) -> None:
    """Log in to MLflow, and find the runs of the search `name`: validation accuracy against its hyperparameters."""
    with _page(browser, screenshot, user=user, password=password) as page:
        page.goto(f"{url}/#/experiments")
        page.get_by_role("link", name=experiment, exact=True).first.click()
        page.wait_for_url(re.compile(r"/experiments/\d+"))
        page.goto(re.sub(r"(/experiments/\d+).*", r"\1/runs", page.url))
        # A search is one row; its trials are rows below it once it is unfolded.
        page.get_by_role("gridcell").filter(has_text=name).get_by_role("button").first.click()
        expect(page.get_by_role("link", name=re.compile(f"^{re.escape(name)}-")).first).to_be_visible()
        page.get_by_role("button", name="Columns", exact=True).click()
        for group in ("Metrics", "Parameters"):
            node = page.locator("[class*=tree-treenode]").filter(has=page.get_by_title(re.compile(f"^{group} ")))
            node.locator("[class*=tree-checkbox]").first.click()
        page.keyboard.press("Escape")
        for column in ("validation_accuracy", *HYPER_PARAMETERS):
            expect(page.get_by_text(column, exact=True).first).to_be_visible()


def _log_in_to_ray(page: Page, url: str, *, token: str) -> None:
    page.goto(url)
    page.fill("input[type=password]", token)
    page.click("button:has-text('Submit')")
    expect(page.locator("input[type=password]")).to_have_count(0)
