"""One of two gloo ranks: `ranks.py MODE RANK RENDEZVOUS_FILE` trains three steps and prints what its hooks recorded.

MODE: ddp, fsdp (fully_shard), fsdp1 and fsdp1-flat (FullyShardedDataParallel, which clips by a method of its own).
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
import torch.distributed as dist
from torch import nn

from tests.hooks.recording import recording
from tests.hooks.traps.truth import norm


def collectives():
    """How many this rank has taken part in, whoever has started them: gloo counts them itself."""
    return dist.group.WORLD._get_backend(torch.device("cpu"))._get_sequence_number_for_group()


def main():
    mode, rank, rendezvous = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    plain = model
    if mode == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        for layer in (model[0], model[2]):
            fully_shard(layer, mesh=mesh)
        model = plain = fully_shard(model, mesh=mesh)
    elif mode.startswith("fsdp1"):
        from torch.distributed.fsdp import FullyShardedDataParallel

        whole = mode == "fsdp1"
        model = plain = FullyShardedDataParallel(model, use_orig_params=whole, device_id=torch.device("cpu"))
    else:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    torch.manual_seed(100 + rank)
    local, clipped = [], []
    with recording() as session:
        for _ in range(3):
            optimizer.zero_grad()
            for micro in range(2):
                inputs = torch.randn(8, 6)
                loss = nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True))
                if mode == "ddp" and micro == 0:
                    with model.no_sync():
                        loss.backward()
                else:
                    loss.backward()
            parameters = [p for p in plain.parameters() if p.grad is not None]
            if mode == "fsdp":
                local.append(sum(p.grad.to_local().double().square().sum().item() for p in parameters) ** 0.5)
            else:
                local.append(norm(parameters))
            if mode.startswith("fsdp1"):
                model.clip_grad_norm_(0.1)
                clipped.append(norm(parameters))
            before = collectives()
            assert before > 0
            optimizer.step()
            assert collectives() == before
    found = {
        "truth": local,
        "norms": [part.values["grad_norm"] for part in session.parts()],
        "clipped": clipped,
        "norms_clipped": [part.values.get("grad_norm_clipped") for part in session.parts()],
        "micro_batches": [part.values["micro_batches"] for part in session.parts()],
        "names": session.tables["tensor"][1],
        "ratios": [part.values.get("update_ratio") for part in session.parts()],
        "told": session.told,
    }
    print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
