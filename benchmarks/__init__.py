"""Benchmarks of this project and of the usual alternatives; run one with `python -m benchmarks NAME`."""
