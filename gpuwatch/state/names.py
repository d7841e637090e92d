"""Name tables: what a training process calls its tensors, parameter groups and optimizers. Sent once, referred to by index."""

from __future__ import annotations

from gpuwatch_hooks import wire

from gpuwatch.state.records import Names


class NameTable:
    """One table. A newer version replaces it; an older one, or an entry beyond `capacity`, is counted and left out."""

    def __init__(self, capacity: int = wire.MAX_TENSORS) -> None:
        self.capacity = capacity
        self.version = 0
        self.names: list[str] = []
        self.numels: list[int] = []  # elements of each tensor; 0: not told
        self.left_out = 0

    def add(self, stretch: Names) -> None:
        """Take in `stretch`; gaps that a lost message left are filled with the index as a name."""
        if stretch.version < self.version:
            return
        if stretch.version > self.version:
            self.version = stretch.version
            self.names, self.numels = [], []
        end = min(stretch.first + len(stretch.names), self.capacity)
        self.left_out += max(0, stretch.first + len(stretch.names) - max(end, stretch.first))
        for index in range(len(self.names), min(stretch.first, self.capacity)):
            self.names.append(f"tensor{index}")
            self.numels.append(0)
        for index in range(stretch.first, end):
            offset = index - stretch.first
            name = stretch.names[offset][: wire.MAX_NAME_CHARS]
            numel = stretch.numels[offset] if offset < len(stretch.numels) else 0
            if index < len(self.names):
                self.names[index], self.numels[index] = name, numel
            else:
                self.names.append(name)
                self.numels.append(numel)

    def name(self, index: int) -> str:
        """The name of an entry; `_other` for one that the table does not hold."""
        return self.names[index] if 0 <= index < len(self.names) else wire.OTHER_NAME

    def stretch(self, table: str) -> Names:
        """The whole table as one record."""
        return Names(table, self.version, 0, tuple(self.names), tuple(self.numels))
