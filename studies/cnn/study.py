"""Definition of the study `cnn`."""

from __future__ import annotations

from studies.cnn import findings, runs
from studies.common.study import Study

STUDY = Study(
    params=runs.Params,
    plan=runs.plan,
    run=runs.run,
    on_gpu=lambda _: True,
    conclude=runs.conclude,
    question="Does a report's augmented CNN reach its figures, and do the improvements that it proposes help?",
    answer=findings.render_answer,
    rows=findings.rows,
    draw=findings.draw,
    render_findings=findings.render_findings,
)
