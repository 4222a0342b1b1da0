"""The library behind `dvc repro`: data, models, training, evaluation and registry. Importing it has no side effect."""
