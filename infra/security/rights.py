"""Who may do what on the broker: one pure function from the topology, and from who there is, to every right.

A right that does not stand here nobody has: the broker's default is to refuse. An administrator of a given broker
grants the same; `aos topics acls` prints it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from aos.codecs.errors import SettingsError
from aos.codecs.settings import Settings
from aos.codecs.topics import DEFAULT_TENANT, TOPICS, all_topics, inbox, tenant_topic
from aos.streams.processor import Processor
from aos.streams.topology import PROCESSORS

TOPIC, GROUP = "topic", "group"
READ, WRITE, CREATE, ALTER = "Read", "Write", "Create", "Alter"
DESCRIBE, DESCRIBE_CONFIGS = "Describe", "DescribeConfigs"
LITERAL, PREFIXED = "literal", "prefixed"
NAME = re.compile(
    r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}"
)  # of a tenant or service: it is a part of a topic's name
INBOXES = "aos.inbox."
OF_EACH_PROCESSOR = ("aos.dead-letters", "aos.alerts")  # what no message may stop it from saying
HEARD_BY_EACH = ("aos.processors", "aos.alerts")  # orders to it, and which of its own alerts are open
OF_TENANTS = ("aos.requests", "aos.feedback", "aos.observations")
OF_SERVICES = ("aos.agents", "aos.heartbeats", "aos.outcomes", "aos.calls")


class Right(NamedTuple):
    """`user` may do `operation` on a topic or group; `pattern`: with that name, or with any that begins so."""

    user: str
    resource: str
    name: str
    pattern: str
    operation: str


def processor_user(name: str) -> str:
    """The user of a processor; its consumer group has the same name. A prefix may stand before it."""
    return f"aos.{name}"


def tenant_user(tenant: str) -> str:
    return f"aos.tenant.{tenant}"


def service_user(service: str) -> str:
    """The user of an agent service; its consumer group has the same name."""
    return f"aos.service.{service}"


OPERATOR = "aos.operator"


def users(settings: Settings) -> list[str]:
    """Everybody who may do anything, in the order of the plan."""
    return list(dict.fromkeys(right.user for right in plan(settings)))


def plan(settings: Settings, processors: Iterable[Processor] = PROCESSORS.values()) -> list[Right]:
    """Every right there is, the setting `prefix` before the names of users, topics and groups."""
    for what, names in (("tenants", settings.tenants), ("services", settings.services)):
        for name in names:
            if not NAME.fullmatch(name):
                raise SettingsError("AOS5002", f"{what}: {name!r}", "use letters, digits, '.', '_' and '-'")
    found: list[Right] = []
    for processor in processors:
        found += _of_processor(processor, settings.tenants)
    for tenant in settings.tenants:
        found += _of_tenant(tenant)
    for service in settings.services:
        found += _of_service(service)
    found += _of_operator(settings.tenants)
    prefix = settings.prefix
    return [
        right._replace(user=prefix + right.user, name=prefix + right.name) for right in dict.fromkeys(found)
    ]


def _of_processor(processor: Processor, tenants: Sequence[str]) -> Iterator[Right]:
    """What its row in the topology says, its own group, its states, and what every processor writes."""
    user = processor_user(processor.name)
    states = ("aos.snapshots",) if processor.dump is not None else ()
    journal = (processor.journal,) if processor.journal is not None else ()
    for topic in _each(processor.reads, tenants):
        yield from _may(user, topic, READ, DESCRIBE, DESCRIBE_CONFIGS)
    for topic in (*processor.views, *states, *journal, *HEARD_BY_EACH):
        yield from _may(user, topic, READ, DESCRIBE, DESCRIBE_CONFIGS)
    ticks = (
        processor.reads if processor.tick is not None else ()
    )  # the shell writes them to the fold's own log
    for topic in (*_each(processor.writes, tenants), *ticks, *states, *OF_EACH_PROCESSOR):
        if topic == "aos.inbox":
            for operation in (WRITE, CREATE, DESCRIBE, DESCRIBE_CONFIGS):
                yield Right(user, TOPIC, INBOXES, PREFIXED, operation)
        else:
            yield from _may(user, topic, WRITE, DESCRIBE, DESCRIBE_CONFIGS)
    for topic in processor.counts:
        yield from _may(user, topic, DESCRIBE, DESCRIBE_CONFIGS)
    yield Right(user, GROUP, user, LITERAL, READ)
    for looks_at in (processor.yields_to, processor.rests_on):  # how far that one is on that topic
        if looks_at is not None:
            other, topic = looks_at
            yield Right(user, GROUP, processor_user(other), LITERAL, DESCRIBE)
            yield from _may(user, topic, DESCRIBE)


def _of_tenant(tenant: str) -> Iterator[Right]:
    """Its own input topics and its own results; nothing of anybody else."""
    user = tenant_user(tenant)
    for topic in OF_TENANTS:
        yield from _may(user, tenant_topic(topic, tenant), WRITE, DESCRIBE)
    yield from _may(user, tenant_topic("aos.results", tenant), READ, DESCRIBE)
    yield Right(user, GROUP, user, LITERAL, READ)


def _of_service(service: str) -> Iterator[Right]:
    """Its own inbox; what services say is admitted by its token, not by who says it."""
    user = service_user(service)
    yield from _may(user, inbox(service), READ, DESCRIBE)
    for topic in OF_SERVICES:
        yield from _may(user, topic, WRITE, DESCRIBE)
    yield Right(user, GROUP, user, LITERAL, READ)


def _of_operator(tenants: Sequence[str]) -> Iterator[Right]:
    """The command line: it sees everything, makes and extends topics, writes what outsiders may write, and settings."""
    for operation in (READ, CREATE, ALTER, DESCRIBE, DESCRIBE_CONFIGS):  # to alter is to add partitions
        yield Right(OPERATOR, TOPIC, "aos.", PREFIXED, operation)
    for topic in all_topics(tenants):
        if topic.wants_json or topic.name in ("aos.settings", "aos.processors"):
            yield from _may(OPERATOR, topic.name, WRITE)
    yield Right(OPERATOR, GROUP, "aos.", PREFIXED, DESCRIBE)
    yield Right(
        OPERATOR, GROUP, "aos.service.", PREFIXED, READ
    )  # demo and replay bring services of their own


def _each(names: Iterable[str], tenants: Sequence[str]) -> Iterator[str]:
    """Topics, each tenant's own among them."""
    for name in names:
        yield name
        if name in TOPICS and TOPICS[name].per_tenant:
            yield from (tenant_topic(name, tenant) for tenant in tenants if tenant != DEFAULT_TENANT)


def _may(user: str, topic: str, *operations: str) -> Iterator[Right]:
    for operation in operations:
        yield Right(user, TOPIC, topic, LITERAL, operation)
