"""A whole run that is read by the fused kernel (on the emulated device): the records are those of the plain CPU kernel."""

import contextlib
import math
import shutil
import signal
import threading

import pytest
import torch
from gpuwatch_hooks import settings, wire
from gpuwatch_hooks.kernels import cuda_source, cuda_updates
from gpuwatch_hooks.kernels.compiler import CompilerError
from gpuwatch_hooks.kernels.selection import Selection
from gpuwatch_hooks.probes import updates
from torch import nn

from tests.hooks.kernels import emulated
from tests.hooks.recording import RecordingSession

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not here")


class RefusedError(Exception):
    """What the emulated device raises when it is told to."""


class EmulatedSelection(Selection):
    """Gives the CPU's tensors to the emulated device; `refuse_after` launches it fails."""

    def __init__(self, session, refuse_after=None):
        super().__init__(session)
        self.kernel = emulated.fused()
        self.kernel.errors = (RefusedError,)
        self.launches = 0
        self.refuse_after = refuse_after
        original = self.kernel._device.launch

        def launch(*arguments):
            self.launches += 1
            if self.refuse_after is not None and self.launches > self.refuse_after:
                raise RefusedError("CUDA_ERROR_LAUNCH_FAILED")
            original(*arguments)

        self.kernel._device.launch = launch

    def concerns(self, _tensor):
        return True

    def fused(self, _device):
        return self.kernel

    def retire(self, _device, error):
        self.kernel = None
        self._fall_back([f"RefusedError: {error}"])


@contextlib.contextmanager
def recording(*, emulate=True, refuse_after=None, **options):
    session = RecordingSession(**options)
    if emulate:
        session.recorder.selection = EmulatedSelection(session, refuse_after)
    session.recorder.install()
    try:
        yield session
    finally:
        session.ledger.remove()
        session.close()


def train(session_of, steps=4, make=torch.optim.AdamW, spoil=None, scaler=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))
    optimizer = make(model.parameters(), lr=1e-2)
    with session_of as session:
        for step in range(steps):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 6)).square().mean()
            (scaler.scale(loss) if scaler else loss).backward()
            if spoil is not None:
                spoil(step, model)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
    assert session.faults == []
    return session


UNCOMPARED = {"overhead_ratio", "thinning_level", "autocast_ratio", "torch_device_index"}


def same_records(one, other):
    """Fields, rows and histograms of two sessions agree as two float32 sums do."""
    for part, wanted in zip(one.parts(), other.parts(), strict=True):
        for name, value in wanted.values.items():
            if "seconds" not in name and name not in UNCOMPARED:
                assert part.values[name] == pytest.approx(value, rel=1e-5, abs=1e-12, nan_ok=True), name
    for family in wire.FAMILIES:
        tables, wanted_tables = one.rows(family), other.rows(family)
        for table, wanted_table in zip(tables, wanted_tables, strict=True):
            for tensor, row in wanted_table.items():
                for column, value in row.items():
                    if not math.isnan(value):
                        assert table[tensor][column] == pytest.approx(value, rel=2e-5, abs=1e-7), (family, tensor, column)
        assert one.histograms(family) == other.histograms(family)


def test_the_records_are_those_of_the_cpu_kernel():
    fused, plain = train(recording()), train(recording(emulate=False))
    same_records(fused, plain)


def test_non_finite_entries_are_counted_at_every_step():
    def spoil(step, model):
        if step == 2:
            model[2].weight.grad[0, :5] = math.nan
            model[4].bias.grad[0] = math.inf

    session = train(recording(every=1000), steps=3, spoil=spoil)
    assert [part.values["grad_nonfinite_count"] for part in session.parts()] == [0.0, 0.0, 6.0]


def test_every_field_comes_at_every_step_also_where_rows_are_rare():
    """One pass has it all: only the tables on the wire become rare."""
    fused, plain = train(recording(every=3), steps=7), train(recording(every=3, emulate=False), steps=7)
    assert all("grad_absmax" in part.values and "grad_zero_ratio" in part.values for part in fused.parts())
    assert sum("grad_absmax" in part.values for part in plain.parts()) == 3


