"""Who may do what on the broker, written by hand: what the plan and the real broker are compared with."""

from __future__ import annotations

from aos.codecs.settings import Settings
from aos.streams.topology import PROCESSORS

SETTINGS = Settings(tenants=("default", "acme", "acme.eu"), services=("shout", "echo"))
OPERATIONS = ("Read", "Write", "Create", "Delete", "Alter", "Describe", "DescribeConfigs", "AlterConfigs")

# what each may read and write, without "aos."; * stands for every name that begins so. Written by hand, from design.md
# and docs/topology.md, not from the code: a right that comes or goes has to come or go here too.
EVERYBODY_INSIDE = ("processors alerts", "dead-letters alerts")
READS_AND_WRITES = {
    "encode": ("requests requests.acme requests.acme.eu settings", "tasks ledger"),
    "admit": (
        "agents heartbeats outcomes calls feedback feedback.acme feedback.acme.eu controls "
        "observations observations.acme observations.acme.eu",
        "fleet ledger corrections sightings",
    ),
    "register": ("fleet beliefs snapshots", "agent-states snapshots"),
    "match": ("tasks agent-states beliefs strategies settings", "matches"),
    "compose": ("matches strategies patterns settings", "ledger"),
    "supervise": (
        "ledger snapshots",
        "ready.p0 ready.p1 ready.p2 ready.p3 releases inbox.* results results.acme results.acme.eu trails tasks ledger "
        "snapshots",
    ),
    "allocate": (
        "ready.p0 ready.p1 ready.p2 ready.p3 releases decisions agent-states strategies settings snapshots",
        "decisions ledger snapshots",
    ),
    "collect": ("trails corrections sightings", "experiences"),
    "learn": ("experiences snapshots", "beliefs experiences snapshots"),
    "mine": ("experiences snapshots", "patterns snapshots"),
    "optimise": ("experiences beliefs patterns strategies snapshots", "strategies snapshots"),
    "store": (
        "ledger decisions experiences agent-states beliefs patterns strategies dead-letters alerts settings",
        "",
    ),
    "tenant.default": ("results", "requests feedback observations"),
    "tenant.acme": ("results.acme", "requests.acme feedback.acme observations.acme"),
    "tenant.acme.eu": ("results.acme.eu", "requests.acme.eu feedback.acme.eu observations.acme.eu"),
    "service.shout": ("inbox.shout", "agents heartbeats outcomes calls"),
    "service.echo": ("inbox.echo", "agents heartbeats outcomes calls"),
    "operator": (
        "*",
        "requests requests.acme requests.acme.eu feedback feedback.acme feedback.acme.eu observations "
        "observations.acme observations.acme.eu agents heartbeats outcomes calls controls processors settings",
    ),
}
COUNTS = {"admit": "tasks", "register": "ready.p0"}  # topics whose partitions they count
LOOKS_AT = {
    "encode": ("supervise", "ledger"),
    "match": ("learn", "experiences"),
}  # group and topic of a later one
OTHERS = [
    "inbox.shout",
    "inbox.echo",
    "inbox.shout.more",
    "requests.nobody",
    "requestsacme",
    "resultsx",
    "secret",
]
GROUPS = [*READS_AND_WRITES, "tenant.acme.x", "service.shout.more"]


def expected(user: str, topic: str, operation: str) -> bool:
    reads, writes = (text.split() for text in READS_AND_WRITES[user])
    if user in PROCESSORS:
        reads, writes = reads + EVERYBODY_INSIDE[0].split(), writes + EVERYBODY_INSIDE[1].split()
    may_read, may_write = fits(topic, reads), fits(topic, writes)
    match operation:
        case "Read":
            return may_read
        case "Write":
            return may_write
        case "Describe":
            seen = (LOOKS_AT.get(user, ("", ""))[1], COUNTS.get(user))
            return may_read or may_write or topic in seen
        case "DescribeConfigs":  # what a message may weigh; outsiders need not know
            counted = COUNTS.get(user) == topic
            return (may_read or may_write or counted) and (user in PROCESSORS or user == "operator")
        case "Alter":  # add partitions
            return user == "operator"
        case "Create":
            return user == "operator" or (user == "supervise" and topic.startswith("inbox."))
    return False


def fits(topic: str, names: list[str]) -> bool:
    return any(topic == name or (name.endswith("*") and topic.startswith(name[:-1])) for name in names)


def expected_on_group(user: str, group: str, operation: str) -> bool:
    own = group == user and user != "operator"
    plays = user == "operator" and group.startswith("service.")
    reads, sees = own or plays, user == "operator" or LOOKS_AT.get(user, ("", ""))[0] == group
    return {"Read": reads, "Describe": reads or sees}.get(operation, False)
