"""The experiments that reproduce the literature, one package each; `STUDIES` names them in the README's order.

In each package, `runs.py` defines what is computed, `findings.py` how it is shown, and `study.py` puts the two together
as `STUDY`. What was measured is stored beside them: `runs.json`, `times.json`, `table.csv` and the figures.
`dvc --cd studies repro <study>` produces all of it.
"""

from __future__ import annotations

STUDIES = ("lecun1998", "optimizers", "gradient_descent", "cnn", "ladder", "frontier")
STAGES = {f"{study}-runs": study for study in STUDIES}
"""Name of each study, by the stage that measures it; the stage with the study's own name then shows it."""
SHOWING = ("study.py", "findings.py", "figures.py", "results.py")
"""File names of a study's modules that only show what the others compute; changing them leaves its runs valid."""
COMPUTING = ("deskew.py", "fitting.py")
"""File names of the modules of `studies/common` with which runs are computed."""
