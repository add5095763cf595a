"""docs/topology.md out of the topology: the table, the diagram, and how many messages one batch causes.

`python -m aos.streams.describe` rewrites it; a test compares.
"""

from __future__ import annotations

from pathlib import Path

from aos.codecs.topics import LANES
from aos.streams.processor import Processor
from aos.streams.topology import GROUPS, PROCESSORS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "topology.md"
HOPS_MAX = 20  # messages one batch of one-step requests may cause (design budget)

# The way of one batch of one-step requests: (writer, topic), in order. Views are coalesced, so they cost a rate and
# not a hop; dead letters and alerts do not happen on the way.
WAY: tuple[tuple[str, str], ...] = (
    ("producers", "aos.requests"),
    ("encode", "aos.tasks"),
    ("encode", "aos.ledger"),
    ("match", "aos.matches"),
    ("compose", "aos.ledger"),
    ("supervise", "aos.ready.p2"),
    ("allocate", "aos.decisions"),
    ("allocate", "aos.ledger"),
    ("supervise", "aos.inbox"),
    ("agents", "aos.outcomes"),
    ("admit", "aos.ledger"),
    ("supervise", "aos.releases"),
    ("supervise", "aos.results"),
    ("supervise", "aos.trails"),
    ("collect", "aos.experiences"),
)


def page() -> str:
    """The whole page."""
    lines = [
        "# Topology",
        "",
        "<!-- made by `python -m aos.streams.describe` from streams/topology.py; do not edit -->",
        "",
    ]
    lines += ["| processor | law | worker | reads | writes | looks at |", "|---|---|---|---|---|---|"]
    lines += [_row(processor) for processor in PROCESSORS.values()]
    lines += [
        "",
        "Laws: what holds whatever is killed (ARCHITECTURE.md). Topics of tenants and inboxes of services stand",
    ]
    lines += ["under their base name. `aos.ready.p0` … `p3` are the four lanes.", "", *_diagram(), ""]
    lines += ["## What one batch costs", ""]
    lines += [
        f"A batch of one-step requests causes {len(WAY)} messages (at most {HOPS_MAX}), whatever its rows. Counted is",
        "what is written and made durable; how many processors read a message is not (ARCHITECTURE.md, the budget).",
        "",
    ]
    lines += [f"{number}. {writer} → `{topic}`" for number, (writer, topic) in enumerate(WAY, 1)]
    return "\n".join(lines) + "\n"


def _row(processor: Processor) -> str:
    worker = next(name for name, group in GROUPS.items() if processor.name in group)
    cells = [processor.name, processor.law, worker]
    cells += [_topics(processor.reads), _topics(processor.writes), _topics(processor.views)]
    return "| " + " | ".join(cells) + " |"


def _topics(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in _lanes_as_one(names)) or "–"


def _lanes_as_one(names: tuple[str, ...]) -> list[str]:
    """The four lanes as one name."""
    found = [name for name in names if name not in LANES]
    return ["aos.ready.p0…p3", *found] if set(LANES) & set(names) else found


def _diagram() -> list[str]:
    lines = ["```mermaid", "flowchart LR"]
    for processor in PROCESSORS.values():
        lines.append(f"  {processor.name}([{processor.name}])")
        lines += [f"  {_node(name)} --> {processor.name}" for name in _lanes_as_one(processor.reads)]
        lines += [f"  {processor.name} --> {_node(name)}" for name in _lanes_as_one(processor.writes)]
        lines += [f"  {_node(name)} -.-> {processor.name}" for name in processor.views]
    return [*lines, "  store --> sql[(TimescaleDB)]", "```"]


def _node(name: str) -> str:
    short = name.removeprefix("aos.")
    id = short.replace("-", "_").replace(".", "_").replace("…", "_")
    return f"t_{id}[/{short}/]"


if __name__ == "__main__":
    PAGE.write_text(page())
