"""How orders and alerts look from outside: which state a processor is in, what is drained, what health says."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from aos.codecs.errors import SettingsError
from aos.codecs.rows import from_dicts
from aos.codecs.settings import Settings
from aos.infra import orders, watch
from aos.infra.orders import DOWN, RUNNING, check, state
from aos.infra.watch import Lag, ended
from aos.streams.orders import Order
from aos.streams.shell.codec import WireCodec

PAUSE, DRAIN = Order("learn", "pause"), Order("encode", "drain")


@pytest.mark.parametrize(
    ("order", "members", "marks", "is_"),
    [
        (None, 0, [], DOWN),
        (PAUSE, 0, [PAUSE.mark], DOWN),
        (None, 1, ["", PAUSE.mark], RUNNING),
        (Order("learn", "resume"), 1, [PAUSE.mark], RUNNING),
        (PAUSE, 1, [PAUSE.mark, ""], "pausing"),
        (PAUSE, 1, [Order("learn", "pause", reason="an older one").mark], "pausing"),
        (PAUSE, 1, [PAUSE.mark, PAUSE.mark], "paused"),
        (PAUSE, 1, [], "paused"),
        (DRAIN, 1, [""], "pausing"),
        (DRAIN, 1, [DRAIN.mark], "draining"),
    ],
)
def test_a_processor_stands_once_every_commit_says_this_very_order(
    order: Order | None, members: int, marks: list[str], is_: str
) -> None:
    assert state(order, members, marks) == is_


def test_drained_is_what_has_let_all_of_it_end() -> None:
    def known(store: int) -> list[Lag]:
        return [Lag("encode", "draining", 1, 9, 1.0), Lag("store", RUNNING, 1, store, None)]

    pausing = [Lag("encode", "pausing", 1, 0, None)]
    assert ended(pausing, 0) == pausing, "it may have something in the air"
    assert [lag.state for lag in ended(known(0), 1)] == ["draining", RUNNING]
    assert [lag.state for lag in ended(known(1), 0)] == ["draining", RUNNING], (
        "SQL does not know all of it yet"
    )
    assert [lag.state for lag in ended(known(0), 0)] == ["drained", RUNNING]


def test_an_order_that_nobody_would_hear_is_refused_before_it_is_written() -> None:
    for processor, action, says in (
        ("lern", "pause", "choose from"),
        ("learn", "drain", "pause any other"),
        ("learn", "halt", "pause any other"),
    ):
        with pytest.raises(SettingsError, match="AOS5002") as refused:
            check(processor, action)
        assert says in refused.value.hint
    check("encode", "drain")


def log(monkeypatch: pytest.MonkeyPatch, module: Any, messages: list[tuple[bytes | None, Any]]) -> None:
    """A topic with these messages, JSON or bytes as they are."""
    found = [
        SimpleNamespace(offset=n, key=key, value=value, headers=[]) for n, (key, value) in enumerate(messages)
    ]

    async def whole(settings: Settings, topic: str) -> list[Any]:
        return found

    monkeypatch.setattr(module, "whole", whole)


def test_what_is_no_order_is_told_with_its_place_and_the_others_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = [
        (b"learn", json.dumps({"processor": "learn", "action": "pause"}).encode()),
        (b"nobody", json.dumps({"processor": "nobody", "action": "pause"}).encode()),
        (b"match", json.dumps({"processor": "mine", "action": "pause"}).encode()),
        (b"mine", b"{"),
    ]
    log(monkeypatch, orders, said)
    heard = asyncio.run(orders.read(Settings()))
    assert list(heard.orders.last) == ["learn"]
    assert [one["offset"] for one in heard.refused] == [1, 2, 3]
    assert [one["message"][:7] for one in heard.refused] == ["AOS1014", "AOS1014", "AOS1007"]


def test_an_alert_is_open_from_its_last_opened_to_its_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    def alert(name: str, kind: str) -> tuple[None, bytes]:
        row = {
            "alert": name, "kind": kind, "source": "admit", "subject": "x", "message": "m", "evidence": "{}",
            "seen_at": 1,
        }  # fmt: skip
        return None, WireCodec().encode("aos.alerts", from_dicts("alert", [row]))[0]

    log(monkeypatch, watch, [alert("a", "opened"), alert("b", "opened"), alert("a", "cleared"), (None, b"?")])
    assert [one["alert"] for one in asyncio.run(watch.open_alerts(Settings()))] == ["b"]
