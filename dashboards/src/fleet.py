"""The whole fleet: what is wrong, which runs there are, every GPU, and the daemons themselves."""

from __future__ import annotations

from board import GPU, NODE, Board
from panels import Kit

_WHO = "{{instance}} GPU {{gpu}}"


def build() -> Board:
    board = Board("gpuwatch-fleet", "gpuwatch / Fleet", "Alerts, runs, GPUs and daemons of all nodes that Prometheus scrapes.")
    board.variable("job", "Job", "label_values(gpuwatch_build_info, job)")
    board.variable("instance", "Node", 'label_values(gpuwatch_build_info{job=~"$job"}, instance)')
    board.variable("gpu", "GPU", f"label_values(gpuwatch_gpu_up{{{NODE}}}, gpu)")
    node, gpu = Kit(NODE), Kit(GPU)
    _now(board, node, gpu)
    _gpus(board, gpu)
    _links(board, gpu)
    _daemons(board, node)
    return board


def _now(board: Board, node: Kit, gpu: Kit) -> None:
    board.row("Now")
    board.add(
        4,
        4,
        node.number(
            "Alerts",
            "none",
            "gpuwatch alerts that fire on these nodes.",
            'count(ALERTS{@,alertname=~"Gpuwatch.+",alertstate="firing"}) or vector(0)',
            bad=1,
        ),
    )
    board.add(
        4,
        4,
        node.number(
            "Daemons down",
            "none",
            "Daemons that cannot be scraped, or of which a part fails.",
            "count(up{@} == 0 or gpuwatch_up{@} == 0) or vector(0)",
            bad=1,
        ),
    )
    board.add(
        4,
        4,
        gpu.number(
            "GPUs lost",
            "none",
            "GPUs that do not answer.",
            "count(gpuwatch_gpu_up{@} == 0) or vector(0)",
            bad=1,
        ),
    )
    board.add(
        4,
        4,
        node.number(
            "Runs",
            "none",
            "Runs that train, or ended within the last five minutes.",
            "count(count by (job, run) (gpuwatch_train_info{@})) or vector(0)",
        ),
    )
    board.add(
        4,
        4,
        gpu.number(
            "GPUs busy",
            "percentunit",
            "Mean share of time in which some kernel ran, over all GPUs.",
            "avg(gpuwatch_gpu_utilization_ratio{@})",
        ),
    )
    board.add(4, 4, gpu.number("Power", "watt", "Power drawn by all boards.", "sum(gpuwatch_gpu_power_watts{@})"))
    board.add(
        12,
        8,
        node.rows(
            "Firing alerts",
            "none",
            "What is wrong now. The alert's page in docs/alerting.md says what to do.",
            ('ALERTS{@,alertname=~"Gpuwatch.+",alertstate="firing"}', "Firing"),
            hidden=("alertstate", "Value"),
        ),
    )
    board.add(
        12,
        8,
        node.rows(
            "Runs",
            "none",
            "One line a run: steps a second, loss, gradient norm, findings that are active; means over its ranks.",
            ("max by (job, run) (rate(gpuwatch_train_steps_total{@}[$__rate_interval]))", "Steps/s"),
            ("avg by (job, run) (gpuwatch_train_loss{@})", "Loss"),
            ("avg by (job, run) (gpuwatch_train_grad_norm{@})", "Gradient norm"),
            (
                "sum by (job, run) (gpuwatch_train_alert_active{@}) or 0 * count by (job, run) (gpuwatch_train_info{@})",
                "Findings",
            ),
        ),
    )


