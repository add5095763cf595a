"""Matching: which agents are eligible for a step, and why the others are not.

Decides by sets only, in this order: pin, excluded, tenant, capability, health. What is learned comes afterwards
(`agents.ranking`). Rows that ask for the same (`Wish`) share one `Eligible`, which holds as long as the fleet's
version does.

Widening: capabilities, tenant, pins and exclusions are never loosened. Suspected agents are taken only when the
healthy ones are fewer than wanted; when no agent has all required capabilities, agents with some of them are named
(`partial`), provided that together they have all, so that compose can make a team.
source: design.md, section 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from aos.agents.fleet import Fleet

FILTERED_MAX = 8  # named in a row; the rest is counted
COVERS_MAX = 62  # capabilities a bit mask can tell; above, only agents with all of them are considered
MEMORY_MAX = 4_096  # wishes remembered for one version of the fleet


class Wish(NamedTuple):
    """What rows have in common that are asked together. `budgeted`: whether they have a budget."""

    tenant: str
    domain: str
    task_kind: str | None
    require: tuple[str, ...]
    pin: tuple[str, ...]
    exclude: tuple[str, ...]
    budgeted: bool


@dataclass(frozen=True, slots=True)
class Eligible:
    """Agents that may do it, by slot: arrays [n]. `filtered` and `reasons` tell of at most 8 of the
    `filtered_count` others."""

    slots: np.ndarray  # int64
    names: tuple[str, ...]
    suspected: np.ndarray  # bool: only if the others are too few
    covers: np.ndarray  # int64: bit i: has the i-th required capability
    partial: bool
    filtered: tuple[str, ...]
    reasons: tuple[str, ...]
    filtered_count: int

    def __len__(self) -> int:
        return len(self.slots)


class Memory:
    """Eligible agents by wish for one version of one fleet; forgetting it changes no answer."""

    def __init__(self) -> None:
        self._fleet: Fleet | None = None
        self._version = -1
        self._found: dict[tuple[Wish, int], Eligible] = {}
        self._texts: dict[str, pa.Array] = {}

    def eligible(self, fleet: Fleet, wish: Wish, wanted: int) -> Eligible:
        """As `eligible`, remembered."""
        self._refresh(fleet)
        found = self._found.get((wish, wanted))
        if found is None:
            found = self._found[wish, wanted] = eligible(fleet, wish, wanted)
        return found

    def texts(self, fleet: Fleet, name: str) -> pa.Array:
        """`agents`, `services` or `cells` of all slots as an Arrow column; taking from it is cheaper than making it."""
        self._refresh(fleet)
        if name not in self._texts:
            self._texts[name] = pa.array(getattr(fleet, name), pa.string())
        return self._texts[name]

    def _refresh(self, fleet: Fleet) -> None:
        if fleet is not self._fleet or fleet.version != self._version or len(self._found) >= MEMORY_MAX:
            self._fleet, self._version = fleet, fleet.version
            self._found, self._texts = {}, {}


def eligible(fleet: Fleet, wish: Wish, wanted: int) -> Eligible:
    """Who may do it. Suspected agents are among them when the healthy ones are fewer than `wanted`, or when a budget
    may make them so."""
    allowed = fleet.known & fleet.allowing(wish.tenant)
    named = _named(fleet, wish.pin) if wish.pin else np.ones(fleet.size, bool)
    barred = _named(fleet, wish.exclude)
    able = fleet.covering(wish.require)
    base = allowed & named & ~barred
    working = base & fleet.alive
    taken, partial = _taken(fleet, working & able, wanted, wish.budgeted), False
    if not taken.any():
        taken = _partial(fleet, working, wish.require)
        partial = bool(taken.any())
    slots = np.flatnonzero(taken)
    reasons = (
        ("health", base & able),
        ("excluded", named & allowed & able & barred),
        ("tenant", named & able & ~barred & fleet.known & ~allowed),
        ("capability", base & ~able),
        ("pin", fleet.known & ~named),
    )
    return Eligible(
        slots,
        tuple(fleet.agents[slots].tolist()),
        fleet.suspected[slots],
        _covers(fleet, wish.require, slots, partial),
        partial,
        *_filtered(fleet, reasons, taken),
        int(fleet.known.sum()) - len(slots),
    )


def fallback(fleet: Fleet, wish: Wish, service: str) -> Eligible:
    """Who answers what nobody is trusted with: living agents of the service and those registered as fallback.

    Tenant, pins and exclusions hold; capabilities do not, they stand in for all of them.
    """
    taken = fleet.known & fleet.alive & fleet.allowing(wish.tenant)
    taken &= fleet.fallback | (fleet.services == service if service else False)
    if wish.pin:
        taken &= _named(fleet, wish.pin)
    taken &= ~_named(fleet, wish.exclude)
    slots = np.flatnonzero(taken)
    count = int(fleet.known.sum()) - len(slots)
    full = np.full(len(slots), _full(len(wish.require)), np.int64)
    names = tuple(fleet.agents[slots].tolist())
    return Eligible(slots, names, np.zeros(len(slots), bool), full, False, (), (), count)


def _full(required: int) -> int:
    """The mask of an agent that has all required capabilities."""
    return (1 << min(required, COVERS_MAX)) - 1


def _named(fleet: Fleet, agents: Sequence[str]) -> np.ndarray:
    found = np.zeros(fleet.size, bool)
    if agents:
        slots = fleet.indices(agents)
        found[slots[slots >= 0]] = True
    return found


def _taken(fleet: Fleet, working: np.ndarray, wanted: int, budgeted: bool) -> np.ndarray:
    healthy: np.ndarray = working & ~fleet.suspected
    return working if budgeted or healthy.sum() < wanted else healthy


def _partial(fleet: Fleet, working: np.ndarray, require: Sequence[str]) -> np.ndarray:
    """Those who have some of what is required, if together they have all; healthy ones if these suffice."""
    nobody = np.zeros(fleet.size, bool)
    if not 2 <= len(require) <= COVERS_MAX:
        return nobody
    having = np.array([fleet.having(name) for name in require])
    for some in (working & ~fleet.suspected, working):
        found = having & some
        if found.any(axis=1).all():
            any_of: np.ndarray = found.any(axis=0)
            return any_of
    return nobody


def _covers(fleet: Fleet, require: Sequence[str], slots: np.ndarray, partial: bool) -> np.ndarray:
    if not partial:
        return np.full(len(slots), _full(len(require)), np.int64)
    covers = np.zeros(len(slots), np.int64)
    for bit, name in enumerate(require):
        covers |= fleet.having(name)[slots].astype(np.int64) << bit
    return covers


def _filtered(
    fleet: Fleet, reasons: Sequence[tuple[str, np.ndarray]], taken: np.ndarray
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those who came nearest first: what an operator asks is why *this* able agent was not considered."""
    agents: list[str] = []
    why: list[str] = []
    for reason, mask in reasons:
        room = FILTERED_MAX - len(agents)
        if room == 0:
            break
        slots = np.flatnonzero(mask & ~taken)[:room]
        agents += fleet.agents[slots].tolist()
        why += [reason] * len(slots)
    return tuple(agents), tuple(why)
