"""The range test by hand and in an unmodified loop: what it sets, when it stops, and that everything is as before."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpuwatch_hooks.lr_find import lr_find
from torch import nn

LOOP = Path(__file__).with_name("lr_loop.py")
INJECT = Path(__file__).resolve().parents[2] / "hooks" / "gpuwatch_hooks" / "inject"


def training(seed=0, optimizer=torch.optim.Adam):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
    groups = [
        {"params": model[0].parameters(), "lr": 0.02},
        {"params": [*model[1].parameters(), *model[4].parameters()], "lr": 0.005},
    ]
    chosen = optimizer(groups)

    def step():
        inputs = torch.randn(8, 6)
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        chosen.zero_grad()
        loss.backward()
        chosen.step()
        return loss.item()

    return model, chosen, step


def everything(model, optimizer):
    return copy.deepcopy((model.state_dict(), optimizer.state_dict(), torch.get_rng_state().tolist()))


def same(left, right):
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad, torch.optim.RMSprop])
@pytest.mark.parametrize("warm", [0, 3])
def test_by_hand_everything_is_as_before(optimizer, warm):
    model, chosen, step = training(optimizer=optimizer)
    for _ in range(warm):
        step()
    before = everything(model, chosen)
    result = lr_find(step, chosen, model, steps=30)
    assert len(result.curve) > 10
    assert same(everything(model, chosen), before)
    after = [step() for _ in range(5)]
    model, chosen, step = training(optimizer=optimizer)
    for _ in range(warm):
        step()
    assert after == [step() for _ in range(5)], "and so is what comes next, to the bit"


def test_twin_without_restoring_it_is_not():
    model, chosen, step = training()
    step()
    before = everything(model, chosen)
    lr_find(step, chosen, model, steps=30, restore=False)
    assert not same(everything(model, chosen), before)


def test_groups_keep_their_ratio_and_get_their_rates_back():
    model, chosen, step = training()
    seen = []

    def watched():
        seen.append([group["lr"] for group in chosen.param_groups])
        return step()

    lr_find(watched, chosen, model, steps=10, min_lr=1e-4, max_lr=1e-2)
    assert [first for first, _ in seen] == pytest.approx([1e-4 * 100 ** (i / 9) for i in range(10)])
    assert [second / first for first, second in seen] == pytest.approx([0.25] * 10)
    assert [group["lr"] for group in chosen.param_groups] == [0.02, 0.005]


def test_an_exception_of_the_step_passes_and_leaves_nothing_changed():
    model, chosen, step = training()
    before, calls = everything(model, chosen), []

    def failing():
        calls.append(step())
        if len(calls) == 4:
            raise RuntimeError("the user's own")

    with pytest.raises((RuntimeError, TypeError)):
        lr_find(failing, chosen, model, steps=30)
    assert same(everything(model, chosen), before)


@pytest.mark.parametrize("wrong", [{"steps": 1}, {"min_lr": 0.0}, {"min_lr": 2.0, "max_lr": 1.0}, {"max_lr": float("inf")}])
def test_impossible_numbers_are_refused(wrong):
    _, chosen, step = training()
    with pytest.raises(ValueError, match="range test"):
        lr_find(step, chosen, **wrong)


def test_it_stops_when_the_loss_diverges():
    model, chosen, step = training(optimizer=torch.optim.SGD)
    result = lr_find(step, chosen, model, steps=100, max_lr=1e4)
    assert result.diverged
    assert len(result.curve) < 100
    assert result.suggestion is not None


# ----------------------------------------------------------------------------------------------- in an unmodified loop
def loop(tmp_path, *arguments, test=None):
    """(what the loop printed, as lines; its exit status) with or without a range test of the hooks."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GPUWATCH")}
    environ |= {"GPUWATCH_SOCKET": str(tmp_path / "nobody.sock"), "OMP_NUM_THREADS": "1"}
    if test is not None:
        environ |= {"GPUWATCH": "1", "PYTHONPATH": str(INJECT), "GPUWATCH_LR_FIND": json.dumps(test)}
    command = [sys.executable, str(LOOP), *map(str, arguments)]
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100, cwd=tmp_path, check=False)
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran.stdout.splitlines(), ran.returncode


RAMP = {"steps": 25, "min": 1e-4, "max": 1e3}


