"""Quotas: what one user, one run and all of them together may take, so that no label bomb fills memory or a scrape.

What is over a quota is folded into `_other` and counted, never silently lost. A run's share is free again when
it has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container

import msgspec
from gpuwatch_hooks import wire

from gpuwatch.config import Limits
from gpuwatch.state.records import Names, Scalar


class Admission:
    """Counts peers by uid, and series (tags, layers, groups) by run."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._peers: Counter[int] = Counter()  # by uid
        self._tags: dict[str, set[str]] = {}  # by run directory
        self._names: dict[str, dict[str, int]] = {}  # by run directory: name table -> admitted entries
        self.series = 0

    def admit_peer(self, uid: int) -> str:
        """Count one more connection of `uid`; the reason of a refusal instead, when it is one too many."""
        if self._peers.total() >= self._limits.peers:
            return "too_many_peers"
        if self._peers[uid] >= self._limits.peers_per_uid:
            return "too_many_peers_of_uid"
        self._peers[uid] += 1
        return ""

    def release_peer(self, uid: int) -> None:
        self._peers[uid] -= 1
        if not self._peers[uid]:
            del self._peers[uid]

    def admit_tag(self, run: str, tag: str) -> str:
        """`tag`, or `_other` when the run or the daemon has as many as it may."""
        tags = self._tags.setdefault(run, set())
        if tag in tags or tag == wire.OTHER_NAME:
            return tag
        if len(tags) >= self._limits.tags_per_run or self.series >= self._limits.series:
            return wire.OTHER_NAME
        tags.add(tag)
        self.series += 1
        return tag

    def admit_scalars(self, run: str, rows: tuple[Scalar, ...]) -> tuple[tuple[Scalar, ...], int]:
        """The rows with their tags admitted, and how many of them were folded into `_other`."""
        tags = [self.admit_tag(run, row.tag) for row in rows]
        folded = sum(tag != row.tag for tag, row in zip(tags, rows, strict=True))
        if not folded:
            return rows, 0
        kept = (msgspec.structs.replace(row, tag=tag) for tag, row in zip(tags, rows, strict=True))
        return tuple(kept), folded

    def admit_names(self, run: str, stretch: Names) -> tuple[Names, int]:
        """The stretch cut to what the run and the daemon may name, and how many names were cut off."""
        tables = self._names.setdefault(run, {})
        known = tables.get(stretch.table, 0)
        most = self._limits.tensors_per_run if stretch.table == "tensor" else wire.MAX_GROUPS * 16
        most = min(most, known + max(0, self._limits.series - self.series))
        end = min(stretch.first + len(stretch.names), most)
        self.series += max(0, end - known)
        tables[stretch.table] = max(known, end)
        if end == stretch.first + len(stretch.names):
            return stretch, 0
        kept = max(0, end - stretch.first)
        # The table fills what lies before `first` with names of its own: those must not be over the quota either.
        first = min(stretch.first, end)
        cut = msgspec.structs.replace(stretch, first=first, names=stretch.names[:kept], numels=stretch.numels[:kept])
        return cut, len(stretch.names) - kept

    def keep_only(self, live_runs: Container[str]) -> None:
        """Give back what runs took that have ended."""
        for run in [run for run in {*self._tags, *self._names} if run not in live_runs]:
            self.series -= len(self._tags.pop(run, ())) + sum(self._names.pop(run, {}).values())
