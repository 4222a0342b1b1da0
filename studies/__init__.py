"""The experiments that reproduce the literature, one package each; `STUDIES` names them in the README's order.

Of each, `<study>/runs.py` says what is computed, `findings.py` how it is shown, and `study.py` puts the two together as
`STUDY`; beside them lies what was measured: `runs.json`, `times.json`, `table.csv` and the figures.
`dvc repro studies/dvc.yaml:<study>` makes all of it.
"""

from __future__ import annotations

STUDIES = ("lecun1998", "optimizers", "gradient_descent", "cnn", "ladder", "frontier")
STAGES = {f"{study}-runs": study for study in STUDIES}
"""The stage that measures a study; the stage of the study's own name then shows it."""
SHOWING = ("study.py", "findings.py", "figures.py", "results.py")
"""The modules of a study that show what its other modules compute: a change of them leaves its runs valid."""
COMPUTING = ("deskew.py", "fitting.py")
"""The modules of `studies/common` that runs are computed with."""
