"""Definition of the study `ladder`."""

from __future__ import annotations

from studies.common.study import Study
from studies.ladder import figures, findings, runs

STUDY = Study(
    params=runs.Params,
    plan=runs.plan,
    run=runs.run,
    conclude=runs.conclude,
    title="A ladder from the linear classifier",
    rows=findings.rows,
    draw=figures.draw,
    render_findings=findings.render_findings,
)
