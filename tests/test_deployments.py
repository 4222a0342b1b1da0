"""Test the deployments of `prefect.yaml` on a Prefect server; `tests/cluster` runs them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL

from pipelines import deployments
from tests.support.checkout import copy_tree

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]
SIGN = re.compile(r"(?<=^    )# (?=schedules:|  )", re.MULTILINE)


@pytest.mark.usefixtures("prefect_server")
def test_the_commented_schedule_is_deployed_once_its_signs_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy_tree(tmp_path / "main")
    file = root / deployments.FILE
    text, number = SIGN.subn("", file.read_text())
    assert number == 5
    file.write_text(text)
    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
    monkeypatch.setenv("MNIST_PIPE_WORK_POOL", "gpu")
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="gpu", type="process"))
        assert "rebuild/gpu" in deployments.deploy(root)
        [scheduled] = client.read_deployment_by_name("rebuild/gpu").schedules
        assert client.read_deployment_by_name("train/gpu").schedules == []
    assert scheduled.active
    assert scheduled.schedule == CronSchedule(cron="0 3 * * *", timezone="UTC")
