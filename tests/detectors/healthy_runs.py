"""Healthy runs of many kinds, without end: what the hooks and the samplers would tell of trainings that have no fault.

Each kind has what its rules could mistake for one: warm-ups and restarts, epochs with validation and checkpoints, a loss scaler
that probes its limit, frozen trunks, GANs, rewards, variable batches, GPUs at their power cap, ranks that breathe.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import cycle

from gpuwatch.detectors.moment import Component, Device, Moment, Replica
from gpuwatch.state.gpus import HostProcess, HostSample
from tests.detectors.simulate import Simulation, cells, healthy_values, histogram, rows

LAYERS = ["embedding.weight"] + [f"blocks.{i // 2}.{('weight', 'bias')[i % 2]}" for i in range(30)] + ["head.weight"]
SIZES = [100_000] + [(4096, 64)[i % 2] for i in range(30)] + [640]
COUNT = len(LAYERS)
EPOCH = 250
GIB = 1 << 30


class Healthy:
    """One run of a kind; `step()` advances it by one step, and by a moment each tenth."""

    amp = frozen = adversarial = noisy = converging = ranks = False

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.simulation = Simulation(LAYERS, SIZES)
        self.number = 0
        self.scale = 65536.0 * 8
        self.uptime_seconds = 0.0
        self.wander = 0.0
        self.phase = self.rng.uniform(0.0, 6.0)

    def rate(self) -> float:
        warm = min(1.0, self.number / 200)
        return 1e-3 * warm * 0.5 * (1.0 + math.cos(math.pi * (self.number % 4000) / 4000)) + 1e-6

    def step(self) -> None:
        self.number += 1
        number, rng, sim = self.number, self.rng, self.simulation
        values = healthy_values(number, rng, noise=0.5 if self.noisy else 0.1)
        self.wander = 0.99 * self.wander + rng.gauss(0.0, 0.05)
        values["grad_norm"] *= math.exp(self.wander)
        values |= {"training_mode": 1.0, "micro_batches": 1.0, "tensors_without_gradient": 0.0}
        values["weight_norm"] = 30.0 * (1.0 + 0.2 * (1.0 - math.exp(-number / 2000)))
        if self.noisy:
            values["loss"] = rng.gauss(-number / 500.0, 2.0)
        if self.converging:
            tiny = math.exp(-number / 700.0)
            values |= {"loss": 2.3 * tiny * math.exp(rng.gauss(0, 0.1)), "update_ratio": 1e-3 * tiny}
            values["grad_norm"] *= tiny
        if number % EPOCH == 0:
            self.end_epoch(values)
        tables = self.tables(values)
        if self.amp:
            tables += self.scale_the_loss(values)
        sim.advance(values, (self.rate(),), tables, optimizers=2 if self.adversarial else 1, decay=0.0 if self.noisy else 0.01)
        self.uptime_seconds += values["step_seconds"]
        if number % 10 == 0:
            sim.look(self.moment(values))

    def end_epoch(self, values: dict[str, float]) -> None:
        """Validation, a checkpoint, and a loader that begins anew."""
        sim, epoch = self.simulation, self.number // EPOCH
        values["step_seconds"] += 20.0
        values["data_seconds"] += 2.0
        sim.tell("validation_pass", self.number, 0.0)
        floor = 0.5 + 1.8 * math.exp(-epoch / 4)
        sim.log("Loss/val", floor * math.exp(self.rng.gauss(0.0, 0.03)))
        sim.log("Accuracy/val", 1.0 - 0.3 * floor * math.exp(self.rng.gauss(0.0, 0.03)))

    def tables(self, values: dict[str, float]) -> list:
        if self.number % 5:
            return []
        rng, size = self.rng, values["grad_norm"] / math.sqrt(COUNT)
        trained = range(24, COUNT) if self.frozen else range(COUNT)
        shares = [10.0 ** (i / COUNT - 1.0) * size * math.exp(rng.gauss(0.0, 0.2)) for i in range(COUNT)]
        gradient = [
            {"norm": shares[i] if i in trained else math.nan, "zero_ratio": 0.999 if i == 0 else 0.3 * rng.random()}
            for i in range(COUNT)
        ]
        made = [cells(self.number, "gradient", gradient)]
        if self.number % 20 == 0:
            moved = [10.0 * values["update_ratio"] * rng.uniform(0.5, 2.0) if i in trained else 0.0 for i in range(COUNT)]
            if self.converging:  # biases in front of a normalisation: lost to rounding
                moved = [0.0 if SIZES[i] == 64 else moved[i] for i in range(COUNT)]
            ratios = [math.exp(rng.gauss(-0.2, 0.3)) for _ in range(COUNT)]
            made += [
                rows(self.number, "second_moment", ratios),
                rows(self.number, "weight", [10.0] * COUNT),
                rows(self.number, "update", moved),
            ]
        return made

    def scale_the_loss(self, values: dict[str, float]) -> list:
        values |= {"loss_scale": self.scale, "skipped": 0.0, "loss_scale_backoffs": 0.0, "autocast_dtype": 1.0}
        values |= {"clipped_while_scaled": 0.0, "clip_max_norm": 1.0}
        values["grad_absmax"] = 0.05
        if self.number <= 4 or self.number % 2000 == 0:
            values |= {"skipped": 1.0, "loss_scale_backoffs": 1.0, "grad_nonfinite_count": 300.0, "grad_norm": 1e9}
            self.scale /= 2.0
        elif self.number % 2000 == 1999:
            self.scale *= 2.0
        spread = {exponent: int(10_000 * math.exp(-(((exponent + 16) / 6.0) ** 2))) for exponent in range(-44, 0)}
        return [histogram(self.number, spread, COUNT)] if self.number % 20 == 0 else []

    def moment(self, values: dict[str, float]) -> Moment:
        rng, seconds = self.rng, self.uptime_seconds
        resident = int(4 * GIB + 2 * GIB * (1.0 - math.exp(-seconds / 8)) + rng.random() * GIB / 4)
        process = HostProcess(seconds, resident, None)
        used = {"torch_allocated_bytes": 20.0 * GIB + rng.random() * GIB, "torch_reserved_bytes": 60.0 * GIB}
        return Moment(
            monotonic_ns=int(seconds * 1e9),
            step=self.number,
            steps=self.number,
            step_age_seconds=rng.random() * values["step_seconds"],
            usual_seconds=0.2,
            longest_seconds=25.0 if self.number > EPOCH else 0.2,
            values=values | used | {"torch_allocated_peak_bytes": 55.0 * GIB},
            facts={"precision": "fp16" if self.amp else "fp32"},
            rank=1,
            replicas=self.replicas() if self.ranks else (),
            devices=(self.device(),),
            process=process,
            host=HostSample(int(seconds * 1e9), 0.4, 30 * GIB, 64 * GIB, {1: process}),
            sampler="sampling",
            components={name: Component(True, "") for name in ("journal", "tensorboard", "nvml", "host")},
        )

    def device(self) -> Device:
        rng = self.rng
        validating = self.number % EPOCH < 20
        values = {
            "utilization_ratio": rng.uniform(0.1, 0.4) if validating else rng.uniform(0.7, 1.0),
            "power_watts": rng.uniform(500.0, 700.0),
            "power_limit_watts": 700.0,
            "memory_size_bytes": 80.0 * GIB,
            "memory_free_bytes": 5.0 * GIB,
            "sm_active_ratio": rng.uniform(0.4, 0.9),
            "tensor_active_ratio": rng.uniform(0.02, 0.5),  # float32 as TF32
            "row_remap_pending": 0.0,
            "row_remap_failure": 0.0,
        }
        made = {(name, ()): value for name, value in values.items()}
        made["ecc_errors_total", (("severity", "uncorrected"), ("lifetime", "volatile"))] = 1.0
        made["ecc_errors_total", (("severity", "corrected"), ("lifetime", "volatile"))] = self.number / 100
        made["throttled_seconds_total", (("reason", "power_cap"),)] = self.uptime_seconds
        made["throttled_seconds_total", (("reason", "software_thermal"),)] = 0.1 * self.uptime_seconds
        return Device("0", True, "", made)

    def replicas(self) -> tuple[Replica, ...]:
        steps = {step: 30.0 + math.sin(step) for step in range(max(1, self.number - 100), self.number, 10)}
        return tuple(
            Replica(
                rank,
                self.number,
                0.03 * (self.number + 20.0 * math.sin(self.number / 100 + rank)),
                self.uptime_seconds,
                1,
                False,
                steps,
                steps,
            )
            for rank in range(4)
        )


class Supervised(Healthy):
    ranks = True


class MixedPrecision(Healthy):
    amp = True


class FineTuning(Healthy):
    frozen = True


class Gan(Healthy):
    adversarial = True


class PolicyGradient(Healthy):
    noisy = True


class LearnedByHeart(Healthy):
    converging = True


KINDS: tuple[Callable[[int], Healthy], ...] = (Supervised, MixedPrecision, FineTuning, Gan, PolicyGradient, LearnedByHeart)


def play(steps: int, steps_of_a_run: int) -> list[tuple[str, Healthy]]:
    """`steps` steps in all, in runs of this length, the kinds in turn: (kind and seed, run) of each."""
    played = []
    for seed, kind in enumerate(cycle(KINDS)):
        if steps <= 0:
            return played
        run = kind(seed)
        for _ in range(min(steps, steps_of_a_run)):
            run.step()
        steps -= steps_of_a_run
        played.append((f"{kind.__name__} {seed}", run))
    raise AssertionError
