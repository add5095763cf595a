"""All topics: name, record, who writes, how long it is kept. Names are permanent; a prefix may stand before them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from aos.codecs.fields import Record
from aos.codecs.schemas import RECORDS

LANES = ("aos.ready.p0", "aos.ready.p1", "aos.ready.p2", "aos.ready.p3")
DEFAULT_TENANT = "default"
EDGE_BYTES_MAX = 1024 * 1024
INNER_BYTES_MAX = 8 * 1024 * 1024

_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic. `spread`: it has as many partitions as the setting `partitions` says, else one.

    `edge` topics are written or read by outsiders; `per_tenant` ones exist once for each tenant
    (``name.<tenant>``, the plain name is the default tenant's); `bytes_max` bounds one message. `reserved`: no
    processor of this release writes it; what will. `fixed`: its partitions are never added to.
    """

    name: str
    record: str
    doc: str
    spread: bool = True
    edge: bool = False
    per_tenant: bool = False
    compacted: bool = False
    retention_ms: int = 24 * _HOUR_MS
    bytes_max: int = INNER_BYTES_MAX
    reserved: str = ""
    fixed: bool = False

    @property
    def schema(self) -> Record:
        return RECORDS[self.record]

    @property
    def wants_json(self) -> bool:
        """Whether a message may also be one JSON object: the topics that outsiders write."""
        return self.edge and base_of(self.name) not in ("aos.results", "aos.alerts")


def _edge(name: str, record: str, doc: str, per_tenant: bool = False, spread: bool = True) -> Topic:
    return Topic(name, record, doc, spread=spread, edge=True, per_tenant=per_tenant, bytes_max=EDGE_BYTES_MAX)


def _view(name: str, record: str, doc: str) -> Topic:
    return Topic(name, record, doc, spread=False, compacted=True)


TOPICS: dict[str, Topic] = {
    topic.name: topic
    for topic in (
        _edge("aos.requests", "request", "Requests for work", per_tenant=True),
        _edge("aos.results", "result", "How each request ended", per_tenant=True),
        _edge("aos.agents", "registration", "Agents that services offer"),
        _edge("aos.heartbeats", "heartbeat", "Replicas say that they live"),
        _edge("aos.outcomes", "outcome", "What agents answer"),
        _edge(
            "aos.calls", "call", "What agents at work ask for: child requests, changes of a shared context"
        ),
        _edge("aos.feedback", "feedback", "Callers' verdicts", per_tenant=True),
        _edge(
            "aos.controls", "control", "Orders: cancel, redrive, pause, drain, resume, approve", spread=False
        ),
        _edge("aos.observations", "observation", "Events of foreign logs", per_tenant=True),
        Topic("aos.tasks", "task", "Steps that need agents"),
        Topic("aos.matches", "match", "Steps with ranked candidates"),
        Topic("aos.ledger", "entry", "The life of every task, in order"),
        *(Topic(lane, "ready", f"Attempts of priority {lane[-1]} that may start") for lane in LANES),
        Topic("aos.releases", "release", "Slots that are free again"),
        Topic("aos.decisions", "decision", "Why each attempt went where it went; allocate's journal"),
        Topic("aos.trails", "trail", "Finished attempts and requests"),
        Topic("aos.fleet", "fleet-entry", "What the registry is told", spread=False),
        Topic("aos.corrections", "correction", "Callers' verdicts, validated"),
        Topic("aos.sightings", "sighting", "Foreign events, validated"),
        Topic(
            "aos.experiences",
            "experience",
            "What outcomes teach; a partition a learning domain",
            fixed=True,  # a domain's versions are offsets in its partition: elsewhere it would begin anew
        ),
        _view("aos.agent-states", "agent-state", "The fleet as it is"),
        _view("aos.beliefs", "belief", "What is believed of agents"),
        _view("aos.patterns", "pattern", "Collaborations that were mined"),
        _view("aos.strategies", "strategy", "Policies in force"),
        _view(
            "aos.settings", "setting", "Settings changed at run time, every version; `aos config` writes it"
        ),
        Topic(
            "aos.processors",
            "processor-order",
            "Orders to processors: pause, drain, resume; every worker reads it",
            spread=False,
            edge=True,
            compacted=True,
            bytes_max=EDGE_BYTES_MAX,
        ),
        Topic("aos.snapshots", "snapshot-chunk", "States of processors", spread=False, compacted=True),
        Topic(
            "aos.alerts",
            "alert",
            "What an operator should know, opened and cleared; kept in SQL",
            spread=False,
            edge=True,
        ),
        Topic("aos.dead-letters", "dead-letter", "Bytes that never became a request", spread=False),
    )
}

INBOX = Topic("aos.inbox", "assignment", "Work for one service's agents", edge=True)


def inbox(service: str) -> str:
    """Name of a service's inbox topic."""
    return f"aos.inbox.{service}"


def base_of(name: str) -> str:
    """The topic in `TOPICS` that a tenant's topic is an instance of (``aos.requests.acme`` -> ``aos.requests``)."""
    if name.startswith("aos.inbox."):
        return "aos.inbox"
    for topic in TOPICS.values():
        if topic.per_tenant and name.startswith(topic.name + "."):
            return topic.name
    return name


def record_of(name: str) -> Record:
    """The record that travels on a topic (tenants' and inbox topics too)."""
    base = base_of(name)
    return INBOX.schema if base == "aos.inbox" else TOPICS[base].schema


def tenant_topic(name: str, tenant: str) -> str:
    """A tenant's instance of an edge topic."""
    return name if tenant == DEFAULT_TENANT else f"{name}.{tenant}"


def tenant_of(name: str, tenants: Iterable[str]) -> str | None:
    """Whose topic it is; None when the topic belongs to no known tenant."""
    base = base_of(name)
    if name == base:
        return DEFAULT_TENANT
    tenant = name[len(base) + 1 :]
    return tenant if tenant in set(tenants) else None


# who decides on a partition by the number of partitions of the first, writes to that partition of all the others
SHARED = (
    ("aos.tasks", "aos.ledger", "aos.matches", "aos.trails", "aos.results"),  # the home of a request
    (LANES[0], *LANES[1:], "aos.releases", "aos.decisions"),  # the partition of a cell
)


def shared_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """The number of partitions by topic, as who decides on one must see it: of the topics that share one the least, so
    that partitions added to some of them alone change nothing."""
    found = dict(counts)
    for first, *others in SHARED:
        if first in counts:
            found[first] = min(count for name, count in counts.items() if base_of(name) in (first, *others))
    return found


def all_topics(tenants: Iterable[str]) -> list[Topic]:
    """Every topic to create for these tenants (inboxes come with their services)."""
    topics = []
    for topic in TOPICS.values():
        topics.append(topic)
        if topic.per_tenant:
            others = [tenant for tenant in tenants if tenant != DEFAULT_TENANT]
            topics += [replace(topic, name=tenant_topic(topic.name, tenant)) for tenant in others]
    return topics
