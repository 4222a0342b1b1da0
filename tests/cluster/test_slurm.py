"""Test SLURM's script on two machines of the bed; stubs of SLURM's programs start processes there, as SLURM does."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_pipe import paths
from tests.cluster.bed import INTERFACE, ROOT, Bed, missing
from tests.cluster.project import change, make

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1200)]

JOB = "7"
NODES = ("node1", "node2")
# Every machine has a name of its own, which leads to its address, sockets of its own, and sees only its own processes.
SRUN = """#!/usr/bin/env bash
set -eu
nodes={nodes}
while [[ $1 == --* ]]; do
    [ "$1" != --nodelist ] || nodes=$2
    shift 2
done
for node in $nodes; do
    ip netns exec {prefix}-$node unshare --uts --pid --fork --mount-proc --kill-child bash -c '
        hostname {host}$0; mount --bind {folder}/$0 /tmp/ray-{job}; mount --bind {folder}/hosts /etc/hosts; exec "$@"
    ' "$node" "$@" &
    pids="${{pids:-}} $!"
done
for pid in $pids; do wait "$pid" || code=$?; done
exit "${{code:-0}}"
"""
SCONTROL = """#!/bin/sh
[ "$*" = "show hostnames node[1-2]" ] && printf '%s\\n' {nodes}
"""


@pytest.fixture
def machines() -> Iterator[Bed]:
    if lack := missing():
        pytest.skip(lack)
    with Bed.start(services=False) as bed:
        yield bed


def allocate(bed: Bed) -> Path:
    """Return a folder of the stubs of `srun` and `scontrol` for a job on the two nodes."""
    folder = bed.folder / "slurm"
    for name in ("bin", *NODES):
        (folder / name).mkdir(parents=True)
    lines = ["127.0.0.1 localhost", *(f"{bed.addresses[node]} mnist-pipe-{node}" for node in NODES)]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    prefix, nodes = bed.namespace("node1").removesuffix("-node1"), f'"{" ".join(NODES)}"'
    texts = {
        "srun": SRUN.format(nodes=nodes, prefix=prefix, folder=folder, job=JOB, host="mnist-pipe-"),
        "scontrol": SCONTROL.format(nodes=" ".join(NODES)),
    }
    for name, text in texts.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    for node in NODES:  # a machine has a default route, by which Ray finds its address
        bed.run(node, ["ip", "route", "add", "default", "dev", INTERFACE])
    return folder / "bin"


def test_a_job_of_two_nodes_trains_on_both_and_registers_a_champion(machines: Bed, tmp_path: Path) -> None:
    project = make(machines, tmp_path / "shared")
    change(project.folder / "params.yaml", {"ingest.dataset": "digits", "search.num_trials": 2})
    (project.folder / ".venv").symlink_to(sys.prefix)
    programs = allocate(machines)
    sockets = Path(f"/tmp/ray-{JOB}")
    sockets.mkdir()
    try:
        done = machines.run(
            "node1",  # SLURM runs the script on the first node
            [ROOT / "deploy/slurm/mnist-pipe.sbatch"],
            env={
                "PATH": f"{programs}:{os.environ['PATH']}",
                "PYTHONPATH": str(project.folder),
                "SLURM_SUBMIT_DIR": str(project.folder),
                "SLURM_JOB_ID": JOB,
                "SLURM_JOB_NODELIST": "node[1-2]",
                "SLURM_JOB_NUM_NODES": "2",
            },
            timeout=1100,
        )
    finally:
        sockets.rmdir()
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-5000:]
    assert {address for address in machines.addresses.values() if f"{address}" in printed} >= {
        machines.addresses[node] for node in NODES
    }
    assert json.loads((project.folder / paths.REGISTRATION).read_text())["alias"] == "champion"
    assert (project.folder / paths.MLFLOW_DB).is_file()
