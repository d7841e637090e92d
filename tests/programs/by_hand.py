"""The one program that knows gpuwatch: watches its model and logs values, images, maps, a figure and text of its own."""

import matplotlib as mpl
import torch
from torch import nn

import gpuwatch

mpl.use("Agg")
from matplotlib import pyplot as plt

torch.set_num_threads(1)
torch.manual_seed(0)

STEPS = 10
model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
figure, axes = plt.subplots(figsize=(2, 1))
axes.plot([0, 1], [1, 0])

with gpuwatch.watch(model, optimizer, name="by-hand-alone"), gpuwatch.feature_maps(model[0], every=4):
    gpuwatch.log_text("notes", "**a tiny** CNN", 0)
    for step in range(1, STEPS + 1):
        inputs = torch.rand(16, 1, 8, 8)
        loss = nn.functional.cross_entropy(model(inputs), (inputs.mean((1, 2, 3)) > 0.5).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gpuwatch.log("Accuracy/val", 1.0 / step, step)
    gpuwatch.log_images("inputs", inputs, STEPS, count=3)
    gpuwatch.log_histogram("logits", model(inputs), STEPS)
    gpuwatch.log_figure("curve", figure, STEPS)

print(f"final loss={loss.item()!r} steps={STEPS}")
