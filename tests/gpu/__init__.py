"""Tests that need a GPU: `make test-all TIER=gpu`. They were written without one, and none of them has run on one."""
