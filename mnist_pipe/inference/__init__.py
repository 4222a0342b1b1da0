"""Predictions of a registered model, for one image or for a folder of Parquet files."""
