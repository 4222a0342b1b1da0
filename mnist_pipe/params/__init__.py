"""Types of `params.yaml` (`schema`), how it is read (`loader`), and the wording of its errors (`messages`)."""
