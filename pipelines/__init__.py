"""The Prefect flows, one for each DVC stage. `STAGES` lists all stages in the order of the DAG."""

from __future__ import annotations

STAGES: dict[str, tuple[str, ...]] = {  # stage: the sections of params.yaml that its flow takes
    "ingest": ("ingest",),
    "normalize": ("normalize",),
    "baseline": ("baseline",),
    "search": ("search", "recipe", "models", "train.precision"),
    "train": ("train", "recipe", "models"),
    "evaluate": ("evaluate",),
    "register": ("register",),
    "report": (),
}

RESUMED = ("search", "train")
"""Stages whose flows also take the run's name, which names Ray's job, the trials and the checkpoints."""
