"""Changing settings: what is typed, what a change is made of, what going back means."""

from __future__ import annotations

from typing import Any

import pytest

from aos.codecs.errors import SettingsError
from aos.codecs.settings import Settings
from aos.infra import changes
from aos.infra.changes import TRIES_MAX, History, Wanted, change, going_back, parsed, setting
from tests.unit.given_settings import message

SETTINGS = Settings(tenants=("default", "acme"), partitions=3)


def history_of(*rows: tuple[str, str, Any]) -> History:
    history = History()
    for number, row in enumerate(rows, 1):
        history.add(b"", message(number, row, change=number))
    return history


class Log:
    """`aos.settings` in memory; `rivals` get in between a read and an append."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rivals: int = 0) -> None:
        self.messages: list[Any] = []
        self.rivals = rivals
        monkeypatch.setattr(changes, "read", self.read)
        monkeypatch.setattr(changes, "_append", self.append)

    async def read(self, settings: Settings) -> History:
        history = History()
        for rows in self.messages:
            history.add(b"", rows)
        return history

    async def append(self, settings: Settings, rows: Any) -> None:
        if self.rivals:
            self.rivals -= 1
            version = rows.column("version")[0].as_py()
            self.messages.append(message(version, ("prefetch", "", 1 + version / 8), change=version))
        self.messages += [rows, rows]  # twice, as a producer may


def test_what_is_typed_is_read_as_the_settings_type() -> None:
    assert parsed(SETTINGS, "candidates_max", "4") == Wanted("candidates_max", "", 4)
    assert parsed(SETTINGS, "quality_min", "0.5", "acme") == Wanted("quality_min", "acme", 0.5)
    assert parsed(SETTINGS, "tenant_weights", '{"acme": 2}') == Wanted("tenant_weights", "", {"acme": 2.0})
    assert parsed(SETTINGS, "tenant_weights", "2", "acme") == Wanted("tenant_weights", "acme", 2.0)
    assert parsed(SETTINGS, "quota_in_flight", "3", "acme") == Wanted("quota_in_flight", "acme", 3)
    every = Wanted("quota_requests_per_s", "", {"*": 5.0})
    assert parsed(SETTINGS, "quota_requests_per_s", '{"*": 5}') == every
    assert parsed(SETTINGS, "fallback_service", "desk") == Wanted("fallback_service", "", "desk")
    assert parsed(SETTINGS, "quality_min", None) == Wanted("quality_min", "", None)


@pytest.mark.parametrize(
    ("name", "text", "tenant", "code", "says"),
    [
        ("quality_mim", "0.5", "", "AOS5001", "did you mean quality_min?"),
        ("quality_min", "high", "", "AOS5002", ""),
        ("quality_min", "1.5", "", "AOS5002", ""),
        ("candidates_max", "2.5", "", "AOS5002", ""),
        ("tenant_weights", "many", "acme", "AOS5002", ""),
        ("quota_in_flight", "2", "acme", "AOS5003", ""),  # fewer than partitions: some could never come in
        ("quota_in_flight", '{"acme": 2}', "", "AOS5003", ""),
        ("quota_in_flight", "3.5", "acme", "AOS5002", ""),
        ("quota_in_flight", '{"acme": 3.5}', "", "AOS5002", ""),
        ("quota_requests_per_s", '{"acne": 3}', "", "AOS5003", ""),  # would be no limit at all
        ("quality_min", "0.5", "acne", "AOS5002", "did you mean acme?"),
        ("attempts_max", "3", "", "AOS5006", "aos config list"),
        ("attempts_max", "three", "", "AOS5006", ""),
        ("prefetch", "2", "acme", "AOS5006", "leave the tenant out"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(
    name: str, text: str, tenant: str, code: str, says: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        parsed(SETTINGS, name, text, tenant)
    assert caught.value.code == code
    assert says in caught.value.hint


async def test_a_change_is_the_next_version_and_none_when_it_is_so_already(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Log(monkeypatch)
    wanted = Wanted("quality_min", "acme", 0.5)
    assert await change(SETTINGS, setting(wanted), "me", "why") == (1, [wanted])
    assert await change(SETTINGS, setting(wanted), "me") == (1, [])
    history = await log.read(SETTINGS)
    (row,) = history.changes()
    expected = {"version": 1, "name": "quality_min", "tenant": "acme", "value": 0.5, "changed_by": "me"}
    assert {name: row[name] for name in expected} == expected
    assert row["reason"] == "why"


async def test_two_people_who_change_at_once_both_get_their_say_once(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch, rivals=3)
    version, _ = await change(SETTINGS, setting(Wanted("quality_min", "", 0.5)))
    history = await log.read(SETTINGS)
    assert version == history.version == 4
    assert [row["name"] for row in history.changes()] == ["prefetch"] * 3 + ["quality_min"]
    assert history.state.values == {("prefetch", ""): 1.375, ("quality_min", ""): 0.5}


async def test_a_change_that_is_always_second_is_given_up_and_nothing_of_it_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Log(monkeypatch, rivals=10**6)
    with pytest.raises(SettingsError) as caught:
        await change(SETTINGS, setting(Wanted("quality_min", "", 0.5)))
    assert caught.value.code == "AOS5008"
    history = await log.read(SETTINGS)
    assert {row["name"] for row in history.changes()} == {"prefetch"}
    assert history.version == TRIES_MAX


async def test_going_back_is_one_new_version_with_all_that_was_in_force_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Log(monkeypatch)
    for name, tenant, value in (
        ("quality_min", "", 0.1), ("prefetch", "", 2.0), ("quality_min", "", 0.2), ("quality_min", "acme", 0.3),
    ):  # fmt: skip
        await change(SETTINGS, setting(Wanted(name, tenant, value)))
    version, wanted = await change(SETTINGS, going_back(2))
    assert version == 5
    assert wanted == [Wanted("quality_min", "", 0.1), Wanted("quality_min", "acme", None)]
    history = await log.read(SETTINGS)
    assert history.state.values == history.at(2).values == {("quality_min", ""): 0.1, ("prefetch", ""): 2.0}
    assert len(history.changes("quality_min")) == 5
    assert (await change(SETTINGS, going_back(0)))[0] == 6
    assert (await log.read(SETTINGS)).state.values == {}
    with pytest.raises(SettingsError) as caught:
        await change(SETTINGS, going_back(7))
    assert caught.value.code == "AOS5007"


def test_a_diff_has_what_differs_with_both_values() -> None:
    history = history_of(("quality_min", "", 0.1), ("prefetch", "", 2.0), ("quality_min", "", None))
    assert history.diff(0, 2) == [(("prefetch", ""), None, 2.0), (("quality_min", ""), None, 0.1)]
    assert history.diff(2, 3) == [(("quality_min", ""), 0.1, None)]
    assert history.diff(1, 1) == []
    with pytest.raises(SettingsError, match="AOS5007"):
        history.diff(0, 4)


def test_the_history_tells_what_this_release_does_not_accept() -> None:
    history = history_of(("from_the_future", "", 1), ("quality_min", "", 0.1))
    refused, good = history.changes()
    assert "AOS5001" in refused["refused"]
    assert good["refused"] is None
