"""Operators in the simulated world: they change settings while tasks flow, at once, from old versions, and twice."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from aos.codecs.rows import from_dicts
from aos.streams.live import TOPIC, RuntimeSettings
from aos.streams.processor import Output
from aos.streams.simulated_log import World

VALUES: dict[str, tuple[Any, ...]] = {
    "candidates_max": (1, 2, 16), "quality_min": (0.0, 0.2), "prefetch": (1.0, 3.0), "trial_floor": (0.0, 0.05),
    "lane_age_ms": (10, 20_000), "exploration": (0.1, 4.0), "confidence_min": (0.0, 0.3),
    "waiting_max": (4, 40, 200_000), "quota_burst_s": (0.05, 5.0),
}  # fmt: skip
TENANTS = ("", "acme")
FOR_ALL = ("candidates_max", "prefetch", "lane_age_ms", "waiting_max")


@dataclass
class Operators:
    """A change every `pause_us`; some are made from a version that is not the last, or written twice."""

    pause_us: int = 300_000
    until: int = 200  # messages
    made: int = 0
    seen: RuntimeSettings = field(default_factory=RuntimeSettings)
    _next: int = 0

    def act(self, world: World) -> bool:
        if world.clock < self._next or self.made >= self.until:
            return False
        random = world.random
        name = random.choice(list(VALUES))
        tenant = "" if name in FOR_ALL else random.choice(TENANTS)
        version = self.seen.version + random.choice((1, 1, 1, 0))
        row = {
            "name": name, "tenant": tenant, "value": json.dumps(random.choice((*VALUES[name], None))),
            "version": max(1, version), "change": random.randbytes(16), "changed_at": world.clock,
        }  # fmt: skip
        rows = from_dicts("setting", [row])
        for _ in range(random.choice((1, 1, 2))):
            world.append(Output(TOPIC, rows, 0, f"{row['version']}/{row['change'].hex()}".encode()))
            self.seen.apply(b"", rows)
        self.made += 1
        self._next = world.clock + self.pause_us
        return True

    def alarm(self) -> int | None:
        return self._next if self.made < self.until else None
