"""The layers of a run: which gradients are large, small, or not what they were."""

from __future__ import annotations

from board import RANK, Board
from panels import Kit
from run import variables

_LAYER = "{{layer}} ({{run}} rank {{rank}})"
_NORM = "gpuwatch_train_layer_grad_norm{@}"


def build() -> Board:
    board = Board(
        "gpuwatch-layers",
        "gpuwatch / Layers",
        "Gradient norms by layer. Daemons export the largest layers with prometheus.layer_top_k; TensorBoard has all of them.",
    )
    variables(board)
    kit = Kit(RANK)
    board.row("Now")
    board.add(
        6,
        4,
        kit.number(
            "Layers shown",
            "none",
            "Layers that daemons export: prometheus.layer_top_k of the largest, of each rank.",
            f"count({_NORM})",
        ),
    )
    board.add(
        6,
        4,
        kit.number(
            "Spread",
            "none",
            "Largest norm over the smallest, of the layers shown. It grows when the first layers stop learning.",
            f"max({_NORM}) / min({_NORM} > 0)",
        ),
    )
    board.add(
        6,
        4,
        kit.number(
            "Layers that are not finite",
            "none",
            "Layers whose norm is NaN or infinite.",
            f"count({_NORM} != {_NORM} or {_NORM} == Inf) or vector(0)",
            bad=1,
        ),
    )
    board.add(
        6,
        4,
        kit.number("Gradient norm", "none", "Of all layers together, mean over the ranks.", "avg(gpuwatch_train_grad_norm{@})"),
    )
    board.row("Gradient norms")
    board.add(
        24,
        11,
        kit.lines("Gradient norm by layer", "none", "Before clipping, without the loss scale.", (_NORM, _LAYER), log=True),
    )
    board.add(
        12,
        11,
        kit.bars(
            "Largest now",
            "none",
            "The twenty layers with the largest gradients.",
            (f"topk(20, {_NORM})", _LAYER),
        ),
    )
    board.add(
        12,
        11,
        kit.bars(
            "Smallest now",
            "none",
            "The twenty smallest of the layers shown: near zero, a layer does not learn.",
            (f"bottomk(20, {_NORM})", _LAYER),
        ),
    )
    board.row("Change")
    board.add(
        12,
        10,
        kit.lines(
            "Against its own last hour",
            "none",
            "Norm over its mean of the last hour: the layer that leaves 1 first is where it began.",
            (f"{_NORM} / avg_over_time({_NORM}[1h])", _LAYER),
            log=True,
        ),
    )
    board.add(
        12,
        10,
        kit.lines(
            "Share of the whole",
            "percentunit",
            "The layer's squared norm over that of all gradients.",
            (f"{_NORM} ^ 2 / on (job, instance, run, rank) group_left () gpuwatch_train_grad_norm{{@}} ^ 2", _LAYER),
            least=0,
            most=1,
        ),
    )
    return board
