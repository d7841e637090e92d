"""The overhead budget: what is thinned, in which order, back again, and that the figure it reports is the true one."""

import itertools
import time

import pytest
import torch
from gpuwatch_hooks import wire
from gpuwatch_hooks.governor import FAMILIES, RUNGS, Governor
from torch import nn

from tests.hooks.recording import recording

MS = 1_000_000


def drive(plan, steps, *, step_ms=100.0, base_ms=0.1, costs=None, every=1, budget=0.01):
    """Simulated steps: families cost what `costs` says whenever the plan lets them run. Returns what was said."""
    costs = costs or {}
    said = []
    for turn in range(steps):
        hook = base_ms * MS
        for family in FAMILIES:
            if plan.due(family, turn, every):
                cost = costs.get(family, 0.0) * MS
                plan.spent(family, cost)
                hook += cost
        sentence = plan.step(step_ms * MS + hook, hook, budget, every)
        if sentence:
            said.append((plan.thinned_more, plan.thinning_level, sentence))
    return said


def test_the_rungs_thin_in_the_order_of_the_wire():
    assert ("nothing", *FAMILIES) == wire.THINNING
    assert RUNGS[0] == (1, 1, 1)
    assert RUNGS[1:4] == [(4, 1, 1), (4, 4, 1), (4, 4, 4)]
    for before, after in itertools.pairwise(RUNGS):
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
        assert after[0] >= after[1] >= after[2]


def test_a_budget_of_one_thins_nothing_whatever_it_costs():
    plan = Governor()
    costs = {"update_ratio": 500.0, "histograms": 50.0, "layers": 50.0}
    assert drive(plan, 200, costs=costs, budget=1.0) == []
    assert drive(Governor(), 200, costs=costs, budget=0.5)
    assert plan.overhead_ratio > 0.8


def test_nothing_is_thinned_that_is_cheap():
    plan = Governor()
    assert drive(plan, 200, costs={"update_ratio": 0.2, "histograms": 0.2, "layers": 0.2}) == []
    assert plan.thinning_level == 0
    assert plan.overhead_ratio == pytest.approx(0.7 / 100.7, rel=0.02)


@pytest.mark.parametrize(
    ("costs", "level"),
    [
        ({"update_ratio": 2.0}, 1),
        ({"update_ratio": 1.0, "histograms": 3.0}, 2),
        ({"update_ratio": 50.0, "histograms": 12.0, "layers": 12.0}, 3),
    ],
)
def test_the_budget_is_kept(costs, level):
    plan = Governor()
    said = drive(plan, 2000, costs=costs)
    assert plan.thinning_level >= level
    assert said[0][0] is True
    assert "every" in said[0][2]
    assert plan.overhead_ratio < 0.011
    expected = sum(cost / plan.interval(family, 1) for family, cost in costs.items()) + 0.1
    assert expected <= 1.0 + 1e-9


def test_what_cannot_be_kept_is_told():
    """The always-on pass alone takes 2 %: the rest may take an eighth of that, so that its curves go on; it is told."""
    plan = Governor()
    costs = {"layers": 10.0, "histograms": 10.0, "update_ratio": 10.0}
    drive(plan, 3000, base_ms=2.0, costs=costs)
    families_ms = sum(cost / plan.interval(family, 1) for family, cost in costs.items())
    assert 0.05 < families_ms <= 0.25 + 0.01  # an eighth of 2 ms, and not next to nothing
    assert plan.overhead_ratio == pytest.approx((2.0 + families_ms) / 102.0, rel=0.15)


@pytest.mark.parametrize("base_ms", [0.1, 0.5, 0.7, 0.85])
def test_what_is_never_thinned_is_part_of_the_budget(base_ms):
    """Together they stay within 1 %: the families get what the always-on pass leaves."""
    plan = Governor()
    drive(plan, 4000, base_ms=base_ms, costs={"layers": 10.0, "histograms": 15.0, "update_ratio": 10.0})
    families_ms = (
        10.0 / plan.interval("layers", 1) + 15.0 / plan.interval("histograms", 1) + 10.0 / plan.interval("update_ratio", 1)
    )
    assert base_ms + families_ms <= 1.0 * 1.05


def test_cheap_again_is_restored_step_by_step():
    plan = Governor()
    drive(plan, 300, costs={"update_ratio": 40.0, "histograms": 10.0, "layers": 10.0})
    high = plan.rung
    assert high > 3
    said = drive(plan, 6000, step_ms=20_000.0, costs={"update_ratio": 40.0, "histograms": 10.0, "layers": 10.0})
    assert plan.rung == 0
    assert [more for more, _, _ in said] == [False] * len(said)
    assert len(said) == high  # rung by rung, each announced


