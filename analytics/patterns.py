"""The view of collaborations that were mined: what compose asks when it puts a team together."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa


@dataclass(slots=True)
class Patterns:
    """Effects of pairs by domain; clusters are kept for those who look at them, they decide nothing here."""

    pairs: dict[str, dict[tuple[str, str], float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def effect(self, domain: str, first: str, second: str) -> float:
        """How much better (score, -1 to 1) work goes when `second` follows `first`, shrunk by its error; 0: unknown."""
        return self.pairs.get(domain, {}).get((first, second), 0.0)

    def effects(self, domain: str) -> list[float]:
        """Every pair's shrunk effect; 0 where it may be noise."""
        return list(self.pairs.get(domain, {}).values())

    def count(self, domain: str) -> int:
        """How many patterns the domain has."""
        return self.counts.get(domain, 0)

    def apply(self, key: bytes, rows: pa.RecordBatch | None) -> Patterns:
        """Replace a domain's patterns (None: forget them); return this view."""
        domain = key.decode()
        self.pairs.pop(domain, None)
        self.counts.pop(domain, None)
        if rows is None or rows.num_rows == 0:
            return self
        columns = (rows.column(name).to_pylist() for name in ("kind", "members", "effect", "error"))
        self.pairs[domain] = {
            (members[0], members[1]): shrunk(effect, error)
            for kind, members, effect, error in zip(*columns, strict=True)
            if kind == "pair" and len(members) == 2
        }
        self.counts[domain] = rows.num_rows
        return self


def shrunk(effect: float, error: float) -> float:
    """Positive-part James-Stein: an effect within one standard error is taken for noise.

    >>> round(shrunk(0.2, 0.1), 3), shrunk(0.1, 0.2), shrunk(0.0, 0.0)
    (0.15, 0.0, 0.0)
    """
    return effect * (1.0 - (error / effect) ** 2) if abs(effect) > error else 0.0
