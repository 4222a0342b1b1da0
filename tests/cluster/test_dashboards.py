"""Test the cluster's dashboards, as a user on the client opens them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.cluster.bed import Bed
from tests.cluster.project import SMALL, Project

pytestmark = [pytest.mark.cluster, pytest.mark.browser, pytest.mark.timeout(1200)]
PAGES = {"prefect": 4200, "ray": 8265, "tensorboard": 6006, "optuna": 8080, "mlflow": 5000}


def test_a_browser_finds_this_run_by_name_on_every_page(
    bed: Bed, rebuilt: str, project: Project, tmp_path: Path
) -> None:
    from tests.support import browser

    pictures = Path(os.environ.get("MNIST_PIPE_SCREENSHOTS") or tmp_path) / "cluster"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": bed.secrets["RAY_AUTH_TOKEN"]}
    opened = project.run("mnist-pipe", "dashboards", env=token)
    assert opened.returncode == 0, opened.stdout + opened.stderr
    urls = dict(re.findall(r"^ok +(\w+) +(http://\S+)", opened.stdout, flags=re.MULTILINE))
    assert {name: int(url.rpartition(":")[2]) for name, url in urls.items()} == PAGES
    runs = {stage: re.search(rf"({stage}-[0-9a-f]{{12}}): Completed", rebuilt) for stage in ("search", "train")}
    with bed.inside("client"):
        browser.open_every_page(
            urls,
            secrets={
                "prefect": bed.client_env["PREFECT_API_AUTH_STRING"],
                "ray": bed.secrets["RAY_AUTH_TOKEN"],
                "mlflow": bed.secrets["MLFLOW_TRACKING_PASSWORD"],
            },
            user="mnist",
            flow_runs={stage: found[1] for stage, found in runs.items() if found},
            epochs=SMALL["search.num_epochs"],
            experiment="mnist-search",
            pictures=pictures,
        )
    assert len(list(pictures.glob("*.png"))) == 10
    assert [word for word in bed.secrets.values() if word in opened.stdout + opened.stderr] == []
