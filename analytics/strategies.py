"""Policies in force: the view that match, compose and allocate ask, and the guard no proposal gets round.

A policy is a handful of numbers a learning domain. `guard` names every bound that a proposal breaks; whoever
publishes one must call it, and the view refuses rows that break a bound, so that a wrong row does no harm.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

EVERYWHERE = "*"
WEIGHTS = ("weight_success", "weight_latency", "weight_stability", "weight_resource")
BOUNDS: dict[str, tuple[float, float]] = {
    "exploration": (0.25, 2.0),
    "floor": (0.0, 0.05),
    "weight_success": (0.3, 0.7),  # success always weighs, and never drowns the rest
    "weight_latency": (0.05, 0.4),
    "weight_stability": (0.05, 0.4),
    "weight_resource": (0.05, 0.4),
    "pair_bonus": (0.0, 1.0),
}
ROUNDING = 1e-5  # the rows hold 32-bit floats


@dataclass(frozen=True, slots=True)
class Strategy:
    """One policy. `exploration` is a factor on the posterior's deviation, `floor` the least chance of an agent on
    trial, the weights (sum 1) are shares of the utility, `pair_bonus` a factor on a pattern's effect in a team."""

    exploration: float = 0.3
    floor: float = 0.01
    weight_success: float = 0.4
    weight_latency: float = 0.2
    weight_stability: float = 0.2
    weight_resource: float = 0.2
    pair_bonus: float = 0.5
    version: int = 0


DEFAULT = Strategy()


def guard(strategy: Strategy) -> list[str]:
    """Every bound the policy breaks, in words; empty when it may be applied."""
    broken = [
        f"{name} is {value:.4g}, from {low:g} to {high:g}"
        for name, (low, high) in BOUNDS.items()
        if not low - ROUNDING <= (value := getattr(strategy, name)) <= high + ROUNDING
    ]
    total = sum(getattr(strategy, name) for name in WEIGHTS)
    if not abs(total - 1.0) <= 4 * ROUNDING:
        broken.append(f"the weights sum to {total:.4g}, not to 1")
    return broken


@dataclass(slots=True)
class Strategies:
    """The policies in force by name (a learning domain, or * for all)."""

    active: dict[str, Strategy] = field(default_factory=dict)

    def of(self, domain: str) -> Strategy:
        """The domain's own policy, else that for all, else the built-in one."""
        return self.active.get(domain) or self.active.get(EVERYWHERE) or DEFAULT

    def own(self, domain: str) -> Strategy | None:
        """The policy published for just this domain."""
        return self.active.get(domain)

    def apply(self, key: bytes, rows: pa.RecordBatch | None) -> Strategies:
        """Replace the policy of a name (None, or no active row: forget it); return this view."""
        name = key.decode()
        values = [] if rows is None else rows.to_pylist()
        found = [strategy_of(row) for row in values if row["status"] == "active"]
        admitted = [strategy for strategy in found if not guard(strategy)]
        if admitted:
            self.active[name] = max(admitted, key=lambda strategy: strategy.version)
        elif not found:
            self.active.pop(name, None)
        return self


def strategy_of(row: dict[str, Any]) -> Strategy:
    """The policy in a row of `aos.strategies`."""
    return Strategy(**{name: row[name] for name in asdict(DEFAULT)})
