"""Tests of a cluster on one machine: real servers in network namespaces, started through `deploy/`."""
