"""Who may do what on the broker: every user, topic, group and operation against a table that was written by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import pytest

from aos.codecs.errors import SettingsError
from aos.codecs.settings import Settings
from aos.codecs.topics import all_topics
from aos.infra.security.grants import passwords
from aos.infra.security.rights import Right, plan, users
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


def allowed(rights: Iterable[Right], user: str, resource: str, name: str, operation: str) -> bool:
    """What Kafka's authorizer says: to read or write is to see that it is there."""
    implied = {"Describe": ("Describe", "Read", "Write"), "DescribeConfigs": ("DescribeConfigs",)}
    return any(
        right.user == user
        and right.resource == resource
        and (name.startswith(right.name) if right.pattern == "prefixed" else name == right.name)
        and right.operation in implied.get(operation, (operation,))
        for right in rights
    )


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
        case "Create":
            return user == "operator" or (user == "supervise" and topic.startswith("inbox."))
    return False


def fits(topic: str, names: list[str]) -> bool:
    return any(topic == name or (name.endswith("*") and topic.startswith(name[:-1])) for name in names)


def test_the_table_knows_everybody() -> None:
    assert {f"aos.{name}" for name in READS_AND_WRITES} == set(users(SETTINGS))


def test_everybody_may_what_the_table_says_on_every_topic_and_nothing_else() -> None:
    rights, wrong, count = plan(SETTINGS), [], 0
    names = [topic.name.removeprefix("aos.") for topic in all_topics(SETTINGS.tenants)] + OTHERS
    for user in READS_AND_WRITES:
        for topic in names:
            for operation in OPERATIONS:
                count += 1
                may = allowed(rights, f"aos.{user}", "topic", f"aos.{topic}", operation)
                if may is not expected(user, topic, operation):
                    wrong.append(f"{user} {operation} {topic}: {may}")
    assert wrong == []
    assert count > 5000


def test_everybody_reads_in_a_group_of_its_own_and_in_no_other() -> None:
    rights = plan(SETTINGS)
    for user in READS_AND_WRITES:
        for group in GROUPS:
            for operation in OPERATIONS:
                may = allowed(rights, f"aos.{user}", "group", f"aos.{group}", operation)
                own = group == user and user != "operator"
                plays = user == "operator" and group.startswith("service.")
                reads, sees = own or plays, user == "operator" or LOOKS_AT.get(user, ("", ""))[0] == group
                assert may is {"Read": reads, "Describe": reads or sees}.get(operation, False), (
                    user,
                    group,
                    operation,
                )


def test_nobody_may_anything_outside_of_this_aos() -> None:
    for right in plan(SETTINGS):
        assert right.name.startswith("aos.")
        assert right.resource in ("topic", "group")


def test_with_a_prefix_the_rights_are_on_what_begins_so_alone() -> None:
    rights = plan(dataclasses.replace(SETTINGS, prefix="stage."))
    assert {
        (right.user.startswith("stage.aos."), right.name.startswith("stage.aos.")) for right in rights
    } == {(True, True)}
    assert len(rights) == len(plan(SETTINGS))


def test_a_processor_that_is_not_in_the_topology_has_no_right() -> None:
    fewer = [processor for name, processor in PROCESSORS.items() if name != "learn"]
    assert not [right for right in plan(SETTINGS, fewer) if right.user == "aos.learn"]


@pytest.mark.parametrize("name", ["", "a*", "*", "a b", "../a", "ä", ".a", "a,b", "x" * 101])
@pytest.mark.parametrize("what", ["tenants", "services"])
def test_a_name_that_would_mean_more_than_itself_is_refused(what: str, name: str) -> None:
    given = ("default", name) if what == "tenants" else (name,)
    with pytest.raises(SettingsError) as caught:
        plan(dataclasses.replace(Settings(), **{what: given}))
    assert caught.value.code == "AOS5002"


def test_a_password_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "users"
    first = passwords(folder, ["aos.encode", "aos.match"])
    assert passwords(folder, ["aos.encode", "aos.learn"])["aos.encode"] == first["aos.encode"]
    assert len(set(first.values())) == 2
    assert min(map(len, first.values())) == 64
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())
