"""What a daemon serves over HTTP, put together: its metrics, the web page, and the text of each rule."""

from __future__ import annotations

from gpuwatch import __version__
from gpuwatch.config import Config, parse_listen
from gpuwatch.detectors import pages as rule_pages
from gpuwatch.detectors.registry import BY_NAME
from gpuwatch.exporters import http, listening, pages
from gpuwatch.exporters.prometheus import Prometheus
from gpuwatch.selfstats import SelfStats
from gpuwatch.service.preconditions import StartError
from gpuwatch.state.store import State


def listen(config: Config, state: State, stats: SelfStats) -> http.HttpServer:
    """The server, bound and not yet started. Raises StartError when the address cannot be had."""
    metrics = Prometheus(config, state, stats, __version__, list(BY_NAME))
    web = pages.Pages(state, stats, __version__)
    routes = web.routes(metrics.serve, BY_NAME, lambda name: rule_pages.page(BY_NAME[name]))
    stats.expect("http", stale_after_seconds=10.0)

    def turn() -> None:
        web.turn()
        stats.beat("http")

    try:
        return http.HttpServer(config, parse_listen(config.daemon.listen), routes, turn)
    except listening.ListenError as error:
        raise StartError(str(error)) from None
