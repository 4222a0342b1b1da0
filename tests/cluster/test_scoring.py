"""Test `mnist-pipe score` as a driver of the cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.cluster.bed import BUCKET, Bed
from tests.cluster.project import Project

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def score(bed: Bed, project: Project, source: str, output: Path) -> str:
    done = bed.script("run", "mnist-pipe", "score", source, output, cwd=project.folder, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout.strip())
    return done.stdout


@pytest.mark.usefixtures("rebuilt")
def test_scores_of_local_and_s3_files_have_the_evaluations_accuracy(bed: Bed, project: Project, tmp_path: Path) -> None:
    evaluation = json.loads((project.folder / "reports/evaluation.json").read_text())
    accuracy = f"accuracy {100 * evaluation['test']['accuracy']:.2f} %"
    file = project.folder / "data/raw/test.parquet"
    with bed.inside("client"):
        bed.s3().upload_file(str(file), BUCKET, "rows/test.parquet")
    assert accuracy in score(bed, project, "data/raw/test.parquet", tmp_path / "here")
    assert accuracy in score(bed, project, f"s3://{BUCKET}/rows", tmp_path / "bucket")
    assert pq.read_table(tmp_path / "here").equals(pq.read_table(tmp_path / "bucket"))


@pytest.mark.usefixtures("rebuilt")
def test_many_rows_are_scored_on_both_nodes(bed: Bed, project: Project, tmp_path: Path) -> None:
    assert "60,000 rows" in score(bed, project, "data/raw/train.parquet", tmp_path / "scores")
    url = f"{bed.dashboard_url}/api/v0/actors?limit=1000&detail=1"
    actors = json.loads(bed.fetch(url, headers=bed.ray_headers)[1])["data"]["result"]["result"]
    last = max(actor["job_id"] for actor in actors)
    scorers = [actor for actor in actors if actor["job_id"] == last and "Scorer" in actor["class_name"]]
    assert len({actor["node_id"] for actor in scorers}) == 2, [actor["class_name"] for actor in actors]
