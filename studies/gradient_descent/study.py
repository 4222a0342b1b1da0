"""Definition of the study `gradient_descent`."""

from __future__ import annotations

from studies.common.study import Study
from studies.gradient_descent import findings, runs

STUDY = Study(
    params=runs.Params,
    plan=runs.plan,
    plan_from_results=runs.plan_finals,
    run=runs.run,
    title="gradient descent on the quadratic cost",
    rows=findings.rows,
    draw=findings.draw,
    render_findings=findings.render_findings,
)
