"""The one file to read first: which processor reads and writes what.

Each row is a processor as data: its law (what holds whatever is killed), its input topics, its output topics, the
views it looks at. `docs/topology.md` and its diagram are generated from here, ACLs and tests read it.
"""

from __future__ import annotations

from aos.codecs.topics import LANES
from aos.streams import (
    admit,
    allocate,
    collect,
    compose,
    encode,
    learn,
    match,
    mine,
    optimise,
    register,
    store,
    supervise,
)
from aos.streams.processor import Law, Processor
from aos.streams.views import VIEWS

# the edges: validate, fix id, time, tenant and home, gather single messages into batches, re-key
ENCODE = Processor(
    "encode", Law.ROW, edge=True, yields_to=("supervise", "aos.ledger"), views=("aos.settings",),
    reads=("aos.requests",), writes=("aos.tasks", "aos.ledger", "aos.dead-letters"),
    initial=encode.initial, step=encode.step,
)  # fmt: skip
ADMIT = Processor(
    "admit", Law.ROW, edge=True, counts=("aos.tasks",),
    reads=(
        "aos.agents", "aos.heartbeats", "aos.outcomes", "aos.calls", "aos.feedback", "aos.controls", "aos.observations",
    ),
    writes=("aos.fleet", "aos.ledger", "aos.corrections", "aos.sightings", "aos.dead-letters"),
    initial=admit.initial, step=admit.step,
)  # fmt: skip

# the fleet
REGISTER = Processor(
    "register", Law.VIEW, views=("aos.beliefs",), counts=LANES[:1],
    reads=("aos.fleet",), writes=("aos.agent-states",),
    initial=register.initial, step=register.step, dump=register.dump, load=register.load,
)  # fmt: skip
MATCH = Processor(
    "match", Law.ROW, rests_on=("learn", "aos.experiences"),
    views=("aos.agent-states", "aos.beliefs", "aos.strategies", "aos.settings"),
    reads=("aos.tasks",), writes=("aos.matches",),
    initial=match.initial, step=match.step,
)  # fmt: skip
COMPOSE = Processor(
    "compose", Law.ROW, views=("aos.strategies", "aos.patterns", "aos.settings"),
    reads=("aos.matches",), writes=("aos.ledger",),
    initial=compose.initial, step=compose.step,
)  # fmt: skip
SUPERVISE = Processor(
    "supervise", Law.FOLD,
    reads=("aos.ledger",),
    writes=(
        *LANES, "aos.releases", "aos.inbox", "aos.results", "aos.trails", "aos.tasks", "aos.ledger", "aos.alerts",
    ),
    initial=supervise.initial, step=supervise.step, dump=supervise.dump, load=supervise.load,
    recall=supervise.recall, tick=supervise.tick,
)  # fmt: skip
ALLOCATE = Processor(
    "allocate", Law.JOURNAL, journal="aos.decisions", views=("aos.agent-states", "aos.strategies", "aos.settings"),
    reads=("aos.releases", *LANES),  # what is free first: else rows that wait are looked at in vain
    writes=("aos.decisions", "aos.ledger"),
    initial=allocate.initial, step=allocate.step, dump=allocate.dump, load=allocate.load, adopt=allocate.adopt,
)  # fmt: skip

# what is learned
COLLECT = Processor(
    "collect", Law.ROW, patience_s=0.1,
    reads=("aos.trails", "aos.corrections", "aos.sightings"), writes=("aos.experiences",),
    initial=collect.initial, step=collect.step,
)  # fmt: skip
LEARN = Processor(
    "learn", Law.FOLD, patience_s=0.1,
    reads=("aos.experiences",), writes=("aos.beliefs",),
    initial=learn.initial, step=learn.step, dump=learn.dump, load=learn.load, tick=learn.tick, prepare=learn.prepare,
)  # fmt: skip
MINE = Processor(
    "mine", Law.FOLD, patience_s=0.25,
    reads=("aos.experiences",), writes=("aos.patterns",),
    initial=mine.initial, step=mine.step, dump=mine.dump, load=mine.load,
)  # fmt: skip
OPTIMISE = Processor(
    "optimise", Law.VIEW, patience_s=0.25, views=("aos.beliefs", "aos.patterns", "aos.strategies"),
    reads=("aos.experiences",), writes=("aos.strategies",),
    initial=optimise.initial, step=optimise.step, dump=optimise.dump, load=optimise.load,
)  # fmt: skip
STORE = Processor(
    "store", Law.SINK, patience_s=0.2,
    reads=store.READS, writes=(),
    initial=store.initial, step=store.step,
)  # fmt: skip

PROCESSORS: dict[str, Processor] = {
    processor.name: processor
    for processor in (
        ENCODE, ADMIT, REGISTER, MATCH, COMPOSE, SUPERVISE, ALLOCATE, COLLECT, LEARN, MINE, OPTIMISE, STORE,
    )
}  # fmt: skip

# four processes on two cores: the edge and what needs no memory; the life of tasks; what is learned; experience and SQL
GROUPS: dict[str, tuple[str, ...]] = {
    "edge": ("encode", "admit", "register", "match", "compose"),
    "core": ("supervise", "allocate"),
    "learning": ("learn", "mine", "optimise"),
    "keeping": ("collect", "store"),
}

__all__ = ["GROUPS", "PROCESSORS", "VIEWS"]
