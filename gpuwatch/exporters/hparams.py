"""The hyper-parameters page: what a run was started with, which of its scalars are results, and how it ended.

Three summaries without data carry it in their metadata. The page pairs each run's parameters with the last value of each
metric that the experiment names; without that list every layer's statistics would become columns of the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NO_DATA = TensorProto(dtype=DT_FLOAT, tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=0)]))
_TYPES = {bool: api_pb2.DATA_TYPE_BOOL, str: api_pb2.DATA_TYPE_STRING}
_STATUS = {"exit": api_pb2.STATUS_SUCCESS, "detached": api_pb2.STATUS_SUCCESS, "exception": api_pb2.STATUS_FAILURE}

SESSION_END_TAG = "_hparams_/session_end_info"

Fact = str | int | float | bool


def add_experiment(summary: Summary, facts: Mapping[str, Fact], metrics: Iterable[str]) -> None:
    """The columns of the table: the parameters' names and types, and which scalar tags are results."""
    data = HParamsPluginData(experiment=api_pb2.Experiment())
    for name, fact in facts.items():
        data.experiment.hparam_infos.add(name=name, type=_TYPES.get(type(fact), api_pb2.DATA_TYPE_FLOAT64))
    for tag in metrics:
        data.experiment.metric_infos.add(name=api_pb2.MetricName(tag=tag))
    _add(summary, "_hparams_/experiment", data)


def add_session_start(summary: Summary, facts: Mapping[str, Fact], group: str, wall_seconds: float) -> None:
    """The run's parameters; ranks of one run share the `group`, so that the table shows them as one line."""
    data = HParamsPluginData()
    start = data.session_start_info
    start.group_name = group
    start.start_time_secs = wall_seconds
    for name, fact in facts.items():
        if isinstance(fact, bool):
            start.hparams[name].bool_value = fact
        elif isinstance(fact, str):
            start.hparams[name].string_value = fact
        else:
            start.hparams[name].number_value = float(fact)
    _add(summary, "_hparams_/session_start_info", data)


def add_session_end(summary: Summary, reason: str, wall_seconds: float) -> None:
    """How the run ended: an end reason of the wire, or anything else for a process that said no goodbye."""
    data = HParamsPluginData()
    data.session_end_info.status = _STATUS.get(reason, api_pb2.STATUS_FAILURE)
    data.session_end_info.end_time_secs = wall_seconds
    _add(summary, SESSION_END_TAG, data)


def _add(summary: Summary, tag: str, data: HParamsPluginData) -> None:
    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=data.SerializeToString())
    summary.value.add(tag=tag, metadata=SummaryMetadata(plugin_data=plugin), tensor=_NO_DATA)
