"""The roadmap of runs whose answer is known: what comes next, which gain is measured and which a bound."""

from array import array

import pytest

from gpuwatch.advice.roadmap import roadmap
from gpuwatch.advice.station import STANDINGS, Subject
from gpuwatch.history.matrix_share import MatrixShare
from gpuwatch.history.measures import measure
from gpuwatch.history.past import Past
from gpuwatch.state.activity import Activity
from gpuwatch.state.findings import Finding

PHASES = {"data": 0.0, "forward": 0.4, "backward": 0.5, "optimizer": 0.1, "other": 0.0}


def subject(
    facts=None, fields=None, device="cuda:0", ranks=None, findings=(), matrix=None, activity=None, ended=False, **phases
):
    past = Past()
    past.steps = array("q", range(1, 101))
    seconds = {f"{name}_seconds": share for name, share in {**PHASES, **phases}.items()}
    for name, value in {"loss": 1.0, "step_seconds": 1.0, "micro_batches": 1.0, **seconds, **(fields or {})}.items():
        past.fields[name] = (past.steps, array("d", [value] * 100))
    past.facts = dict(facts or {})
    past.findings = list(findings)
    ranks = ranks or {0: 1.0}
    return Subject(past, measure(past), ranks, len(ranks), device, matrix, activity, ended)


def stations(**about):
    found = {station.name: station for station in roadmap(subject(**about))}
    assert all(station.standing in STANDINGS for station in found.values())
    assert sum(station.standing == "next" for station in found.values()) <= 1
    return found


def test_the_stations_stand_in_the_order_of_the_roadmap():
    assert list(stations()) == [
        "baseline",
        "mixed precision",
        "gradient accumulation",
        "distributed training",
        "quantisation",
    ]


def test_a_plain_fp32_run_on_a_gpu_is_told_to_use_mixed_precision_with_a_bound():
    station = stations(forward=0.3, backward=0.5, other=0.1)["mixed precision"]
    assert station.standing == "next"
    assert station.gain.basis == "estimate"
    assert station.gain.text.startswith(f"at most {1 / (1 - 0.8):.2f}x")
    assert "--trace" in station.action
    assert stations(forward=0.6, backward=0.4)["mixed precision"].gain is None, "a bound of any size is none"


@pytest.mark.parametrize(("ratio", "standing", "bound"), [(0.6, "next", "2.50x"), (0.02, "idle", "1.02x")])
def test_the_share_of_matrix_products_bounds_the_gain(ratio, standing, bound):
    station = stations(matrix=MatrixShare(ratio, 3, 120, on_gpu=True))["mixed precision"]
    assert (station.standing, station.gain.basis) == (standing, "estimate")
    assert station.gain.text.startswith(f"at most {bound}")
    assert f"take {ratio:.0%} of a step" in " ".join(station.evidence)
    assert "--trace" not in station.action
    station = stations(matrix=MatrixShare(ratio, 3, 120, on_gpu=False), device="cpu")["mixed precision"]
    assert station.standing == ("unknown" if standing == "next" else "idle")
    assert ("probe amp" in station.action) == (standing == "next")


def test_tensor_cores_that_idle_are_named_with_the_time_that_they_were_watched_for():
    station = stations(activity=Activity(90, 0.004, 0.7))["mixed precision"]
    assert (
        "The tensor cores were active 0.4% of the time and the multiprocessors 70% (GPM, 90 s of training)." in station.evidence
    )


def test_a_measured_speed_up_is_named_as_measured():
    station = stations(facts={"amp_speedup_ratio": 1.43})["mixed precision"]
    assert (station.standing, station.gain.basis, station.gain.text) == ("next", "measured", "1.43x")
    station = stations(facts={"amp_speedup_ratio": 0.98})["mixed precision"]
    assert (station.standing, station.gain.text) == ("idle", "0.98x")


def test_a_speed_up_whose_interval_holds_one_is_not_promised():
    facts = {"amp_speedup_ratio": 1.43, "amp_speedup_low": 0.9, "amp_speedup_high": 2.2}
    station = stations(facts=facts)["mixed precision"]
    assert (station.standing, station.gain) == ("unknown", None)
    assert "(95 %: 0.90 to 2.20)" in " ".join(station.evidence)


NO_DIFFERENCE = {"amp_speedup_ratio": 1.0, "amp_speedup_low": 0.9, "amp_speedup_high": 1.2}


@pytest.mark.parametrize("about", [{"forward": 0.3}, {"device": "cpu"}])
def test_a_run_that_has_ended_is_told_nothing_that_needs_a_running_job(about):
    alive, over = (stations(ended=ended, **about)["mixed precision"].action for ended in (False, True))
    assert "gpuwatch probe amp RUN measures it in the running job" in alive
    assert "--trace" in alive
    assert "gpuwatch run --amp-probe -- " in over
    assert not any(what in over for what in ("probe amp", "--trace"))


