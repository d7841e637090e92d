"""The training that `gpuwatch demo` runs: an ordinary PyTorch script, which knows nothing of gpuwatch."""
