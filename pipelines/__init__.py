"""One Prefect flow a DVC stage. `STAGES` names them all, in the order of the DAG."""

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
"""The stages whose flows take the name of their run too: Ray's job, the trials and the checkpoints bear it."""
