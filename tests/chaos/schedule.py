"""From a seed to a schedule: which fault when, and the seed its injection draws targets and moments from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

WARM_S = (2.0, 4.0)
PAUSE_S = (0.2, 1.5)  # between two faults, once AOS is ready again
KILLS = 20
SINGLE_KILL = 1


@dataclass(frozen=True)
class Slot:
    """One injection: `pause_s` after the one before was healed."""

    number: int
    pause_s: float
    seed: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def schedule(seed: int, numbers: Sequence[int], *, least_kills: int = 0, rounds: int = 1) -> list[Slot]:
    """Every fault `rounds` times in an order of the seed's; fault 1 as often again as `least_kills` asks for.

    The same arguments give the same schedule, on every machine.
    """
    random = Random(f"schedule {seed}")
    wanted = [number for number in numbers for _ in range(rounds)]
    if least_kills and SINGLE_KILL in wanted:
        wanted += [SINGLE_KILL] * max(0, least_kills - len(wanted))
    random.shuffle(wanted)
    slots = []
    for place, number in enumerate(wanted):
        low, high = PAUSE_S if place else WARM_S
        slots.append(Slot(number, round(random.uniform(low, high), 3), random.getrandbits(32)))
    return slots