def test_the_scale_of_the_loss_is_taken_out():
    def scaler():
        return torch.amp.GradScaler("cpu", init_scale=1024.0)

    fused, plain = train(recording(), scaler=scaler()), train(recording(emulate=False), scaler=scaler())
    assert fused.parts()[1].values["loss_scale"] == 1024.0
    same_records(fused, plain)


def test_what_the_kernel_cannot_read_goes_to_the_plain_one():
    """float64, sparse and complex gradients beside ordinary ones: nothing is lost, and ordinary ones stay in one pass."""

    def run(emulate):
        torch.manual_seed(1)
        parameters = [nn.Parameter(torch.randn(30, 4)), nn.Parameter(torch.randn(7, dtype=torch.float64))]
        parameters += [nn.Parameter(torch.randn(5, dtype=torch.complex64)), nn.Parameter(torch.randn(20, 3))]
        optimizer = torch.optim.SGD(parameters, lr=1e-3)
        with recording(emulate=emulate) as session:
            for _ in range(3):
                parameters[0].grad = torch.randn(30, 4)
                parameters[1].grad = torch.randn(7, dtype=torch.float64)
                parameters[2].grad = torch.randn(5, dtype=torch.complex64)
                parameters[3].grad = torch.sparse_coo_tensor([[1, 4, 4]], torch.randn(3, 3), (20, 3), check_invariants=True)
                optimizer.step()
        assert session.faults == []
        return session

    same_records(run(True), run(False))


def test_a_device_that_refuses_is_left_for_plain_operators():
    session = train(recording(refuse_after=4), steps=5)
    same_records(session, train(recording(emulate=False), steps=5))
    reasons = [facts["kernel_reason"] for facts in session.told if "kernel_reason" in facts]
    assert reasons == ["RefusedError: CUDA_ERROR_LAUNCH_FAILED"]


@pytest.mark.parametrize("refuse_after", range(12))
def test_wherever_it_refuses_only_that_update_ratio_is_missing(refuse_after):
    """A step of `train` queues: kept weights, gradients, their rows, weights, their rows, the comparison, its rows."""
    session = train(recording(refuse_after=refuse_after), steps=4)
    plain = train(recording(emulate=False), steps=4)
    lacking = [part for part in session.parts() if "update_ratio" not in part.values]
    assert len(lacking) <= 1
    for part, wanted in zip(session.parts(), plain.parts(), strict=True):
        for name in ("loss", "grad_norm", "weight_norm", *(() if part in lacking else ("update_ratio",))):
            assert part.values[name] == pytest.approx(wanted.values[name], rel=1e-5)


def test_update_ratios_take_three_launches():
    with recording() as session:
        kernel, parameters = session.recorder.selection.kernel, [nn.Parameter(torch.randn(9)) for _ in range(30)]
        optimizer = torch.optim.SGD(parameters, lr=1e-3)
        for _ in range(3):
            kernel._device.log.clear()
            for parameter in parameters:
                parameter.grad = torch.ones(9)
            optimizer.step()
            names = [name for name, _ in kernel._device.log]
            assert [names.count(name) for name in (cuda_updates.KEEP, cuda_updates.COMPARE, cuda_updates.CHANGES)] == [1, 1, 1]
            assert names.count(cuda_source.ROWS) == 2  # gradients and weights
    assert session.faults == []
    assert all(part.values["update_ratio"] > 0.0 for part in session.parts())


def test_a_large_model_is_sampled_as_by_plain_operators(monkeypatch):
    monkeypatch.setattr(updates, "COPIED_ENTRIES", 1000)
    monkeypatch.setattr(updates, "WHOLE_ENTRIES", 100)
    same_records(train(recording()), train(recording(emulate=False)))


def test_gradients_are_not_kept_alive():
    import weakref

    with recording() as session:
        parameter = nn.Parameter(torch.ones(1000))
        optimizer = torch.optim.SGD([parameter], lr=1e-3)
        parameter.grad = torch.ones(1000)
        gone = weakref.ref(parameter.grad)
        optimizer.step()
        parameter.grad = None
    assert gone() is None
    assert session.parts()[0].values["grad_norm"] == pytest.approx(math.sqrt(1000))


class Told:
    """The session as a Selection sees it."""

    def __init__(self, kernel="auto"):
        self.errands, self.facts = [], []
        self.settings = settings.DEFAULTS._replace(kernel=kernel)

    def errand(self, function):
        self.errands.append(function)

    def meta(self, facts):
        self.facts.append(facts)


