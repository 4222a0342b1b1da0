"""Definition of the study `ladder`."""

from __future__ import annotations

from studies.common.study import Study
from studies.ladder import figures, findings, runs

STUDY = Study(
    params=runs.Params,
    plan=runs.plan,
    run=runs.run,
    on_gpu=lambda config: config["task"] != "prototypes",
    conclude=runs.conclude,
    question="What does each step from a linear classifier to a larger convnet gain?",
    answer=findings.render_answer,
    rows=findings.rows,
    draw=figures.draw,
    render_findings=findings.render_findings,
)
