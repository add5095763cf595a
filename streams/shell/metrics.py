"""Counters of one processor, read by whoever exports them."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Metrics:
    """All counts since the start; seconds are sums."""

    messages_in: int = 0
    rows_in: int = 0
    bytes_in: int = 0
    messages_out: int = 0
    rows_out: int = 0
    bytes_out: int = 0
    rounds: int = 0
    ticks: int = 0
    muted: int = 0
    dead_letters: int = 0
    rewinds: int = 0
    holds: int = 0
    snapshots: int = 0
    restores: int = 0
    sink_away: int = 0
    step_s: float = 0.0
    deliver_s: float = 0.0

    def as_dict(self) -> dict[str, float]:
        return asdict(self)
