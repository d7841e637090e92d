"""One dashboard being laid out: rows of panels from left to right, variables, links, and the conventions that all share."""

from __future__ import annotations

import json
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    GridPos,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
GRID_WIDTH = 24
ROW_HEIGHT = 1
#: What `@` in an expression stands for, by the dashboard's variables.
NODE = 'job=~"$job",instance=~"$instance"'
GPU = f'{NODE},gpu=~"$gpu"'
RANK = f'{NODE},run=~"$run",rank=~"$rank"'

Panel = Any  # a panel builder of the SDK: they share no base class


class Board:
    """`row` begins a row, `add` puts panels into it; a line of panels that is full begins the next."""

    def __init__(self, uid: str, title: str, description: str) -> None:
        self._built = (
            dashboard.Dashboard(title)
            .uid(uid)
            .description(description)
            .tags(["gpuwatch"])
            .readonly()
            .tooltip(DashboardCursorSync.CROSSHAIR)
            .time("now-1h", "now")
            .refresh("30s")
            .timezone("browser")
            .with_variable(
                dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus").current(VariableOption())
            )
            .link(
                dashboard.DashboardLink("gpuwatch")
                .type("dashboards")
                .tags(["gpuwatch"])
                .as_dropdown(False)
                .keep_time(True)
                .include_vars(True)
            )
        )
        self._built.annotation(
            dashboard.AnnotationQuery()
            .name("Firing alerts")
            .datasource(DATASOURCE)
            .icon_color("red")
            .expr(f'ALERTS{{{NODE},alertname=~"Gpuwatch.+",alertstate="firing"}}')
        )
        self._next_id = 1
        self._x = self._y = self._height = 0

    def variable(self, name: str, label: str, query: str) -> None:
        """A variable of any number of a label's values, found anew when the time range changes."""
        self._built.with_variable(
            dashboard.QueryVariable(name)
            .label(label)
            .datasource(DATASOURCE)
            .query({"qryType": 1, "query": query, "refId": f"variable-{name}"})
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.NATURAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".+")
            .current(VariableOption(text=["All"], value=["$__all"], selected=True))
        )

    def row(self, title: str) -> None:
        self._new_line()
        position = GridPos(h=ROW_HEIGHT, w=GRID_WIDTH, x=0, y=self._y)
        self._built.with_row(dashboard.Row(title).id(self._id()).grid_pos(position))
        self._y += ROW_HEIGHT

    def add(self, width: int, height: int, panel: Panel) -> None:
        """A panel of this many of the grid's 24 columns and lines."""
        if self._x + width > GRID_WIDTH:
            self._new_line()
        position = GridPos(h=height, w=width, x=self._x, y=self._y)
        self._built.with_panel(panel.id(self._id()).datasource(DATASOURCE).grid_pos(position))
        self._x += width
        self._height = max(self._height, height)

    def text(self) -> str:
        """The dashboard as the bytes of its file."""
        tree = json.loads(JSONEncoder(sort_keys=True, indent=2).encode(self._built.build()))
        tree["id"] = None
        for annotation in tree["annotations"]["list"]:  # what Prometheus' annotations have and the SDK does not know
            annotation |= {"titleFormat": "{{alertname}}", "textFormat": "{{run}} {{rank}} {{rule}} {{gpu}}", "step": "30s"}
        return json.dumps(tree, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def _new_line(self) -> None:
        self._x, self._y, self._height = 0, self._y + self._height, 0

    def _id(self) -> int:
        self._next_id += 1
        return self._next_id - 1
