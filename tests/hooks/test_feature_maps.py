"""Feature maps: what is sent, when it is not, and that the model stays an ordinary model."""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from gpuwatch_hooks import feature_maps, images, session
from torch import nn
from torch.utils import checkpoint

module_of_feature_maps = sys.modules["gpuwatch_hooks.feature_maps"]


@pytest.fixture
def outbox(make_session, monkeypatch, said):
    """The outbox of a session that nobody empties."""
    current = make_session()
    monkeypatch.setattr(session, "_current", current)
    monkeypatch.setattr(module_of_feature_maps, "_taken_tags", set())
    return current.outbox


def sent(outbox):
    """[(tag, shape, pixels)] of what has been sent."""
    items = []
    for kind, tag, _, shape, data, *_ in outbox._media:
        assert kind == "feature_maps"
        pixels = np.frombuffer(data(), np.uint8)
        items.append((tag, shape, pixels.reshape(shape)))
    return items


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 6 * 6, 2))


def test_grid_of_the_first_samples_channels(outbox):
    model = network()
    feature_maps(model[0], every=1)
    batch = torch.rand(5, 1, 8, 8)
    model(batch)
    with torch.no_grad():
        expected = model[0].forward(batch)[0]
    ((tag, shape, pixels),) = sent(outbox)
    assert tag == "feature_maps/0"
    assert shape == (1, 13, 13, 1)  # 2 x 2 maps of 6 x 6 with a line between
    for index, (top, left) in enumerate([(0, 0), (0, 7), (7, 0), (7, 7)]):
        one = expected[index].double()
        scaled = ((one - one.min()) / (one.max() - one.min()) * 255).numpy()
        # The in-place ReLU behind this layer has changed its output by now; what is shown is what the layer gave.
        np.testing.assert_allclose(pixels[0, top : top + 6, left : left + 6, 0], scaled, atol=1.01)


def test_every_nth_training_forward_only(outbox):
    model = network()
    feature_maps(model[0], every=3)
    for _ in range(7):
        model.train()
        model(torch.rand(1, 1, 8, 8))
        model.eval()
        model(torch.rand(1, 1, 8, 8))
    assert len(sent(outbox)) == 3  # forwards 1, 4 and 7


def test_a_layer_that_is_called_twice(outbox):
    """Trap 35: each call counts, so that `every` 2 takes the same call of each forward."""
    layer = nn.Linear(4, 4)
    feature_maps(layer, every=2)
    taken = []
    for number in range(3):
        first = layer(torch.full((2, 4), float(number)))
        layer(torch.relu(first))
        taken.append(len(sent(outbox)))
    assert taken == [1, 2, 3]


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((2, 3, 4, 5), (9, 11)),
        ((2, 7, 5), (7, 5)),
        ((6, 10), (6, 10)),
        ((2, 3, 4, 5, 6), (11, 13)),
        ((2, 3, 900, 300), (60, 62)),
    ],
)
def test_shapes_of_activations(outbox, shape, grid):
    layer = nn.Identity()
    feature_maps(layer, every=1)
    layer(torch.rand(shape))
    ((_, sent_shape, _),) = sent(outbox)
    assert sent_shape == (1, *grid, 1)


def test_what_is_no_feature_map_is_told_once_and_given_up(outbox, said):
    class Odd(nn.Module):
        def forward(self, x):
            return {"text": "no tensor"} if x is None else x

    layer = Odd()
    feature_maps(layer, every=1)
    for _ in range(5):
        assert layer(torch.rand(3)).shape == (3,)
        layer(None)
    assert len(said) <= 2
    assert not layer._forward_hooks
    assert not outbox._media


def test_tuples_and_dicts_of_tensors(outbox):
    gru = nn.GRU(4, 6, batch_first=True)
    feature_maps(gru, every=1)
    gru(torch.rand(2, 5, 4))
    assert [shape for _, shape, _ in sent(outbox)] == [(1, 5, 6, 1)]


def test_close_and_context_manager_leave_no_hook(outbox):
    model = network()
    handle = feature_maps(model[0])
    handle.close()
    handle.close()
    with feature_maps(model[0]):
        assert len(model[0]._forward_hooks) == 1
    assert not model[0]._forward_hooks
    assert [hook for _, hook in model[0]._forward_hooks.items()] == []


def test_a_wrong_argument_is_told_and_ignored(outbox, said):
    for module, every in ((3, 1), (nn.Identity(), 0), (nn.Identity(), 1.5), (nn.Identity(), True)):
        with feature_maps(module, every=every):
            pass
    assert len(said) == 4
    assert all("feature_maps() is left out" in line for line in said)


def test_two_layers_of_one_name_get_two_tags(outbox):
    first, second = [nn.Identity()], [nn.Identity()]  # in lists of lists nothing finds a path
    for layer in (first, second):
        feature_maps(layer[0], every=1)
        layer[0](torch.rand(1, 1, 2, 2))
    assert [tag for tag, *_ in sent(outbox)] == ["feature_maps/Identity", "feature_maps/Identity.2"]


