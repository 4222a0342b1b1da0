"""Definition of the study `gradient_descent`."""

from __future__ import annotations

from studies.common.study import Study
from studies.gradient_descent import demonstrations, findings, runs

STUDY = Study(
    params=runs.Params,
    plan=runs.plan,
    plan_from_results=runs.plan_finals,
    run=runs.run,
    conclude=demonstrations.conclude,
    question="Does gradient descent, written out as in a lesson, learn digits as the lesson says?",
    answer=findings.render_answer,
    rows=findings.rows,
    draw=findings.draw,
    render_findings=findings.render_findings,
)
