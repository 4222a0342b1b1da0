"""Trials of a search, as Ray Tune runs them.

This module does not import what only the driver needs, so that trials start sooner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from ray import tune
from ray.tune.result import DONE

from mnist_pipe.atomic import digest
from mnist_pipe.cluster.ray_session import check_code
from mnist_pipe.training.batches import to_device
from mnist_pipe.training.loop import DivergedError, new_run, progress_line, train
from mnist_pipe.training.recipe import Recipe, recipe_of
from mnist_pipe.tuning.space import PACK, config_of
from mnist_pipe.tuning.vmapped import train_pack

METRIC = "validation_accuracy"
MEMBERS = "members"
"""Key of a pack's reported result that holds the metrics of each member."""


def proposals_of(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the proposals in a Tune config: a single one, or those of a pack."""
    found: list[Mapping[str, Any]] = config.get(PACK, [config])
    return found


def trial_recipe(proposal: Mapping[str, Any], shared: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a proposal trains; `shared` are the parameters that `search` passes to every trial."""
    config = config_of(proposal)
    return recipe_of(
        shared["recipe"],
        found=config,
        models=shared["models"],
        num_epochs=config.get("num_epochs", shared["num_epochs"]),
        precision=shared["precision"],
        seed=shared["seed"],
    )


class Trial(tune.Trainable):  # type: ignore[misc]
    """Trainable that runs one trial or pack at a time, in a Ray actor that is reused for the next one.

    Ray's dashboard shows what it prints as the actor's log. It is a class and not a function because Tune runs a
    function in a thread and polls it five times a second, so that a trial which reports and ends takes 0.2 s more.
    """

    def setup(self, config: dict[str, Any], **shared: Any) -> None:
        """Copy the data to the device and start the first trial; `shared` are the parameters that `search` passes."""
        check_code(shared["code"])
        torch.set_num_threads(shared["num_threads"])
        self._shared = shared
        self._device = torch.device(shared["device"])
        self._training = to_device(shared["training"], device=self._device)
        self._validation = to_device(shared["validation"], device=self._device)
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start the next trial in this process, and return True, which confirms the reuse to Tune."""
        self._start(new_config)
        return True

    def __repr__(self) -> str:
        return type(self).__name__

    def step(self) -> dict[str, Any]:
        """Train one epoch, and return its metrics."""
        try:
            metrics = next(self._epochs)
        except DivergedError as error:
            self._printers[0](error)  # a single trial: packs report a diverged member and do not raise
            return {**_diverged(self._num_epochs), DONE: True}
        return {DONE: metrics["epoch"] >= self._num_epochs, **metrics}

    def _start(self, config: Mapping[str, Any]) -> None:
        proposals = proposals_of(config)
        self._printers = [partial(print, f"trial {proposal['trial']}:", flush=True) for proposal in proposals]
        for print_line, proposal in zip(self._printers, proposals, strict=True):
            print_line(
                ", ".join(
                    f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                    for key, value in config_of(proposal).items()
                )
            )
        self._num_epochs = trial_recipe(proposals[0], self._shared).num_epochs
        recorded = self._shared["known"].get(digest(config_of(proposals[0])))
        if len(proposals) > 1:
            self._epochs = self._train_together(proposals)
        elif recorded is not None:
            self._printers[0]("finished before the interruption; its recorded metrics are reported again")
            self._epochs = iter([*recorded[:-1], {**recorded[-1], DONE: True}])
        else:
            self._epochs = self._train(proposals[0])

    def _train(self, proposal: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        recipe = trial_recipe(proposal, self._shared)
        model, optimizer = new_run(recipe, device=self._device, facts=self._shared["training"].facts)
        for metrics in train(
            recipe, model=model, optimizer=optimizer, training=self._training, validation=self._validation
        ):
            self._printers[0](progress_line(metrics, num_epochs=recipe.num_epochs))
            yield metrics

    def _train_together(self, proposals: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        recipes = [trial_recipe(proposal, self._shared) for proposal in proposals]
        num_epochs = recipes[0].num_epochs
        epochs = train_pack(
            recipes,
            training=self._training,
            validation=self._validation,
            device=self._device,
            facts=self._shared["training"].facts,
        )
        for epoch, members in enumerate(epochs, start=1):
            reported = [_diverged(num_epochs) if metrics.get("diverged") else metrics for metrics in members]
            for print_line, metrics in zip(self._printers, reported, strict=True):
                print_line("diverged" if metrics.get("diverged") else progress_line(metrics, num_epochs=num_epochs))
            yield {"epoch": epoch, METRIC: max(metrics[METRIC] for metrics in reported), MEMBERS: reported}


def _diverged(num_epochs: int) -> dict[str, float]:
    """Return the metrics of a diverged trial, with the worst finite score.

    ASHA compares scores with `<`, which is false for NaN, so a trial with a NaN score would not be stopped.
    """
    return {"epoch": num_epochs, METRIC: 0.0, "diverged": 1}
