"""Run one stage's flow, as `dvc.yaml` does: `python -m pipelines STAGE`; a study's stage is `STUDY-runs`.

Exits with 0 when the flow has completed. Otherwise it prints one line and exits with a code of errors.py (2 bad input,
3 environment, 4 corrupt data, 75 busy), with 130 on Ctrl-C, or with 143 on SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import studies
from mnist_pipe import command_line, experiment, interpreter, paths
from mnist_pipe.errors import printable, unknown
from pipelines import RESUMED, STAGES

if TYPE_CHECKING:
    from prefect import Flow


def main() -> int:
    """Run the stage that the command line names, under a supervisor."""
    parser = command_line.Parser(prog="python -m pipelines", description=__doc__.split("\n")[0])
    parser.add_argument("stage", help=f"one of {', '.join(STAGES)}")
    return command_line.run(parser, _supervised)


def _supervised(options: argparse.Namespace) -> int:
    experiment.link_state(Path.cwd())
    interpreter.enter("pipelines")
    from mnist_pipe.local import supervisor

    if options.stage not in {*STAGES, *studies.STAGES}:
        raise unknown("python -m pipelines", "stage", options.stage, {*STAGES, *studies.STAGES})
    if (code := supervisor.run_supervised("pipelines", options.arguments)) is not None:
        return code
    run(options.stage, debug=options.debug)
    return 0


def run(stage: str, *, debug: bool = False) -> None:
    """Make all checks that are possible before work starts, then run the stage's flow here or on the cluster.

    The flow runs on the cluster if MNIST_PIPE_WORK_POOL is set, otherwise in this process.

    Raises:
        PipelineError: with the whole message for the user.
    """
    from mnist_pipe import atomic, preflight, timings
    from mnist_pipe.cluster import dvc_stages, handoff
    from mnist_pipe.local import dvc_files, services, supervisor
    from mnist_pipe.params.schema import IngestParams

    root, belongs_to = Path.cwd(), experiment.current(Path.cwd())
    on_cluster = bool(os.environ.get(handoff.WORK_POOL))
    preflight.check_names(root)
    deployed, parameters, made_from = _study(stage) if stage in studies.STAGES else _stage(stage, on_cluster=on_cluster)
    os.environ.update(services.environment(root))
    if not debug:  # what a server of its own cannot do, for example on a full disk, is the stage's error too
        os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")
    preflight.check_places(root, stage, on_cluster=on_cluster)
    if joined := services.joined(root):
        # Prefect and Ray would wait for minutes for a server that was stopped, and Ray without end for a frozen one.
        supervisor.raise_when(services.lost(joined))
    # Each stage uses the whole machine, so the stages of experiments run one after the other. By hand, a stage does not
    # wait: DVC keeps two of its own processes from running the same stage, but not a user.
    holder = f"({stage}{f' of experiment {belongs_to.name}' if belongs_to else ''})"
    wait = "DVC_STAGE" in os.environ
    with atomic.locked(paths.STATE / "stage.lock", purpose="a stage", holder=holder, wait=wait, limit_seconds=math.inf):
        started = time.monotonic()
        for folder in paths.WRITTEN:
            atomic.remove_leftovers(folder)
        atomic.remove_leftovers(paths.STATE, recursive=False)  # other programs, such as Ray, write its other folders
        if not experiment.is_clone(root):  # DVC deletes a clone's lock files with it
            dvc_files.keep(root)
            dvc_files.forget_the_dead(root)
        if "DVC_STAGE" in os.environ:  # by hand, a stage may be run on files that DVC has not seen
            dvc_stages.verify_inputs(stage, root)
        name = handoff.run_name(stage, root, params=made_from)
        if stage in RESUMED:
            parameters["run_name"] = name
        if stage == "ingest":
            own = IngestParams.model_validate(parameters["params"])
            experiment.link_files(root, Path(own.path))
            if not on_cluster:
                preflight.check_files(own)
        if on_cluster:
            from pipelines.trigger import trigger

            trigger(stage, root, flow=deployed, parameters=parameters, name=name)
        else:
            flow = load_flow(deployed)  # before the filters: its import makes Prefect's handler
            from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

            for handler in logging.getLogger().handlers:  # Prefect's console; the server still gets every record
                handler.addFilter(_without_control_characters)
                if not debug:
                    handler.addFilter(_is_shown)
            # Heartbeats let a server's automations detect a dead run; DVC itself notices when this one dies. Their
            # thread would delay the end of the flow by up to 1 s.
            with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
                flow.with_options(flow_run_name=name)(**parameters)
        timings.record(stage, seconds=time.monotonic() - started, root=root)


def load_flow(name: str) -> Flow[..., None]:
    """Import and return the flow of a stage, or `study` for a study's runs.

    Only that flow's module is imported, because importing all of them takes 0.3 s.
    """
    from prefect.flows import load_flow_from_entrypoint

    return load_flow_from_entrypoint(f"pipelines.{name}.{name}")


def _stage(stage: str, *, on_cluster: bool) -> tuple[str, dict[str, Any], Any]:
    """Return a main stage's flow, the flow's parameters, and the content whose digest names its run."""
    from mnist_pipe import models, preflight

    params = preflight.load_params(paths.PARAMS)
    if not on_cluster:
        preflight.check_params(params)
        if stage == "ingest":
            preflight.check_own(params, root=Path.cwd())
    if "models" in STAGES[stage]:
        recipe = params.recipes[params.recipe]
        space, trained = params.search.space.get("model_params"), {recipe.model}
        if stage == "search":
            trained = set(params.search.space.get("model", [recipe.model]))
        arguments = {**params.models, recipe.model: recipe.model_params}
        models.check(arguments, space=space, trained=sorted(trained), facts=preflight.facts_of_data(Path.cwd()))
        if doubt := preflight.doubt_about_validation(params, root=Path.cwd()):
            command_line.show(f"warning: {doubt}", error=True)
    values = preflight.sections(params, STAGES[stage])
    parameters = _parameters(values)
    if stage == "register" and (belongs_to := experiment.current(Path.cwd())):
        # Applied and reproduced, it must be another run than in the experiment, which the cluster would not repeat.
        parameters["experiment"] = values["experiment"] = asdict(belongs_to)
    return stage, parameters, values or params.model_dump(mode="json")


def _study(stage: str) -> tuple[str, dict[str, Any], Any]:
    """Return the same as `_stage` for a study's stage; all studies share one flow."""
    from studies.common import catalogue

    study = studies.STAGES[stage]
    params = catalogue.params_of(study).model_dump(mode="json")
    return "study", {"study": study, "params": params}, params


def _parameters(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flow's parameters: the stage's own section as `params`, the others by the last part of their names."""
    own = next(iter(sections), None)
    return {"params" if name == own else name.rpartition(".")[2]: content for name, content in sections.items()}


def _is_shown(record: logging.LogRecord) -> bool:
    """Return whether the terminal shows a log record.

    Prefect logs an error four times, twice with a traceback. These records are hidden, because the command itself
    prints the error once, at the end.
    """
    return record.exc_info is None and not record.getMessage().startswith("Finished in state Failed")


def _without_control_characters(record: logging.LogRecord) -> bool:
    """Replace the control characters in a log record, whose text may be a mirror's; return True, as it is shown."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


if __name__ == "__main__":
    sys.exit(main())