def test_the_plan_does_not_swing():
    """Costs near a rung's edge with noise: no going back and forth."""
    plan = Governor()
    generator = torch.Generator().manual_seed(1)
    changes = 0
    for _ in range(200):
        noise = 1.0 + 0.3 * torch.rand((), generator=generator).item()
        changes += len(drive(plan, 16, costs={"update_ratio": 3.0 * noise, "histograms": 1.0, "layers": 1.0}))
    assert changes <= 12


def test_one_interrupted_sample_does_not_thin_for_a_thousand_steps():
    plan = Governor()
    drive(plan, 40, costs={"layers": 0.5})
    plan.spent("layers", 500 * MS)
    plan.step(600 * MS, 500 * MS, 0.01, 1)
    assert drive(plan, 40, costs={"layers": 0.5}) == [] or plan.thinning_level < 3


def test_the_first_measurement_is_not_typical():
    """It allocates and imports; judged by it, a cheap statistic would be rare for thousands of steps."""
    plan = Governor()
    for family in FAMILIES:
        plan.spent(family, 900 * MS)
    plan.step(3000 * MS, 2700 * MS, 0.01, 1)
    drive(plan, 200, costs={"update_ratio": 0.2, "histograms": 0.2, "layers": 0.2})
    assert plan.thinning_level == 0


def test_a_validation_run_does_not_lift_the_budget():
    plan = Governor()
    costs = {"update_ratio": 40.0, "histograms": 10.0, "layers": 10.0}
    drive(plan, 300, costs=costs)
    rung = plan.rung
    for _ in range(5):
        plan.step(600_000 * MS, 0.1 * MS, 0.01, 1)
        assert drive(plan, 60, costs=costs) == []
    assert plan.rung == rung


def test_what_a_step_spends_in_pieces_is_one_cost():
    """The copy before a step, the difference after it and the norms between are one update ratio."""
    plan = Governor()
    for _ in range(40):
        for _ in range(4):
            plan.spent("update_ratio", 0.9 * MS)
        plan.step(100 * MS, 3.7 * MS, 0.01, 1)
    assert plan.interval("update_ratio", 1) == 4  # 3.6 ms every step are too much, every fourth step 0.9


def test_thinned_families_take_turns():
    """Each as often as its interval says, and no two at the same step."""
    plan = Governor()
    for rung in range(len(RUNGS)):
        plan.rung = rung
        for every in (1, 10):
            turns = {family: [t for t in range(6 * 1024 * every) if plan.due(family, t, every)] for family in FAMILIES}
            for family in FAMILIES:
                assert len(turns[family]) == 6 * 1024 * every // plan.interval(family, every)
            if plan.thinning_level == 3:
                assert len({t for some in turns.values() for t in some}) == sum(map(len, turns.values()))


def test_every_is_what_the_user_asked_for():
    plan = Governor()
    assert [plan.interval(family, 7) for family in FAMILIES] == [7, 7, 7]
    assert plan.norms_interval(7) == 7


def test_norms_alone_become_rare_last():
    """They are there anyway, so a table of them costs a sixteenth of a whole one, and is thinned that much less."""
    plan = Governor()
    plan.rung = len(RUNGS) - 1
    assert plan.interval("layers", 1) == 1024
    assert (plan.norms_interval(1), plan.norms_interval(10)) == (64, 640)
    plan.rung = RUNGS.index((16, 16, 16))
    assert plan.norms_interval(1) == 1


def test_what_is_always_measured_may_grow_dear():
    """A model that is unfrozen: the always-on pass takes more of the budget than at first, and the families less."""
    plan = Governor()
    costs = {"layers": 3.0, "histograms": 3.0, "update_ratio": 3.0}
    drive(plan, 400, base_ms=0.1, costs=costs)
    before = sum(cost / plan.interval(family, 1) for family, cost in costs.items())
    assert plan.base_ratio == pytest.approx(0.1 / 100, rel=0.2)
    drive(plan, 1000, base_ms=0.8, costs=costs)
    after = sum(cost / plan.interval(family, 1) for family, cost in costs.items())
    assert plan.base_ratio == pytest.approx(0.8 / 100, rel=0.2)
    assert 0.8 + after <= 1.05 < 0.8 + before


class Expensive:
    """Stands for kernels that take long: 4 ms a table, 2 ms a histogram."""

    def __init__(self, monkeypatch):
        from gpuwatch_hooks.reading import Reading

        for name, seconds in (("detail", 0.004), ("distribute", 0.002)):
            original = getattr(Reading, name)

            def slow(reading, *args, _original=original, _seconds=seconds, **kwargs):
                time.sleep(_seconds)
                return _original(reading, *args, **kwargs)

            monkeypatch.setattr(Reading, name, slow)