CUDA = torch.device("cuda", 0)


def test_the_kernel_is_made_off_the_training_thread_and_used_when_it_is_there():
    told, made = Told(), []
    selection = Selection(told, load=lambda *asked: made.append(asked) or emulated.fused())
    assert [selection.fused(CUDA) for _ in range(3)] == [None, None, None]
    assert made == []
    assert len(told.errands) == 1  # asked for once
    told.errands[0]()
    assert made == [("nvrtc", 0)]
    assert selection.fused(CUDA).facts == {"kernel": "emulated"}
    assert told.facts == [{"kernel": "emulated", "kernel_reason": ""}]
    assert selection.fused(torch.device("cpu")) is None


def at_once(function):
    function()


def test_triton_comes_after_nvrtc_and_says_what_is_missing():
    def load(name, _index):
        if name == "nvrtc":
            raise CompilerError("no NVRTC library was found")
        return emulated.fused()

    told = Told()
    selection = Selection(told, load, at_once)
    selection.fused(CUDA)
    told.errands[0]()
    assert selection.fused(CUDA) is not None
    assert told.facts == [{"kernel": "emulated", "kernel_reason": "nvrtc: CompilerError: no NVRTC library was found"}]


@pytest.mark.parametrize(
    ("kernel", "tried"), [("auto", ["nvrtc", "triton"]), ("nvrtc", ["nvrtc"]), ("triton", ["triton"]), ("foreach", [])]
)
def test_only_what_is_wanted_is_tried_and_why_it_is_not_there_is_a_fact_of_the_run(kernel, tried):
    asked = []

    def load(name, _index):
        asked.append(name)
        raise RuntimeError("not here")

    told = Told(kernel)
    selection = Selection(told, load, at_once)
    for _ in range(3):
        assert selection.fused(CUDA) is None
    for errand in told.errands:
        errand()
    assert asked == tried
    assert len(told.errands) == (1 if tried else 0)
    reason = "; ".join(f"{name}: RuntimeError: not here" for name in tried) or "hooks.kernel is foreach"
    assert told.facts == [{"kernel": "foreach", "kernel_reason": reason}]
    assert selection.fused(CUDA) is None


def test_another_choice_counts_at_once_and_what_was_under_way_no_longer_does():
    told, made = Told(), []
    selection = Selection(told, lambda name, _index: made.append(name) or emulated.fused(), at_once)
    selection.fused(CUDA)
    told.settings = told.settings._replace(kernel="foreach")
    assert selection.fused(CUDA) is None
    told.errands.pop()()
    assert made == []
    told.settings = told.settings._replace(kernel="triton")
    selection.fused(CUDA)
    told.errands.pop()()
    assert made == ["triton"]
    assert selection.fused(CUDA) is not None
    assert [facts["kernel"] for facts in told.facts] == ["foreach", "emulated"]


def test_what_takes_long_does_so_on_a_thread_of_its_own():
    """The control thread has a daemon to answer; signals are the main thread's."""
    told, seen, over = Told("triton"), [], threading.Event()

    def load(_name, _index):
        seen.append((threading.current_thread(), signal.pthread_sigmask(signal.SIG_BLOCK, ())))
        over.set()
        return emulated.fused()

    selection = Selection(told, load)
    selection.fused(CUDA)
    told.errands[0]()
    assert over.wait(30)
    seen[0][0].join(30)
    assert seen[0][0] is not threading.main_thread()
    assert seen[0][0].daemon
    assert signal.SIGINT in seen[0][1]
    assert selection.fused(CUDA) is not None


def test_the_cpu_is_said_once():
    told = Told()
    selection = Selection(told)
    assert [selection.concerns(torch.ones(1)) for _ in range(3)] == [False] * 3
    assert told.facts == [{"kernel": "cpu"}]


def test_a_machine_without_a_driver_falls_back():
    """The real way, on a machine without CUDA (with one this reads what a device that does not exist says)."""
    told = Told()
    selection = Selection(told, apart=at_once)
    selection.fused(torch.device("cuda", 99))
    told.errands[0]()
    (facts,) = told.facts
    assert facts["kernel"] == "foreach"
    assert "nvrtc: " in facts["kernel_reason"]
    assert "triton: " in facts["kernel_reason"]
