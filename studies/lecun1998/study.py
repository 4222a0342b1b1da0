"""Definition of the study `lecun1998`."""

from __future__ import annotations

from studies.common.study import Study
from studies.lecun1998 import findings, runs

STUDY = Study(
    params=runs.Params,
    plan=runs.plan,
    run=runs.run,
    on_gpu=lambda config: config["method"] in ("network", "LeNet-4", "boosted"),
    conclude=runs.conclude,
    question="Do the systems of LeCun et al. 1998 still have their published errors?",
    answer=findings.render_answer,
    rows=findings.rows,
    draw=findings.draw,
    render_findings=findings.render_findings,
)
