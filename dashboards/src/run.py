"""One run: how it learns, what was found, mixed precision, where its time and memory go."""

from __future__ import annotations

from board import NODE, RANK, Board
from panels import Kit

_RANK = "{{run}} rank {{rank}}"


def variables(board: Board) -> None:
    """The variables of the dashboards about runs."""
    board.variable("job", "Job", "label_values(gpuwatch_train_info, job)")
    board.variable("instance", "Node", 'label_values(gpuwatch_train_info{job=~"$job"}, instance)')
    board.variable("run", "Run", f"label_values(gpuwatch_train_info{{{NODE}}}, run)")
    board.variable("rank", "Rank", f'label_values(gpuwatch_train_info{{{NODE},run=~"$run"}}, rank)')


def build() -> Board:
    board = Board("gpuwatch-run", "gpuwatch / Run", "One training run, or several side by side: loss, findings, speed, memory.")
    variables(board)
    kit = Kit(RANK)
    _now(board, kit)
    _learning(board, kit)
    _mixed_precision(board, kit)
    _speed(board, kit)
    _memory(board, kit)
    _recording(board, kit)
    return board


def _now(board: Board, kit: Kit) -> None:
    board.row("Now")
    board.add(4, 4, kit.number("Loss", "none", "Mean over the ranks, without the loss scale.", "avg(gpuwatch_train_loss{@})"))
    board.add(
        4,
        4,
        kit.number(
            "Steps a second",
            "cps",
            "Of the run: its ranks step together.",
            "max(rate(gpuwatch_train_steps_total{@}[$__rate_interval]))",
        ),
    )
    board.add(
        4,
        4,
        kit.number(
            "Since the last step",
            "s",
            "Time since the last step of the rank that is furthest behind.",
            "max(time() - gpuwatch_train_last_step_timestamp_seconds{@})",
            bad=300,
        ),
    )
    board.add(
        4,
        4,
        kit.number(
            "Active findings",
            "none",
            "Findings that are active now: gpuwatch alerts has their numbers.",
            "sum(gpuwatch_train_alert_active{@}) or vector(0)",
            bad=1,
        ),
    )
    board.add(
        4,
        4,
        kit.number(
            "Ranks",
            "none",
            "Training processes of the run.",
            "count(gpuwatch_train_info{@})",
        ),
    )
    board.add(
        4,
        4,
        kit.number(
            "Cost of watching",
            "percentunit",
            "Share of the step time that gpuwatch's hooks take.",
            "max(gpuwatch_train_hook_overhead_ratio{@})",
            bad=0.02,
        ),
    )
    board.add(
        24,
        6,
        kit.lines(
            "Findings",
            "none",
            "1 while a finding of this rule is active. gpuwatch explain RULE says what it means and what to do.",
            ("gpuwatch_train_alert_active{@}", _RANK + " {{rule}}"),
            least=0,
            most=1,
        ),
    )


def _learning(board: Board, kit: Kit) -> None:
    board.row("Learning")
    board.add(
        12, 9, kit.lines("Loss", "none", "Loss of the last step, without the loss scale.", ("gpuwatch_train_loss{@}", _RANK))
    )
    board.add(
        12,
        9,
        kit.lines(
            "Gradient norm",
            "none",
            "L2 norm of all gradients before clipping, and the largest entry. Without the loss scale.",
            ("gpuwatch_train_grad_norm{@}", _RANK + " norm"),
            ("gpuwatch_train_grad_absmax{@}", _RANK + " largest entry"),
            log=True,
        ),
    )
    board.add(
        8,
        8,
        kit.lines(
            "Learning rate",
            "none",
            "By parameter group.",
            ("gpuwatch_train_learning_rate{@}", _RANK + " {{group}}"),
        ),
    )
    board.add(
        8,
        8,
        kit.lines(
            "Update over weights",
            "none",
            "Size of an update relative to the weights. About 0.001 is usual; over 0.1 tears weights apart.",
            ("gpuwatch_train_update_ratio{@}", _RANK),
            log=True,
        ),
    )
    board.add(8, 8, kit.lines("Weight norm", "none", "L2 norm of all parameters.", ("gpuwatch_train_weight_norm{@}", _RANK)))
    board.add(
        12,
        8,
        kit.lines(
            "Logged scalars",
            "none",
            "What the job logs itself: SummaryWriter.add_scalar and gpuwatch.log.",
            ("gpuwatch_train_scalar{@}", _RANK + " {{tag}}"),
        ),
    )
    board.add(
        12,
        8,
        kit.lines(
            "Entries that are not finite",
            "cps",
            "Gradient entries that were NaN or infinite, a second.",
            ("rate(gpuwatch_train_nonfinite_gradients_total{@}[$__rate_interval])", _RANK),
            least=0,
        ),
    )


def _mixed_precision(board: Board, kit: Kit) -> None:
    board.row("Mixed precision")
    board.add(8, 8, kit.lines("Loss scale", "none", "GradScaler's scale.", ("gpuwatch_train_loss_scale{@}", _RANK), log=True))
    board.add(
        8,
        8,
        kit.lines(
            "Skipped steps",
            "cps",
            "Steps whose update was skipped, and reductions of the scale, a second.",
            ("rate(gpuwatch_train_skipped_steps_total{@}[$__rate_interval])", _RANK + " skipped"),
            ("rate(gpuwatch_train_loss_scale_backoffs_total{@}[$__rate_interval])", _RANK + " back-offs"),
            least=0,
        ),
    )
    board.add(
        8,
        8,
        kit.lines(
            "Underflow and autocast",
            "percentunit",
            "Share of gradient entries that float16 would flush to zero, and of the forward time under autocast.",
            ("gpuwatch_train_grad_underflow_ratio{@}", _RANK + " underflow"),
            ("gpuwatch_train_autocast_active_ratio{@}", _RANK + " autocast"),
            least=0,
            most=1,
        ),
    )


