"""Tests that break what works and count: `make test-chaos`, at most an hour on two cores."""