def test_the_name_is_the_layers_path(outbox):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.ModuleDict({"stem": nn.Conv2d(1, 2, 3)})

        def forward(self, x):
            return self.features["stem"](x)

    wrapped = torch.nn.DataParallel(Net())
    feature_maps(wrapped.module.features["stem"], every=1)
    feature_maps(wrapped.module.features["stem"], every=1, name="mine")
    wrapped(torch.rand(1, 1, 4, 4))
    assert [tag for tag, *_ in sent(outbox)] == ["feature_maps/features.stem", "feature_maps/mine"]


def test_hooks_change_no_result_and_no_gradient(outbox):
    def train(hooked):
        model = network()
        if hooked:
            for layer in model:
                feature_maps(layer, every=1)
        loss = model(torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)).square().sum()
        loss.backward()
        return [loss.detach(), *[p.grad for p in model.parameters()]]

    assert all(torch.equal(a, b) for a, b in zip(train(False), train(True), strict=True))
    assert len(outbox._media) == 4


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_is_not_counted(outbox, reentrant):
    layer = nn.Conv2d(1, 2, 3)
    feature_maps(layer, every=1)
    for _ in range(3):
        checkpoint.checkpoint(layer, torch.rand(1, 1, 5, 5, requires_grad=True), use_reentrant=reentrant).sum().backward()
    assert len(outbox._media) == 3


def test_selective_checkpointing_sees_no_operation_of_ours(outbox):
    """A replay pops what the first pass kept, operation by operation: one more in the first pass would shift them."""
    layer = nn.Conv2d(1, 2, 3)
    feature_maps(layer, every=1)
    keep_all = lambda *_args, **_kwargs: checkpoint.CheckpointPolicy.MUST_SAVE  # noqa: E731
    context = lambda: checkpoint.create_selective_checkpoint_contexts(keep_all)  # noqa: E731
    x = torch.rand(1, 1, 5, 5, requires_grad=True)
    checkpoint.checkpoint(lambda x: layer(x).sin(), x, use_reentrant=False, context_fn=context).sum().backward()
    expected = torch.autograd.grad(nn.functional.conv2d(x, layer.weight, layer.bias).sin().sum(), x)[0]
    assert torch.allclose(x.grad, expected)
    assert not outbox._media


def test_a_compiled_model_keeps_one_graph(outbox):
    import torch._dynamo as dynamo

    dynamo.reset()
    dynamo.utils.counters.clear()
    model = network()
    feature_maps(model[0], every=1)
    compiled = torch.compile(model, backend="eager")
    for _ in range(3):
        compiled(torch.rand(2, 1, 8, 8)).sum().backward()
    assert sum(dynamo.utils.counters["graph_break"].values()) == 0
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not outbox._media


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_jit_trace_takes_no_picture(outbox):
    model = network()
    feature_maps(model[0], every=1)
    torch.jit.trace(model, torch.rand(1, 1, 8, 8), check_trace=False)
    assert not outbox._media


def test_copies_and_pickles_carry_no_hook_of_ours(outbox, tmp_path):
    model = network()
    feature_maps(model[0], every=1)
    torch.save(model, tmp_path / "model.pt")
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(tmp_path / "model.pt", weights_only=False)]
    for one in copies:
        x = torch.rand(1, 1, 8, 8)
        assert torch.equal(one(x), nn.Sequential(*model[1:])(model[0].forward(x)))
    assert not outbox._media
    model(torch.rand(1, 1, 8, 8))
    assert len(outbox._media) == 1  # the original still sends
    assert b"gpuwatch" not in pickle.dumps(model)


def test_a_saved_model_loads_where_gpuwatch_is_not(outbox, tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 1, 3))
    feature_maps(model[0], every=1)
    torch.save(model, tmp_path / "model.pt")
    text = f"""
import sys, torch
class NotHere:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("gpuwatch"):
            raise ImportError(name)
sys.meta_path.insert(0, NotHere())
model = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
print(model(torch.ones(1, 1, 3, 3)).shape)
"""
    run = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False, env={"PATH": os.environ["PATH"]}
    )
    assert run.stdout.strip() == "torch.Size([1, 1, 1, 1])", run.stderr


def test_after_the_end_the_hook_takes_itself_off(outbox):
    model = network()
    feature_maps(model[0], every=1)
    session.current().detach()
    model(torch.rand(1, 1, 8, 8))
    assert not model[0]._forward_hooks
    assert not outbox._media


def test_grids_are_made_of_a_copy(outbox, monkeypatch):
    layer = nn.Identity()
    feature_maps(layer, every=1)
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    layer(x)
    x.zero_()
    ((_, _, pixels),) = sent(outbox)
    assert pixels[0, 3, 3, 0] == 255
    assert images.MAX_GRID_MAPS == 64
