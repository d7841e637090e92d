"""`trace`, `snapshot` and `stacks` on a job that runs: real files of a real profiler, and the reason where there is none."""

import gzip
import json
from pathlib import Path

LOOP = Path(__file__).resolve().parents[1] / "hooks" / "lr_loop.py"


def test_traces_snapshots_and_stacks_of_a_running_job(gpuwatch, job, tmp_path):
    ran = gpuwatch("trace", "digits", "--steps", "2", "-o", "digits.json.gz", "--logdir", "runs")
    assert ran.returncode == 0, ran.stderr
    trace = json.loads(gzip.decompress((tmp_path / "digits.json.gz").read_bytes()))
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert "aten::linear" in names
    assert any(name.startswith("Optimizer.step#SGD") for name in names)
    again = gpuwatch("trace", job, "--steps", "1", "-o", "again.json")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again.json").read_text())["traceEvents"]
    advice = gpuwatch("advise", "digits", "--trace", "--json", "--logdir", "runs")
    assert advice.returncode == 0, advice.stderr
    told = " ".join(json.loads(advice.stdout)[1]["evidence"])
    assert "Matrix products and convolutions take" in told
    assert "torch's profiler, on the CPU, 3 steps" in told

    snapshot = gpuwatch("snapshot", "digits", "--logdir", "runs")
    assert snapshot.returncode == 1
    assert "this process uses no CUDA allocator" in snapshot.stderr
    kept = gpuwatch("snapshot", "digits", "--at-error", "--logdir", "runs")
    assert kept.returncode == 1
    assert "no snapshot of an out-of-memory error" in kept.stderr

    stacks = gpuwatch("stacks", job)
    assert stacks.returncode == 0, stacks.stderr
    assert "lr_loop.py" in stacks.stdout
    threads = json.loads(gpuwatch("stacks", "digits", "--json", "--logdir", "runs").stdout)
    assert threads[0]["pid"] == job
    assert any("MainThread" in str(thread.get("thread_name")) for thread in threads[0]["threads"])
    nobody = gpuwatch("stacks", "4194303")
    assert nobody.returncode == 1
    assert "Traceback" not in nobody.stderr


def test_a_run_that_has_ended_cannot_be_traced(gpuwatch, recorder):
    recorder.run("over")
    ended = gpuwatch("trace", "over", "--logdir", recorder.logdir)
    assert ended.returncode == 1
    assert "over has ended" in ended.stderr
    advice = gpuwatch("advise", "over", "--trace", "--logdir", recorder.logdir)
    assert (advice.returncode, "over has ended" in advice.stderr) == (1, True)
