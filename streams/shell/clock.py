"""The machine's clock, where no append time of a log will do."""

from __future__ import annotations

import time


def wall() -> int:
    """Microseconds since the epoch; only for deciding when to tick, for local ticks, and for what people read."""
    return time.time_ns() // 1000
