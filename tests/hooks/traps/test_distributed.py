"""Traps 10 to 12 and 14: what ranks see after the reduction, what a shard sees, and that the hooks start no collective."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.fixture
def ranks(tmp_path):
    """Run both ranks of a mode; returns what each printed."""

    def run(mode):
        command = [sys.executable, str(Path(__file__).with_name("ranks.py")), mode]
        rendezvous = str(tmp_path / mode)
        processes = [
            subprocess.Popen([*command, str(rank), rendezvous], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for rank in (0, 1)
        ]
        try:
            results = [process.communicate(timeout=100) for process in processes]
        finally:
            for process in processes:
                process.kill()
        for process, (_, errors) in zip(processes, results, strict=True):
            assert process.returncode == 0, errors
        return [json.loads(out.splitlines()[-1]) for out, _ in results]

    return run


def test_data_parallel_ranks_report_the_reduced_gradient(ranks):
    """Two micro-batches a step, the first under no_sync."""
    first, second = ranks("ddp")
    assert first["norms"] == second["norms"]
    for found in (first, second):
        assert found["norms"] == pytest.approx(found["truth"], rel=2e-6)
        assert found["micro_batches"] == [2, 2, 2]
        assert found["names"] == NAMES


def test_a_shard_reports_its_own_part(ranks):
    """A DTensor's own norm looks global and is not; ours is the shard's, and says so."""
    first, second = ranks("fsdp")
    assert first["norms"] != second["norms"]
    for found in (first, second):
        assert found["norms"] == pytest.approx(found["truth"], rel=2e-6)
        assert found["names"] == NAMES
        assert {"sharded": True} in found["told"]


@pytest.mark.parametrize("mode", ["fsdp1", "fsdp1-flat"])
def test_fully_sharded_data_parallel(ranks, mode):
    """Trap 12: its gradients are plain tensors, so nothing but the wrapper tells that they are parts; and it clips inside."""
    first, second = ranks(mode)
    assert first["norms"] != second["norms"]
    for found in (first, second):
        assert found["norms"] == pytest.approx(found["truth"], rel=2e-6)
        assert found["norms_clipped"] == pytest.approx(found["clipped"], rel=1e-5)
        assert max(found["norms_clipped"]) < 0.1 < min(found["norms"])
        assert found["names"] == (NAMES if mode == "fsdp1" else ["_flat_param"])
        assert {"sharded": True} in found["told"]
