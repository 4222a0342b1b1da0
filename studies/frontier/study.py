"""Definition of the study `frontier`."""

from __future__ import annotations

from studies.common.study import Study
from studies.frontier import findings, runs

STUDY = Study(
    params=runs.Params,
    plan=runs.plan,
    run=runs.run,
    conclude=runs.conclude,
    title="the best that the machine trains within an hour",
    rows=findings.rows,
    draw=findings.draw,
    render_findings=findings.render_findings,
)
