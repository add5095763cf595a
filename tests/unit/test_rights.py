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
from tests.unit.given_rights import (
    GROUPS,
    OPERATIONS,
    OTHERS,
    READS_AND_WRITES,
    SETTINGS,
    expected,
    expected_on_group,
)


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
                assert may is expected_on_group(user, group, operation), (user, group, operation)


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
