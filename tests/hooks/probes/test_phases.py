"""The phase clock by itself, with times that the test sets."""

import random

import pytest
from gpuwatch_hooks.probes.phases import PHASES, PhaseClock


def spent(clock, now):
    found, under_autocast = clock.close_step(now)
    return dict(zip(PHASES, found, strict=True)), under_autocast


def test_a_plain_step():
    clock = PhaseClock(0)
    clock.enter("data", 10)
    clock.leave(30)
    clock.enter("backward", 70, between="forward")
    clock.leave(150)
    clock.enter("optimizer", 155)
    clock.leave(165)
    found, _ = spent(clock, 165)
    assert found == {"data": 20, "forward": 40, "backward": 80, "optimizer": 10, "other": 15}


def test_accumulation_without_a_loader():
    clock = PhaseClock(0)
    for begin in (0, 100, 200):
        clock.enter("backward", begin + 40, between="forward")
        clock.leave(begin + 100)
    found, _ = spent(clock, 310)
    assert found == {"data": 0, "forward": 120, "backward": 180, "optimizer": 0, "other": 10}


def test_a_closure_inside_the_optimizer():
    clock = PhaseClock(0)
    clock.enter("optimizer", 10)
    clock.enter("forward", 20)
    clock.enter("backward", 50, between="forward")
    clock.leave(80)
    clock.leave(81)
    clock.leave(100)
    found, _ = spent(clock, 100)
    assert found == {"data": 0, "forward": 31, "backward": 30, "optimizer": 29, "other": 10}


def test_autocast_share_of_the_forward_time():
    clock = PhaseClock(0)
    clock.enter("data", 0)
    clock.leave(10)
    clock.set_autocast(True, 20)  # after a fetch, what precedes it is forward too: moving the batch to the device
    clock.set_autocast(False, 50)
    clock.enter("backward", 60, between="forward")
    clock.leave(100)
    found, under_autocast = spent(clock, 100)
    assert (found["forward"], under_autocast) == (50, 30)


def test_autocast_that_validation_used_is_not_the_forwards():
    clock = PhaseClock(0)
    clock.set_autocast(True, 10)
    clock.set_autocast(False, 60)
    clock.enter("data", 70)
    clock.leave(80)
    clock.enter("backward", 100, between="forward")
    clock.leave(110)
    found, under_autocast = spent(clock, 110)
    assert (found["forward"], found["other"], under_autocast) == (20, 70, 0)


def test_left_by_an_exception():
    clock = PhaseClock(0)
    clock.enter("optimizer", 10)
    clock.reset(50)
    clock.enter("backward", 90, between="forward")
    clock.leave(100)
    found, _ = spent(clock, 120)
    assert found == {"data": 0, "forward": 40, "backward": 10, "optimizer": 40, "other": 30}


@pytest.mark.parametrize("seed", range(20))
def test_the_phases_always_add_up(seed):
    """Whatever comes in whatever order."""
    chance = random.Random(seed)
    clock, now, begun = PhaseClock(0), 0, 0
    for _ in range(400):
        now += chance.randrange(50)
        action = chance.choice(("enter", "enter", "leave", "leave", "autocast", "close", "reset"))
        if action == "enter":
            clock.enter(chance.choice(PHASES), now, between=chance.choice(("forward", "other")))
        elif action == "leave":
            clock.leave(now)
        elif action == "autocast":
            clock.set_autocast(chance.random() < 0.5, now)
        elif action == "reset" and chance.random() < 0.1:
            clock.reset(now)
        elif action == "close":
            found, under_autocast = clock.close_step(now)
            assert sum(found) == now - begun
            assert 0 <= under_autocast <= found[PHASES.index("forward")]
            begun = now
