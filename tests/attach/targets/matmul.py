"""A matrix product over and over on one thread, each result compared bit for bit; counts go to the file that was named."""

import sys
import time

import torch

torch.manual_seed(0)
torch.set_num_threads(1)
left = torch.randn(384, 384)
expected = left @ left
good = bad = 0
print("ready", flush=True)
end = time.monotonic() + 600
with open(sys.argv[1], "w") as report:
    while time.monotonic() < end:
        if torch.equal(left @ left, expected):
            good += 1
        else:
            bad += 1
        report.seek(0)
        report.write(f"{good} {bad}\n")
        report.flush()