def _gpus(board: Board, gpu: Kit) -> None:
    board.row("GPUs")
    board.add(
        12,
        9,
        gpu.lines(
            "Utilization",
            "percentunit",
            "Share of time in which some kernel ran. 100 % may still be a kernel that waits: see the load.",
            ("gpuwatch_gpu_utilization_ratio{@}", _WHO),
            least=0,
            most=1,
        ),
    )
    board.add(
        12,
        9,
        gpu.lines(
            "Effective load",
            "percentunit",
            "Utilization times power over its limit: low beside a high utilization is a collective that spins.",
            ("gpuwatch_gpu_utilization_ratio{@} * gpuwatch_gpu_power_watts{@} / gpuwatch_gpu_power_limit_watts{@}", _WHO),
            least=0,
            most=1,
        ),
    )
    board.add(
        12,
        9,
        gpu.lines(
            "Memory",
            "percentunit",
            "Most memory in use within 60 s, of the device's: no peak between two scrapes is missed.",
            ('gpuwatch_gpu_memory_used_peak_bytes{@,window="60s"} / ignoring (window) gpuwatch_gpu_memory_size_bytes{@}', _WHO),
            least=0,
            most=1,
        ),
    )
    board.add(
        12,
        9,
        gpu.rows(
            "Processes",
            "bytes",
            "Device memory by process; run and rank where it is one that gpuwatch records.",
            (
                (
                    "gpuwatch_gpu_process_memory_bytes{@} * on (job, instance, gpu, pid)"
                    " group_left (user, command, run, rank, slurm_job_id) gpuwatch_gpu_process_info{@}"
                ),
                "Memory",
            ),
        ),
    )
    board.add(8, 8, gpu.lines("Power", "watt", "Power drawn by the board.", ("gpuwatch_gpu_power_watts{@}", _WHO), least=0))
    board.add(
        8,
        8,
        gpu.lines(
            "Temperature",
            "celsius",
            "Of the GPU's core and, where there is a sensor, of its memory.",
            ("gpuwatch_gpu_temperature_celsius{@}", _WHO + " {{sensor}}"),
        ),
    )
    board.add(
        8,
        8,
        gpu.lines(
            "SM clock",
            "hertz",
            "Present clock of the multiprocessors.",
            ('gpuwatch_gpu_clock_hertz{@,domain="sm"}', _WHO),
            least=0,
        ),
    )
    board.add(
        12,
        8,
        gpu.lines(
            "Slowed down",
            "percentunit",
            "Share of time in which the clocks were held down, by reason. power_cap is normal under load.",
            ("rate(gpuwatch_gpu_throttled_seconds_total{@}[$__rate_interval])", _WHO + " {{reason}}"),
            least=0,
        ),
    )
    board.add(
        12,
        8,
        gpu.lines(
            "Memory errors and rows",
            "none",
            "ECC errors within the last hour, and memory rows that were replaced by spare ones.",
            (
                'sum by (job, instance, gpu, severity) (increase(gpuwatch_gpu_ecc_errors_total{@,lifetime="volatile"}[1h]))',
                _WHO + " {{severity}}",
            ),
            ("gpuwatch_gpu_remapped_rows{@}", _WHO + " rows {{cause}}"),
            least=0,
        ),
    )


def _links(board: Board, gpu: Kit) -> None:
    board.row("Links")
    for title, metric, description in (
        ("PCIe", "pcie", "Bytes over PCIe: data to the GPU, and all that has no NVLink."),
        ("NVLink", "nvlink", "Bytes over all NVLinks: the collectives within a node."),
    ):
        board.add(
            12,
            8,
            gpu.lines(
                title,
                "Bps",
                description,
                (f"rate(gpuwatch_gpu_{metric}_transmit_bytes_total{{@}}[$__rate_interval])", _WHO + " sent"),
                (f"rate(gpuwatch_gpu_{metric}_receive_bytes_total{{@}}[$__rate_interval])", _WHO + " received"),
                least=0,
            ),
        )


def _daemons(board: Board, node: Kit) -> None:
    board.row("Nodes and daemons")
    board.add(
        8,
        8,
        node.lines(
            "Host CPU",
            "percentunit",
            "Share of all processors' time that was not idle.",
            ("gpuwatch_host_cpu_utilization_ratio{@}", "{{instance}}"),
            least=0,
            most=1,
        ),
    )
    board.add(
        8,
        8,
        node.lines(
            "Host memory",
            "percentunit",
            "Share of the host's memory that is not available for new processes.",
            ("gpuwatch_host_memory_used_bytes{@} / gpuwatch_host_memory_size_bytes{@}", "{{instance}}"),
            least=0,
            most=1,
        ),
    )
    board.add(
        8,
        8,
        node.lines(
            "Components",
            "none",
            "1 while a part of a daemon works, 0 when it fails or hangs.",
            ("gpuwatch_component_up{@}", "{{instance}} {{component}}"),
            least=0,
            most=1,
        ),
    )
    board.add(
        8,
        8,
        node.lines(
            "Sampling",
            "s",
            "Time that one second's sampling of all GPUs of a node takes.",
            ("gpuwatch_sample_duration_seconds{@}", "{{instance}}"),
            least=0,
        ),
    )
    board.add(
        8,
        8,
        node.lines(
            "Driver errors",
            "cps",
            "Driver calls that failed, and new starts of its library.",
            (
                "sum by (job, instance, call, code) (rate(gpuwatch_nvml_errors_total{@}[$__rate_interval]))",
                "{{instance}} {{call}} {{code}}",
            ),
            ("rate(gpuwatch_nvml_reinits_total{@}[$__rate_interval])", "{{instance}} new starts"),
            least=0,
        ),
    )
    board.add(
        8,
        8,
        node.lines(
            "Records lost",
            "cps",
            "Records of training processes that did not arrive, by reason.",
            (
                "sum by (job, instance, reason) (rate(gpuwatch_train_records_dropped_total{@}[$__rate_interval]))",
                "{{instance}} {{reason}}",
            ),
            least=0,
        ),
    )