@pytest.mark.parametrize("kind", ["plain", "amp", "gan", "accumulating"])
def test_continue_restores_bit_for_bit(tmp_path, kind):
    # An early stop would end the test at another batch than the one that the twin run skips to.
    ramp = {**RAMP, "max": 0.005, "continue": True}
    tested, status = loop(tmp_path, kind, "--batches", 40, test=ramp)
    assert status == 0
    plain, _ = loop(tmp_path, kind, "--batches", 40, "--skip", 25)
    kept = [line for line in tested if int(line.split()[0]) > 25]
    assert len(kept) == 14
    assert [line for line in plain if int(line.split()[0]) > 25] == kept


@pytest.mark.parametrize(("steps", "epoch"), [(30, 20), (30, 5), (29, 30), (30, 31)])
def test_a_scheduler_that_steps_once_an_epoch_has_done_so_after_the_test(tmp_path, steps, epoch):
    # (29, 30): the last step of the test is the last one of an epoch. (30, 31): so is it, and it is the first epoch's.
    ramp = {"steps": steps, "min": 1e-5, "max": 0.005, "continue": True}
    loop_of = ["plain", "--batches", 80, "--epoch", epoch]
    tested, status = loop(tmp_path, *loop_of, test=ramp)
    assert status == 0
    plain, _ = loop(tmp_path, *loop_of, "--skip", steps)
    rates = [float(line.split()[2]) for line in tested]
    assert rates[1:steps] == pytest.approx([1e-5 * 500 ** (i / (steps - 1)) for i in range(steps - 1)]), "the ramp ruled"
    kept = [line for line in tested if int(line.split()[0]) > steps]
    assert len(kept) == 79 - steps
    assert [line for line in plain if int(line.split()[0]) > steps] == kept
    assert min(float(line.split()[2]) for line in kept) < 0.01


@pytest.mark.parametrize("kind", ["plain", "amp", "gan"])
def test_detached_in_the_middle_of_the_test_everything_is_put_back(tmp_path, kind):
    # It is told so within batch 12, whose step is the last one of the test.
    ramp = {**RAMP, "max": 0.005, "continue": True}
    tested, status = loop(tmp_path, kind, "--batches", 30, "--detach", 12, test=ramp)
    assert status == 0
    plain, _ = loop(tmp_path, kind, "--batches", 30, "--skip", 12)
    assert [line for line in plain if int(line.split()[0]) > 12] == tested[13:]
    assert len(tested) == 30


def test_detached_in_a_later_epoch_its_scheduler_has_stepped(tmp_path):
    ramp = {**RAMP, "max": 0.005, "continue": True}
    tested, _ = loop(tmp_path, "plain", "--batches", 30, "--epoch", 5, "--detach", 12, test=ramp)
    plain, _ = loop(tmp_path, "plain", "--batches", 30, "--epoch", 5, "--skip", 12)
    assert plain[1:] == tested[13:]


def test_detached_without_continue_the_rates_are_put_back(tmp_path):
    lines, status = loop(tmp_path, "plain", "--batches", 30, "--epoch", 100, "--detach", 12, test=RAMP)
    assert status == 0
    assert [float(line.split()[2]) for line in lines[13:]] == [0.01] * 17


def test_twin_without_the_restored_state_the_losses_differ(tmp_path):
    plain, _ = loop(tmp_path, "plain", "--batches", 40, "--skip", 25)
    untouched, _ = loop(tmp_path, "plain", "--batches", 40)
    assert [line for line in plain if int(line.split()[0]) > 25] != [line for line in untouched if int(line.split()[0]) > 25]


def test_rates_are_ramped_schedulers_held_and_the_command_ends_before_it_can_save(tmp_path):
    lines, status = loop(tmp_path, "plain", "--batches", 400, test={**RAMP, "max": 0.1})
    assert status == 0
    rates = [float(line.split()[2]) for line in lines]
    assert rates[:24] == pytest.approx([1e-4 * 1000 ** (i / 24) for i in range(24)]), "the last one is put back at once"
    assert len(lines) <= 27, "it ends at the next optimizer step"
    assert not (tmp_path / "model.pt").exists(), "neither finally nor atexit has run"


def test_a_test_that_diverges_ends_early(tmp_path):
    lines, status = loop(tmp_path, "plain", "--batches", 400, test={**RAMP, "steps": 200, "max": 1e6})
    assert status == 0
    assert 20 < len(lines) < 200


def test_nonsense_in_the_environment_is_said_and_the_job_trains(tmp_path):
    lines, status = loop(tmp_path, "plain", "--batches", 5, test={"steps": 1, "min": 1, "max": 0})
    assert (len(lines), status) == (5, 0)
    assert (tmp_path / "model.pt").exists()
