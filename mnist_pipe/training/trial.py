"""One trial of a search, as Ray Tune runs it; without what its driver alone needs, so that it starts sooner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from ray import tune
from ray.tune.result import DONE

from mnist_pipe.cluster import check_code
from mnist_pipe.files import digest
from mnist_pipe.training.loop import DivergedError, new_run, progress_line, recipe_of, resident, train

METRIC = "validation_accuracy"


def config_of(proposal: Mapping[str, Any]) -> dict[str, Any]:
    """What a proposal searches: without the trial's number and the learning rate's name within Optuna."""
    return {key: proposal[key] for key in proposal if key != "trial" and not key.startswith("learning_rate.")}


class Trial(tune.Trainable):  # type: ignore[misc]
    """One trial at a time, in a Ray actor that many share; what it prints is the actor's log in Ray's dashboard.

    A class and not a function: Tune runs a function in a thread and polls it five times a second, so that a trial
    which reports and ends costs 0.2 s more.
    """

    def setup(self, config: dict[str, Any], **given: Any) -> None:
        """`given` is what `search` hands to every trial."""
        check_code(given["code"])
        torch.set_num_threads(given["num_threads"])
        self._given = given
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._training = resident(given["training"], device=self._device, num_rows=given["train_rows"])
        self._validation = resident(given["validation"], device=self._device)
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial in this process."""
        self._start(new_config)
        return True

    def __repr__(self) -> str:
        return type(self).__name__

    def step(self) -> dict[str, Any]:
        """One epoch."""
        num_epochs = self._given["num_epochs"]
        try:
            metrics = next(self._epochs)
        except DivergedError as fault:
            # ASHA compares with `<`, which is false for NaN, so a diverged trial would run on and could be best: it
            # reports the worst finite score and ends.
            self._say(fault)
            return {"epoch": num_epochs, METRIC: 0.0, "diverged": 1, DONE: True}
        return {DONE: metrics["epoch"] >= num_epochs, **metrics}

    def _start(self, proposal: dict[str, Any]) -> None:
        config = config_of(proposal)
        self._say = partial(print, f"trial {proposal['trial']}:", flush=True)
        self._say(
            ", ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in config.items()
            )
        )
        recorded = self._given["known"].get(digest(config))
        if recorded is not None:
            self._say("had ended before the search was interrupted")
            self._epochs = iter([*recorded[:-1], {**recorded[-1], DONE: True}])
        else:
            self._epochs = self._train(config)

    def _train(self, config: dict[str, Any]) -> Iterator[dict[str, float]]:
        given = self._given
        recipe = recipe_of(
            given["recipe"],
            found=config,
            models=given["model_params"],
            num_epochs=given["num_epochs"],
            seed=given["seed"],
        )
        model, optimizer = new_run(recipe, device=self._device)
        for metrics in train(
            recipe, model=model, optimizer=optimizer, training=self._training, validation=self._validation
        ):
            self._say(progress_line(metrics, num_epochs=recipe.num_epochs))
            yield metrics
