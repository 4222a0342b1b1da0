"""`params.yaml`: what it may hold (`schema`), how it is read (`loader`), how errors read (`messages`)."""
