"""Definition of the study `frontier`."""

from __future__ import annotations

from studies.common.study import Study
from studies.frontier import figures, findings, runs

STUDY = Study(
    params=runs.Params,
    plan=runs.plan,
    plan_from_results=runs.plan_finals,
    run=runs.run,
    on_gpu=lambda _: True,
    conclude=runs.conclude,
    question="How near to the published records does this machine come within an hour and a half?",
    answer=findings.render_answer,
    rows=findings.rows,
    draw=figures.draw,
    render_findings=findings.render_findings,
)
