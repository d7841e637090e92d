"""The kinds of panels of the dashboards. In an expression `@` stands for the matchers of the dashboard's variables."""

from __future__ import annotations

from typing import Any

from board import DATASOURCE
from grafana_foundation_sdk.builders import bargauge, common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import DataTransformerConfig, Threshold, ThresholdsMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Query = tuple[str, str]  # expression, legend
_REF_IDS = "ABCDEFGH"


class Kit:
    """Makes panels whose queries carry one dashboard's `matchers`."""

    def __init__(self, matchers: str) -> None:
        self._matchers = matchers

    def lines(
        self,
        title: str,
        unit: str,
        description: str,
        *queries: Query,
        log: bool = False,
        stacked: bool = False,
        most: float | None = None,
        least: float | None = None,
    ) -> timeseries.Panel:
        """Curves over time. `log`: a logarithmic axis; `most`, `least`: the axis' fixed ends."""
        panel = timeseries.Panel().title(title).description(description).unit(unit).line_width(1).span_nulls(False)
        panel.legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.TABLE)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        if log:
            panel.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10))
        if stacked:
            panel.fill_opacity(60).stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
        if most is not None:
            panel.max(most)
        if least is not None:
            panel.min(least)
        return self._with(panel, queries)

    def number(
        self, title: str, unit: str, description: str, expression: str, *, bad: float | None = None, low: bool = False
    ) -> stat.Panel:
        """One large number, red from `bad` on (or below it, with `low`)."""
        panel = stat.Panel().title(title).description(description).unit(unit)
        panel.graph_mode(BigValueGraphMode.AREA).color_mode(BigValueColorMode.VALUE)
        panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        first, then = ("red", "green") if low else ("green", "red")
        steps = [Threshold(value=None, color=first)] + ([Threshold(value=bad, color=then)] if bad is not None else [])
        panel.thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        return self._with(panel, ((expression, title),))

    def bars(self, title: str, unit: str, description: str, *queries: Query, most: float | None = None) -> bargauge.Panel:
        """The present values as bars."""
        panel = bargauge.Panel().title(title).description(description).unit(unit).orientation(VizOrientation.HORIZONTAL)
        panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        panel.min(0)
        if most is not None:
            panel.max(most)
        return self._with(panel, queries, instant=True)

    def buckets(self, title: str, unit: str, description: str, expression: str) -> heatmap.Panel:
        """A histogram over time: `expression` is summed by le."""
        panel = heatmap.Panel().title(title).description(description).unit(unit)
        target = self._target(expression, "{{le}}", "A").format(PromQueryFormat.HEATMAP)
        return panel.with_target(target)

    def rows(self, title: str, unit: str, description: str, *queries: Query, hidden: tuple[str, ...] = ()) -> table.Panel:
        """The present values as a table; a query's legend is its column's name, `hidden` are labels without a column."""
        panel = table.Panel().title(title).description(description).unit(unit)
        for ref_id, (expression, _) in zip(_REF_IDS, queries, strict=False):
            panel.with_target(self._target(expression, "", ref_id, instant=True).format(PromQueryFormat.TABLE))
        single = len(queries) == 1
        names = {
            ("Value" if single else f"Value #{ref_id}"): legend for ref_id, (_, legend) in zip(_REF_IDS, queries, strict=False)
        }
        options = {"excludeByName": dict.fromkeys(("Time", "__name__", "job", *hidden), True), "renameByName": names}
        if not single:
            panel.with_transformation(DataTransformerConfig(id_val="merge", options={}))
        return panel.with_transformation(DataTransformerConfig(id_val="organize", options=options))

    def _with(self, panel: Any, queries: tuple[Query, ...], *, instant: bool = False) -> Any:
        for ref_id, (expression, legend) in zip(_REF_IDS, queries, strict=False):
            panel.with_target(self._target(expression, legend, ref_id, instant=instant))
        return panel

    def _target(self, expression: str, legend: str, ref_id: str, *, instant: bool = False) -> prometheus.Dataquery:
        query = prometheus.Dataquery().expr(expression.replace("@", self._matchers)).datasource(DATASOURCE).ref_id(ref_id)
        query.legend_format(legend)
        return query.instant() if instant else query.range()
