"""Evaluation of logits: metrics, significance tests, plots and the report."""
