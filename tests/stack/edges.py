"""The edges of the topology (topic → processor → topic), and which of them were crossed."""

from __future__ import annotations

import json
from pathlib import Path

Crossing = tuple[str, str, str]
SQL = "sql"
DEAD = "aos.dead-letters"
SHARE_MIN = 0.9
# where the inputs of a processor do not all lead to all its outputs: what each may become
ONLY: dict[str, dict[str, tuple[str, ...]]] = {
    "admit": {
        "aos.agents": ("aos.fleet", DEAD),
        "aos.heartbeats": ("aos.fleet", DEAD),
        "aos.outcomes": ("aos.ledger", DEAD),
        "aos.calls": ("aos.ledger", DEAD),
        "aos.feedback": ("aos.corrections", DEAD),
        "aos.controls": ("aos.ledger", "aos.fleet", DEAD),
        "aos.observations": ("aos.sightings", DEAD),
    }
}


def may(processor: str, source: str, target: str) -> bool:
    """Whether this input can become this output, as far as that is not simply what the processor reads and writes."""
    only = ONLY.get(processor)
    return only is None or target in only.get(source, ())


def all_edges() -> set[Crossing]:
    """Every edge of the topology; a sink writes SQL."""
    from aos.streams.topology import PROCESSORS

    return {
        (source, name, target)
        for name, processor in PROCESSORS.items()
        for source in processor.reads
        for target in processor.writes or (SQL,)
        if may(name, source, target)
    }


def crossed(path: Path) -> set[Crossing]:
    """What the workers of a run wrote down."""
    if not path.exists():
        return set()
    return {tuple(json.loads(line)) for line in path.read_text().splitlines()}


def told(edges: set[Crossing]) -> str:
    """For a reader."""
    return ", ".join(" → ".join(one) for one in sorted(edges)) or "none"
