"""Definition of the study `optimizers`."""

from __future__ import annotations

from studies.common.study import Study
from studies.optimizers import figures, findings, runs

STUDY = Study(
    params=runs.Params,
    plan=runs.plan,
    plan_from_results=runs.plan_columns,
    run=runs.run,
    on_gpu=lambda _: True,
    question="Does LeNet-5's accuracy depend on the optimizer as a report says?",
    answer=findings.render_answer,
    rows=findings.rows,
    draw=figures.draw,
    render_findings=findings.render_findings,
)