def test_an_interval_that_holds_one_is_narrowed_in_a_run_that_goes_on():
    alive, over = (stations(facts=NO_DIFFERENCE, ended=ended)["mixed precision"].action for ended in (False, True))
    assert alive == "Measure with more steps: gpuwatch probe amp RUN --steps 300."
    assert over.startswith("Measure with more steps once it runs again")


@pytest.mark.parametrize("ended", [False, True])
def test_a_probe_that_was_refused_says_why(ended):
    why = "a forward hook of its own on Linear"
    station = stations(facts={"amp_probe_failed": why}, ended=ended)["mixed precision"]
    assert f"The AMP probe was refused: {why}." in station.evidence
    assert "gpuwatch probe amp RUN measures it" not in station.action
    assert "refused" not in " ".join(stations(facts={"amp_probe_failed": ""})["mixed precision"].evidence)


def test_autocast_that_slows_a_run_down_is_not_done():
    slower = {"amp_speedup_ratio": 0.5, "amp_speedup_low": 0.4, "amp_speedup_high": 0.6, "precision": "fp16"}
    station = stations(facts=slower)["mixed precision"]
    assert (station.standing, station.gain.basis, station.gain.text) == ("next", "measured", "2.00x")
    assert "Train in float32" in station.action
    assert stations(facts=slower | {"amp_speedup_high": 1.1})["mixed precision"].standing == "done"


def test_head_room_is_told_where_the_device_is_known():
    facts = {"device_name": "H100", "device_memory_bytes": 80 << 30, "device_compute_capability": "6.1"}
    found = stations(facts=facts, fields={"torch_allocated_peak_bytes": float(20 << 30)})
    for name in ("mixed precision", "gradient accumulation"):
        assert "Tensors took 20.0 of the 80 GiB of H100 (25%)." in found[name].evidence
    assert any("no tensor cores" in sentence for sentence in found["mixed precision"].evidence)


def test_a_run_that_starves_mends_its_loader_first():
    found = stations(data=0.4)
    assert found["baseline"].standing == "next"
    assert found["baseline"].gain.text.startswith("at most 1.40x")
    assert found["mixed precision"].standing == "later", "one thing at a time"


def test_a_run_with_a_grave_finding_is_mended_first():
    grave = Finding("exploding_gradient", "critical", 1, 2, 3, "grad_norm", 9.0, 1.0, "", "")
    mild = Finding("hook_overhead", "info", 1, 2, 3, "ratio", 9.0, 1.0, "", "")
    found = stations(findings=[grave, mild])["baseline"]
    assert found.standing == "next"
    assert "explain exploding_gradient" in found.action
    assert stations(findings=[mild])["baseline"].standing == "done"


def test_amp_that_underflows_is_told_to_use_bfloat16():
    fields = {"autocast_dtype": 1.0, "grad_underflow_ratio": 0.2, "loss_scale": 8.0, "skipped": 0.0}
    station = stations(fields=fields)["mixed precision"]
    assert station.standing == "next"
    assert "20.00%" in " ".join(station.evidence)
    assert "bfloat16" in station.action
    assert stations(fields={**fields, "grad_underflow_ratio": 0.001})["mixed precision"].standing == "done"


@pytest.mark.parametrize(("micro_batches", "share", "standing"), [(4.0, 0.4, "done"), (1.0, 0.4, "later"), (1.0, 0.05, "idle")])
def test_accumulation(micro_batches, share, standing):
    found = stations(fields={"micro_batches": micro_batches}, forward=0.9 - share, optimizer=share)
    assert found["gradient accumulation"].standing == standing


def test_a_straggling_rank_is_named_with_what_it_costs():
    station = stations(facts={"precision": "bf16"}, ranks={0: 1.0, 1: 1.0, 2: 1.3})["distributed training"]
    assert station.standing == "next"
    assert (station.gain.basis, station.gain.text[:5]) == ("measured", "1.30x")
    assert "rank 2" in station.action
    assert stations(facts={"precision": "bf16"}, ranks={0: 1.0, 1: 1.01})["distributed training"].standing == "done"


def test_quantisation_is_measured_or_says_that_it_is_not():
    assert stations()["quantisation"].gain is None
    measured = stations(facts={"int8_speedup_ratio": 1.9, "int8_output_error_ratio": 0.01})["quantisation"]
    assert (measured.standing, measured.gain.basis) == ("later", "measured")
    assert stations(facts={"int8_speedup_ratio": 0.9, "int8_output_error_ratio": 0.01})["quantisation"].standing == "idle"


def test_a_run_of_which_nothing_is_known():
    empty = Past()
    found = {station.name: station.standing for station in roadmap(Subject(empty, measure(empty), {}, 1, "cpu"))}
    assert found["baseline"] == found["gradient accumulation"] == "unknown"
