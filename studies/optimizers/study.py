"""Definition of the study `optimizers`."""

from __future__ import annotations

from studies.common.study import Study
from studies.optimizers import figures, findings, runs

STUDY = Study(
    params=runs.Params,
    tune=runs.tune,
    plan_from_results=runs.plan,
    run=runs.run,
    title="LeNet-5 under every optimizer, at default and at tuned learning rates",
    rows=findings.rows,
    draw=figures.draw,
    render_findings=findings.render_findings,
)
