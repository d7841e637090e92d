"""A Lightning Trainer on the CPU: two epochs, gradient clipping, accumulation over two batches, no logger of its own."""

import logging
import warnings

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)
L.seed_everything(0, verbose=False)


class Regressor(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
        self.losses = []

    def training_step(self, batch, _index):
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.net(inputs), targets)
        self.losses.append(loss.item())
        self.log("train_mse", loss)
        return loss

    def validation_step(self, batch, _index):
        inputs, targets = batch
        self.log("val_mse", nn.functional.mse_loss(self.net(inputs), targets))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def main():
    inputs = torch.randn(64, 6)
    data = DataLoader(TensorDataset(inputs, 3 * inputs.sum(1, keepdim=True)), batch_size=8)
    model = Regressor()
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data, data)
    mean = sum(model.losses[-2:]) / 2
    print(f"final loss={mean!r} steps={trainer.global_step} val_mse={trainer.callback_metrics['val_mse'].item()!r} epochs=2")


if __name__ == "__main__":
    main()