def steps(model, optimizer, count, seconds=0.0):
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        time.sleep(seconds)
        optimizer.step()


def test_a_run_that_is_thinned_shows_it(monkeypatch):
    """End to end: the run keeps its norms at every step, its tables become rare, and an event says how rare."""
    Expensive(monkeypatch)
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with recording(budget=0.05) as session:
        steps(model, optimizer, 160, seconds=0.002)
    parts = session.parts()
    assert all("grad_norm" in part.values and "grad_nonfinite_count" in part.values for part in parts)
    assert parts[-1].values["thinning_level"] == 3.0
    told = session.events("thinned")
    assert told
    assert "layers every" in told[-1].text
    tables = sum("grad_absmax" in part.values for part in parts[-100:])
    assert tables < 40
    assert sum(part.values["hook_seconds"] for part in parts[-40:]) < 0.5 * sum(
        part.values["hook_seconds"] for part in parts[:40]
    )


def test_without_a_budget_nothing_is_thinned(monkeypatch):
    """The twin: the same run with the protection off."""
    Expensive(monkeypatch)
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with recording(budget=1.0) as session:
        steps(model, optimizer, 40)
    assert session.events() == []
    assert all("grad_absmax" in part.values for part in session.parts())


def test_the_reported_overhead_is_the_true_one(monkeypatch):
    """Trap 43: what the hooks say they take agrees with what a clock around them says."""
    Expensive(monkeypatch)
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with recording(budget=1.0) as session:
        steps(model, optimizer, 10)
        began = time.perf_counter()
        steps(model, optimizer, 60)
        hooked = time.perf_counter() - began
    taken = sum(part.values["hook_seconds"] for part in session.parts()[10:])
    assert taken >= 60 * 0.006  # the sleeps alone
    began = time.perf_counter()
    steps(model, optimizer, 60)
    plain = time.perf_counter() - began
    assert taken == pytest.approx(hooked - plain, rel=0.35)
    assert session.parts()[-1].values["overhead_ratio"] == pytest.approx(taken / hooked, rel=0.3)


def test_pressure_takes_the_families_in_their_order():
    """However dear each is, update ratios go first and per-layer tables last; back in the opposite order."""
    for costs in itertools.permutations((1.0, 3.0, 9.0)):
        plan = Governor()
        first = {}
        for step_ms in (4000.0, 1000.0, 400.0, 200.0, 100.0, 50.0, 20.0):
            drive(plan, 200, step_ms=step_ms, costs=dict(zip(FAMILIES, costs, strict=True)))
            for family in FAMILIES:
                if plan.interval(family, 1) > 1:
                    first.setdefault(family, step_ms)
            intervals = [plan.interval(family, 1) for family in FAMILIES]
            assert intervals == sorted(intervals, reverse=True)
        assert list(first) == list(FAMILIES)


def nothing_global_is_missing(session, spoiled):
    parts = session.parts()
    assert all("grad_norm" in part.values for part in parts)
    assert [part.step for part in parts if part.values.get("grad_nonfinite_count", 0.0) > 0.0] == spoiled


def starved(spoiled):
    """A run whose budget allows nothing; NaN in the gradients of some steps, of which most have no table."""
    model = nn.Linear(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with recording(budget=1e-9, histograms=False) as session:
        for step in range(1, 161):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().mean().backward()
            if step in spoiled:
                model.weight.grad[0, :3] = float("nan")
            optimizer.step()
            if step in spoiled:
                with torch.no_grad():
                    model.weight.nan_to_num_(0.5)
    return session


SPOILED = [70, 101, 102, 133]


def test_the_norm_and_the_non_finite_count_are_never_thinned():
    session = starved(SPOILED)
    assert session.parts()[-1].values["thinning_level"] == 3.0
    tables = {part.step for part in session.parts() if "grad_absmax" in part.values}
    assert len(tables & set(range(60, 161))) < 20
    nothing_global_is_missing(session, SPOILED)


def test_thinned_like_the_rest_they_would_miss_it(monkeypatch):
    """The twin: with the always-on pass under the governor too, most of those steps go unseen."""
    from gpuwatch_hooks.probes.gradients import GradientsProbe

    measure = GradientsProbe.measure

    def thinned(probe, part):
        if "layers" in part.due:
            measure(probe, part)
        else:
            part.gradients = probe.begin(part.entry)

    monkeypatch.setattr(GradientsProbe, "measure", thinned)
    session = starved(SPOILED)
    with pytest.raises(AssertionError):
        nothing_global_is_missing(session, SPOILED)
