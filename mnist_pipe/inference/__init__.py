"""Predictions of a registered model, for image files or for Parquet files."""
