"""A Hugging Face Trainer on a two-layer GPT-2 made from a config (nothing is downloaded), with its own logging off."""

import os
import tempfile

os.environ.update(TRANSFORMERS_OFFLINE="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.utils import logging

logging.set_verbosity_error()
torch.set_num_threads(1)
torch.manual_seed(0)


class Tokens(Dataset):
    def __init__(self):
        self.rows = torch.randint(64, (32, 12))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def main():
    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=4,
            max_steps=10,
            learning_rate=1e-2,
            max_grad_norm=0.5,
            use_cpu=True,
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            seed=0,
        )
        trainer = Trainer(model=GPT2LMHeadModel(config), args=arguments, train_dataset=Tokens())
        result = trainer.train()
    print(f"final mean_loss={result.training_loss!r} steps={result.global_step}")


if __name__ == "__main__":
    main()
