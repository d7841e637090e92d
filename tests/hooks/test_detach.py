"""H9: detach leaves no trace, whoever asks for it and whenever; training's bits are the same with any number of cycles."""

import gc
import os
import subprocess
import sys
import threading
import weakref

import pytest
import torch
from gpuwatch_hooks import bootstrap, control, patching
from gpuwatch_hooks import session as session_module
from torch.optim import optimizer as optimizer_module

from tests.hooks.daemon_peer import wait_for


def _everything_of_torch():
    """{(where, name): object} of every attribute of every torch module and of the classes that live in it."""
    found = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] != "torch" or module is None:
            continue
        for name, value in list(vars(module).items()):
            found[module_name, name] = value
            if type(value) is type and value.__module__ == module_name:
                found.update({(module_name, name, key): item for key, item in vars(value).items() if callable(item)})
    found["pre-hooks"] = dict(optimizer_module._global_optimizer_pre_hooks)
    found["post-hooks"] = dict(optimizer_module._global_optimizer_post_hooks)
    return found


def _changed(before, after):
    changed = [key for key, value in before.items() if type(value) is not dict and after.get(key) is not value]
    changed += [key for key in ("pre-hooks", "post-hooks") if before[key] != after[key]]
    # What torch computes when it is first asked, such as a cached device count, is not ours.
    return [key for key in changed if key in after or before[key] is not None]


class Training:
    """Steps on demand, with what the probes wrap: autocast, scaler, clipping, DataLoader."""

    def __init__(self):
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        self.adam = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        self.data = torch.utils.data.TensorDataset(torch.randn(4000, 6), torch.randint(0, 2, (4000,)))
        self.batches = iter(torch.utils.data.DataLoader(self.data, batch_size=4))
        self.losses = []

    def step(self):
        inputs, targets = next(self.batches)
        self.adam.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(self.model(inputs), targets)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.adam)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.scaler.step(self.adam)
        self.scaler.update()
        self.losses.append(loss.item())


@pytest.fixture
def _fresh(monkeypatch, socket_path):
    monkeypatch.setattr(session_module, "_current", None)
    monkeypatch.setattr(control, "FIRST_DELAY_SECONDS", 0.01)
    yield
    bootstrap.stop()


def _threads():
    return {thread.name for thread in threading.enumerate()}


@pytest.mark.usefixtures("_fresh")
def test_no_trace_is_left():
    training = Training()
    training.step()
    before, descriptors, threads = _everything_of_torch(), len(os.listdir("/proc/self/fd")), _threads()
    finders = list(sys.meta_path)
    for _ in range(3):
        bootstrap.start()
        assert _changed(before, _everything_of_torch()), "or this test would prove nothing"
        training.step()
        assert session_module.current().armed
        bootstrap.stop()
        assert _changed(before, _everything_of_torch()) == []
        wait_for(lambda: _threads() == threads, what="the end of the thread")
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert sys.meta_path == finders
        training.step()


@pytest.mark.usefixtures("_fresh")
def test_twin_without_removal_there_are_traces(monkeypatch):
    before = _everything_of_torch()
    bootstrap.start()
    ledger = session_module.current().ledger
    monkeypatch.setattr(patching.Ledger, "remove", lambda _: None)
    bootstrap.stop()
    assert len(_changed(before, _everything_of_torch())) > 5
    monkeypatch.undo()
    ledger.remove()


@pytest.mark.usefixtures("_fresh")
def test_detached_by_the_daemon_in_full_flight(make_daemon):
    """The control thread takes the hooks out while the training thread is anywhere; thirty times; no bit changes."""
    bare = Training()
    for _ in range(600):
        bare.step()
    daemon = make_daemon()
    training = Training()
    cycles = 0
    for number in range(600):
        if number % 20 == 0:
            previous = session_module.current()
            wait_for(lambda session=previous: not session.installed or session.over, what="the end of the last session")
            bootstrap.start()
            cycles += 1
        training.step()
        if number % 20 == 10:
            session = session_module.current()
            wait_for(lambda session=session: session.control.welcomes, what="welcome")
            daemon.tell(t="detach")
    assert training.losses == bare.losses
    assert cycles == 30
    wait_for(lambda: session_module.current().over, what="the last detach")
    assert not optimizer_module._global_optimizer_pre_hooks
    assert not optimizer_module._global_optimizer_post_hooks


@pytest.mark.usefixtures("_fresh")
def test_beside_another_tools_hooks_and_wrappers(make_daemon):
    """Ours in the middle: theirs go on, ours falls silent, nothing is raised into the step."""
    make_daemon()
    seen = []
    first = optimizer_module.register_optimizer_step_post_hook(lambda *_: seen.append("first"))
    bootstrap.start()
    ours = torch.autograd.backward
    theirs = torch.autograd.backward = lambda *args, **kwargs: (seen.append("backward"), ours(*args, **kwargs))[1]
    second = optimizer_module.register_optimizer_step_post_hook(lambda *_: seen.append("second"))
    training = Training()
    try:
        training.step()
        bootstrap.stop()
        training.step()
        assert torch.autograd.backward is theirs
        assert seen == ["backward", "first", "second"] * 2
    finally:
        first.remove()
        second.remove()
        torch.autograd.backward = patching.patch_of(ours).original
        optimizer_module._global_optimizer_post_hooks.clear()
    training.step()


@pytest.mark.usefixtures("_fresh")
def test_nothing_of_the_users_is_kept_alive():
    bootstrap.start()
    training = Training()
    for _ in range(3):
        training.step()
    bootstrap.stop()
    gone = [weakref.ref(training.model), weakref.ref(training.adam), weakref.ref(training.scaler)]
    del training
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3


def test_stop_before_start_and_start_twice_are_harmless(tmp_path):
    calls = ["stop", "start", "start", "stop", "stop"]
    code = "from gpuwatch_hooks import bootstrap\n" + "".join(f"bootstrap.{call}()\n" for call in calls) + "print('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")
