"""Trap 30 without a GPU: while torch says that a CUDA graph is captured, the hooks read nothing, and say once why."""

import torch
from gpuwatch_hooks.reading import Reading
from torch import nn

from tests.hooks.recording import recording


def test_a_capture_is_left_alone_and_told_once(monkeypatch):
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, foreach=False)
    take, readings = Reading.take, []
    monkeypatch.setattr(Reading, "take", lambda self, *given, **more: readings.append(self) or take(self, *given, **more))

    def step():
        optimizer.zero_grad()
        loss = model(torch.ones(4, 6)).square().mean()
        loss.backward()
        optimizer.step()

    with recording() as session:
        for number in range(6):
            looked = len(readings)
            if number in (2, 3):
                with monkeypatch.context() as capture:
                    capture.setattr(torch.cuda, "_initialized", True)
                    capture.setattr(torch.cuda, "is_initialized", lambda: True)
                    capture.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
                    step()
                assert len(readings) == looked
            else:
                step()
                assert len(readings) > looked
    parts = session.parts()
    assert [part.step for part in parts] == [1, 2, 3, 4]
    assert all(part.values["micro_batches"] == 1 for part in parts)
    assert [event.code for event in session.events("graph_capture")] == ["graph_capture"]
