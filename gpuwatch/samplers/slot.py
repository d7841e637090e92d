"""A GPU's place in the NVML child's round."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would cost this process a megabyte
    from typing import Any


class Slot:
    """A GPU's place in the round: its devices (itself first, then its MIG devices), or why there are none."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.devices: list[Any] = []
        self.down = ""
        self.known: list[tuple[str, str]] = []  # (label, UUID) of its devices when it last answered
        self.turns = 0
        self.next_turn_ns = 0
        self.next_slow_ns = 0
        self.next_rings_ns = 0

    def let_go(self) -> None:
        """Forgets its devices."""
        for device in self.devices:
            device.close()
        self.devices = []
