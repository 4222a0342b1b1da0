"""Definition of the study `cnn`."""

from __future__ import annotations

from studies.cnn import findings, runs
from studies.common.study import Study

STUDY = Study(
    params=runs.Params,
    plan=runs.plan,
    run=runs.run,
    conclude=runs.conclude,
    title="the augmented CNN of a report, its overfitting, and the improvements that it proposes",
    rows=findings.rows,
    draw=findings.draw,
    render_findings=findings.render_findings,
)
