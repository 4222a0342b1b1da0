"""The project's paths, relative to its root. `dvc.yaml` names the same paths; a test compares the two."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import quote

from mnist_pipe.errors import InputError

PARAMS = Path("params.yaml")
CODE = (Path("mnist_pipe"), Path("pipelines"))  # folders that hold only code; STUDIES also holds the studies' data

RAW = Path("data/raw")
NORMALIZED = Path("data/normalized")
SPLITS = {split: NORMALIZED / f"{split}.parquet" for split in ("train", "validation", "test")}
TRAINING_SPLITS = {split: NORMALIZED / f"{split}.parquet" for split in ("train", "validation")}  # never the test split

BASELINE = Path("models/baseline")
BEST = Path("models/best.json")  # the search's best configuration
CANDIDATE = Path("models/candidate")
CARD = "model.json"  # in a model's folder: the metadata that loading its weights needs

REPORTS = Path("reports")
DATA_REPORT = REPORTS / "data.json"
BASELINE_REPORT = REPORTS / "baseline.json"
TRIALS = REPORTS / "trials.csv"
SEARCH_REPORT = REPORTS / "search.json"
TRAIN_REPORT = REPORTS / "train.json"
CURVES = REPORTS / "curves.csv"
EVALUATION = REPORTS / "evaluation.json"
METRICS = REPORTS / "metrics.json"  # those of EVALUATION that `dvc metrics show` prints
CONFUSION = REPORTS / "confusion.csv"
PLOTS = REPORTS / "plots"
PREDICTIONS = REPORTS / "predictions"
REGISTRATION = REPORTS / "registration.json"
REPORT = REPORTS / "index.html"

STUDIES = Path("studies")
DVC_FILES = (Path("dvc.yaml"), STUDIES / "dvc.yaml")
DVC_LOCKS = tuple(path.with_suffix(".lock") for path in DVC_FILES)
DVC_RWLOCKS = tuple(path.with_name(".dvc") / "tmp/rwlock" for path in DVC_FILES)
"""DVC's records of which of its processes reads and writes what, one for each DVC project."""
STUDY_PARAMS = STUDIES / "params.yaml"
PUBLISHED = STUDIES / "published.csv"
STUDY_RUNS, STUDY_TIMES = "runs.json", "times.json"  # in a study's folder: its measurements and their durations

STATE = Path(".state")  # never a DVC output: DVC deletes outputs before a stage runs
SERVICES = STATE / "services.json"
RAY_METRICS = STATE / "metrics"
"""Ray's files for Prometheus and Grafana, and the data of the local Prometheus."""
TIMINGS = STATE / "timings.json"
REVISION = STATE / "revision.json"  # on a cluster's worker: the client's commit
RUNS = STATE / "runs"  # the last checkpoints of unfinished runs
RAY_RESULTS = STATE / "ray"  # files of Ray Tune and Ray Train; TensorBoard reads the search's curves here
JOURNAL = "optuna/journal.log"  # in the storage: the trials of all searches, for optuna-dashboard
JOURNAL_COPY = STATE / "journal.log"  # where the storage is a bucket
PREFECT_HOME = STATE / "prefect"
MLFLOW_DB = STATE / "mlflow.db"
MLFLOW_ARTIFACTS = STATE / "mlflow"
MLFLOW_ROOT = f"{'/proc/self/cwd' if sys.platform == 'linux' else Path.cwd()}/{MLFLOW_ARTIFACTS}"
"""The same folder as MLflow records it: MLflow takes absolute paths only, and this one is that of the checkout in whose
folder a program runs, so that a copy of the checkout never reads or deletes files of the original. macOS has no such
path; there a copy names the original's files."""
KEPT_LOCKS = STATE / "dvc"  # copies of DVC's lock files
RESOLVED = STATE / "versions.json"  # which versions names stood for

WRITTEN = (
    Path("data"),
    Path("models"),
    REPORTS,
    *(STATE / name for name in ("downloads", "dvc", "mlflow", "objects", "runs", "secrets", "studies", "trials")),
)
"""Folders whose files are written through `atomic` or, in the storage, the same way."""


def find_root(start: Path) -> Path:
    """Return the nearest folder at or above `start` that holds `params.yaml` and `dvc.yaml`.

    Raises:
        InputError: there is no such folder.
    """
    for folder in (start.resolve(), *start.resolve().parents):
        if folder.name != STUDIES.name and (folder / PARAMS).is_file() and (folder / "dvc.yaml").is_file():
            return folder
    raise InputError.invalid(
        start.resolve(),
        "the folder",
        "be in a mnist-pipe project",
        got="no params.yaml above it",
        fix="change to the folder that holds params.yaml and dvc.yaml",
    )


def sqlite_uri(database: Path, *, driver: str = "pysqlite") -> str:
    """Return the address of a SQLite database, as SQLAlchemy decodes it: a `?` in a path would begin options."""
    quoted = quote(os.fsencode(database))
    if quoted == str(database) and driver == "pysqlite":
        return f"sqlite:///{database}"
    # With the driver's name, because MLflow creates the parent folder of a `sqlite:///` without decoding it.
    return f"sqlite+{driver}:///{quoted}"
