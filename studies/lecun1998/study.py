"""Definition of the study `lecun1998`."""

from __future__ import annotations

from studies.common.study import Study
from studies.lecun1998 import findings, runs

STUDY = Study(
    params=runs.Params,
    plan=runs.plan,
    run=runs.run,
    conclude=runs.conclude,
    title="Every system of LeCun et al. 1998",
    rows=findings.rows,
    draw=findings.draw,
    render_findings=findings.render_findings,
)
