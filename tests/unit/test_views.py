"""Every view topic has a view, and the run-time settings are one of them."""

from __future__ import annotations

from typing import Any

from aos.codecs.rows import from_dicts
from aos.codecs.topics import TOPICS
from aos.streams.processor import Views
from aos.streams.views import VIEWS, RuntimeSettings, settings_version
from tests.unit.given_fleet import NOW, state_rows


def _setting(value: str, version: int) -> Any:
    return from_dicts("setting", [{"name": "x", "value": value, "version": version, "changed_at": NOW}])


def test_every_compacted_topic_but_the_snapshots_has_a_view() -> None:
    compacted = {topic.name for topic in TOPICS.values() if topic.compacted}
    assert set(VIEWS) == compacted - {"aos.snapshots"}
    assert all(view.topic == topic for topic, view in VIEWS.items())


def test_a_view_takes_in_messages_and_tombstones() -> None:
    view = VIEWS["aos.agent-states"]
    fleet = view.apply(view.empty(), b"crew/0", state_rows({"a": {}}))
    assert fleet.index("a") == 0
    assert view.apply(fleet, b"crew/0", None).index("a") == -1


def test_every_view_takes_a_tombstone_of_a_key_it_never_saw() -> None:
    for view in VIEWS.values():
        view.apply(view.empty(), b"nobody/0", None)


def test_settings_are_decoded_and_their_version_never_falls() -> None:
    settings = RuntimeSettings()
    versions = [settings.version]
    for value, version in (("0.5", 1), ("[1, 2]", 2)):
        settings.apply(b"x", _setting(value, version))
        versions.append(settings.version)
    assert settings["x"] == [1, 2]
    settings.apply(b"x", None)
    versions.append(settings.version)
    assert "x" not in settings
    settings.apply(b"x", _setting("1", 1))
    versions.append(settings.version)
    assert versions == sorted(versions)
    assert versions[:2] == [0, 1]


def test_a_step_without_run_time_settings_sees_version_0() -> None:
    assert settings_version(Views()) == 0
    settings = RuntimeSettings()
    settings.apply(b"x", _setting("1", 4))
    assert settings_version(Views(views={"aos.settings": settings})) == 4