def _speed(board: Board, kit: Kit) -> None:
    board.row("Speed")
    buckets = "sum by (le) (rate(gpuwatch_train_step_duration_seconds_bucket{@}[$__rate_interval]))"
    board.add(
        8,
        9,
        kit.lines(
            "Steps a second",
            "cps",
            "Steps of each rank, a second.",
            ("rate(gpuwatch_train_steps_total{@}[$__rate_interval])", _RANK),
            least=0,
        ),
    )
    board.add(
        8,
        9,
        kit.lines(
            "Step time",
            "s",
            "Time from one optimizer step to the next: median, 90th and 99th percentile over the ranks.",
            *((f"histogram_quantile({quantile}, {buckets})", f"{quantile:.0%}") for quantile in (0.5, 0.9, 0.99)),
            log=True,
        ),
    )
    board.add(8, 9, kit.buckets("Step times", "s", "How the step times are spread.", buckets))
    board.add(
        12,
        9,
        kit.lines(
            "Phases",
            "percentunit",
            "Where the time of a step goes, mean over the ranks. A large data share is a starved loop.",
            (
                (
                    "sum by (phase) (rate(gpuwatch_train_phase_seconds_total{@}[$__rate_interval]))"
                    " / ignoring (phase) group_left () sum (rate(gpuwatch_train_phase_seconds_total{@}[$__rate_interval]))"
                ),
                "{{phase}}",
            ),
            stacked=True,
            least=0,
            most=1,
        ),
    )
    board.add(
        12,
        9,
        kit.lines(
            "Own time by rank",
            "s",
            "Data and forward of each step. A rank above its peers is the one that they wait for.",
            (
                (
                    'sum without (phase) (rate(gpuwatch_train_phase_seconds_total{@,phase=~"data|forward"}[$__rate_interval]))'
                    " / rate(gpuwatch_train_steps_total{@}[$__rate_interval])"
                ),
                _RANK,
            ),
            least=0,
        ),
    )
    board.add(
        8,
        8,
        kit.lines(
            "GPU utilization",
            "percentunit",
            "Of the GPUs that the run's processes are on.",
            (
                "gpuwatch_gpu_utilization_ratio{" + NODE + "} and on (job, instance, gpu) gpuwatch_gpu_process_info{@}",
                "{{instance}} GPU {{gpu}}",
            ),
            least=0,
            most=1,
        ),
    )
    board.add(
        8,
        8,
        kit.lines(
            "Processor time",
            "percentunit",
            "Processors that the training process keeps busy, all its threads.",
            ("rate(gpuwatch_train_process_cpu_seconds_total{@}[$__rate_interval])", _RANK),
            least=0,
        ),
    )
    board.add(
        8,
        8,
        kit.lines(
            "Read from storage",
            "Bps",
            "What the training process itself reads; not what its data loader workers do.",
            ("rate(gpuwatch_train_process_read_bytes_total{@}[$__rate_interval])", _RANK),
            least=0,
        ),
    )


def _memory(board: Board, kit: Kit) -> None:
    board.row("Memory")
    board.add(
        8,
        8,
        kit.lines(
            "Torch's device memory",
            "bytes",
            "What tensors hold, at a step's peak too, and what torch's allocator keeps for them.",
            ("gpuwatch_train_torch_allocated_bytes{@}", _RANK + " tensors"),
            ("gpuwatch_train_torch_allocated_peak_bytes{@}", _RANK + " peak"),
            ("gpuwatch_train_torch_reserved_bytes{@}", _RANK + " allocator"),
            least=0,
        ),
    )
    board.add(
        8,
        8,
        kit.lines(
            "Device memory of the processes",
            "bytes",
            "As the driver counts it: torch, its libraries, and the context.",
            (
                "gpuwatch_gpu_process_memory_bytes{" + NODE + "} * on (job, instance, gpu, pid)"
                " group_left (run, rank) gpuwatch_gpu_process_info{@}",
                _RANK + " GPU {{gpu}}",
            ),
            least=0,
        ),
    )
    board.add(
        8,
        8,
        kit.lines(
            "Host memory",
            "bytes",
            "Resident memory of the training process.",
            ("gpuwatch_train_process_resident_memory_bytes{@}", _RANK),
            least=0,
        ),
    )


def _recording(board: Board, kit: Kit) -> None:
    board.row("Recording")
    board.add(
        12,
        7,
        kit.lines(
            "Cost of watching",
            "percentunit",
            "Share of the step time that the hooks take, against the budget that they keep to.",
            ("gpuwatch_train_hook_overhead_ratio{@}", _RANK),
            least=0,
        ),
    )
    board.add(
        12,
        7,
        kit.lines(
            "Records",
            "cps",
            "Records received from the hooks, and those that were lost, by reason.",
            ("rate(gpuwatch_train_records_total{@}[$__rate_interval])", _RANK + " received"),
            ("rate(gpuwatch_train_records_dropped_total{@}[$__rate_interval])", _RANK + " lost {{reason}}"),
            least=0,
        ),
    )
