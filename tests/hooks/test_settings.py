"""Settings: from the environment, and by a daemon."""

import pytest
from gpuwatch_hooks.settings import DEFAULTS, adjusted, from_environment


def test_nothing_set():
    assert from_environment({}) == (DEFAULTS, [])
    assert (DEFAULTS.every, DEFAULTS.histograms, DEFAULTS.overhead_budget) == (1, True, 0.01)


def test_environment():
    found, complaints = from_environment(
        {
            "GPUWATCH_HOOKS_EVERY": "20",
            "GPUWATCH_HOOKS_HISTOGRAMS": "false",
            "GPUWATCH_HOOKS_OVERHEAD_BUDGET": "0.05",
            "GPUWATCH_HOOKS_RING_SLOTS": "64",
            "GPUWATCH_HOOKS_KERNEL": " Triton ",
            "GPUWATCH_SOCKET": "/run/x.sock",
            "GPUWATCH_RUN": "r",
            "GPUWATCH_TOKEN": "t",
        }
    )
    assert complaints == []
    assert found[:7] == (20, False, 0.05, 64, "/run/x.sock", "r", "t")
    assert found.kernel == "triton"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("EVERY", "0"),
        ("EVERY", "often"),
        ("EVERY", "1.5"),
        ("HISTOGRAMS", "perhaps"),
        ("OVERHEAD_BUDGET", "0"),
        ("OVERHEAD_BUDGET", "nan"),
        ("OVERHEAD_BUDGET", "1.01"),
        ("RING_SLOTS", "7"),
        ("KERNEL", "cuda"),
        ("RING_SLOTS", "100000"),
    ],
)
def test_an_impossible_value_is_told_and_the_default_used(name, text):
    found, complaints = from_environment({"GPUWATCH_HOOKS_" + name: text})
    assert found == DEFAULTS
    assert len(complaints) == 1
    assert text in complaints[0]


def test_a_daemons_defaults_yield_to_the_user_and_a_command_does_not():
    mine, _ = from_environment({"GPUWATCH_HOOKS_EVERY": "4"})
    offered = adjusted(mine, {"every": 9, "histograms": False}, explicit=False)
    assert (offered.every, offered.histograms) == (4, False)
    told = adjusted(offered, {"every": 9}, explicit=True)
    assert told.every == 9
    assert adjusted(told, {"every": 2}, explicit=False).every == 9


@pytest.mark.parametrize(
    "change",
    [
        {"every": True},
        {"every": -1},
        {"every": 2.0},
        {"histograms": 1},
        {"overhead_budget": "1"},
        {"kernel": 1},
        {"run": "x"},
        {},
    ],
)
def test_nonsense_from_a_daemon_changes_nothing(change):
    assert adjusted(DEFAULTS, change, explicit=True) is DEFAULTS
