"""A log stepped in its shadow: what is said, what is muted, what ends it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from aos.codecs.errors import RecordError
from aos.codecs.rows import from_dicts
from aos.codecs.settings import Settings
from aos.infra.shadow import Stretch, digest, replay
from aos.infra.shadow_steps import Player, Seen, is_promised
from aos.streams.processor import Batch, Law, Output, Processor, Raw, Recall, Step, Views
from aos.streams.shell.codec import WireCodec
from aos.streams.topology import PROCESSORS

TOPIC = "aos.corrections"


def raw(offset: int, at: int, value: bytes | None = None) -> Raw:
    row = {
        "tenant": "t", "request_id": bytes(16), "requested_at": at, "home": 0, "domain": "t", "round": 0,
        "score": 0.5, "given_at": at,
    }  # fmt: skip
    made, headers = WireCodec().encode(TOPIC, from_dicts("correction", [row]))
    return Raw(TOPIC, 0, offset, at, None, made if value is None else value, headers if value is None else {})


def play(law: Law, step: Any, log: Sequence[Raw], mute: int = 0, **more: Any) -> tuple[list[int], Player]:
    """Offsets of the inputs whose outputs were said."""
    said: list[int] = []
    processor = Processor("toy", law, (TOPIC,), ("aos.trails",), lambda p: [], step, **more)
    player = Player(
        processor, 0, [], 0, Seen(Settings(), b"", {}), lambda cause, output: said.append(cause.offset)
    )

    async def read() -> AsyncIterator[Raw]:
        for one in log:
            yield one

    async def recalled(recall: Recall) -> AsyncIterator[Raw]:
        for offset in recall.offsets:
            yield raw(offset, 0)

    asyncio.run(player.play(read(), {TOPIC: mute}, recalled))
    return said, player


def echo(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
    return Step([*state, (batch.offset, now, batch.tick)], [Output("aos.trails", batch.rows)])


def test_what_is_below_the_stretch_makes_the_state_and_is_not_said() -> None:
    said, player = play(Law.FOLD, echo, [raw(0, 5), raw(1, 9), raw(2, 7)], mute=1)
    assert said == [1, 2]
    assert player._state == [(0, 5, False), (1, 9, False), (2, 9, False)], "the clock never goes back"
    assert (player.played.messages, player.played.rows) == (2, 2)


def test_a_journal_or_view_is_called_when_it_was_due_and_a_fold_has_its_ticks_in_its_log() -> None:
    def due(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        return echo(state, batch, now, views, seed)._replace(next_due=7 if now < 7 else None)

    log = [raw(0, 5), raw(1, 6), raw(2, 20)]
    _, player = play(Law.VIEW, due, log)
    assert player._state == [(0, 5, False), (1, 6, False), (-1, 7, True), (2, 20, False)]
    _, player = play(Law.FOLD, due, log)
    assert player._state == [(0, 5, False), (1, 6, False), (2, 20, False)]


def test_what_cannot_be_read_or_is_refused_is_a_dead_letter_as_in_the_shell() -> None:
    def picky(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        if batch.offset == 1:
            raise RecordError("AOS1014", "no")
        return echo(state, batch, now, views, seed)

    said, player = play(Law.FOLD, picky, [raw(0, 5), raw(1, 6), raw(2, 7, b"junk"), raw(3, 8)])
    assert said == [0, 1, 2, 3]
    assert [offset for offset, _, _ in player._state] == [0, 3]
    assert player.played.failed == []


@pytest.mark.parametrize(("law", "goes_on"), [(Law.ROW, True), (Law.FOLD, False)])
def test_a_step_that_fails_is_told_and_ends_what_has_a_state(law: Law, goes_on: bool) -> None:
    def bad(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        return echo(state, batch, now, views, seed) if batch.offset != 1 else Step(1 / 0)

    said, player = play(law, bad, [raw(0, 5), raw(1, 6), raw(2, 7)])
    (failed,) = player.played.failed
    assert (failed["offset"], "ZeroDivisionError" in failed["error"]) == (1, True)
    assert said == ([0, 2] if goes_on else [0])


def test_what_a_step_asks_for_again_is_read_and_its_answer_said() -> None:
    def asking(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        return Step(state, recalls=[Recall(0, (0, 1), batch.rows)] if batch.offset == 2 else [])

    def answer(asked: Recall, found: Sequence[Batch], views: Views) -> list[Output]:
        return [Output("aos.results", asked.rows, one.offset) for one in found]

    said, _ = play(Law.FOLD, asking, [raw(0, 5), raw(1, 6), raw(2, 7)], recall=answer)
    assert said == [2, 2]


def test_equality_is_promised_where_the_law_promises_it() -> None:
    promised = {name for name, one in PROCESSORS.items() if is_promised(one, exact=True)}
    assert promised == {"encode", "admit", "collect", "supervise", "learn", "mine"}
    assert not is_promised(PROCESSORS["supervise"], exact=False)


def test_rows_are_equal_in_every_value_or_they_are_others() -> None:
    row = {"a": 1, "b": 0.1, "c": None}
    assert digest(row) == digest(dict(row))
    for other in ({**row, "b": 0.1 + 2**-56}, {**row, "c": ""}, {**row, "a": 1.0}):
        assert digest(other) != digest(row)


def test_what_cannot_be_played_is_refused_before_anything_is_read() -> None:
    import datetime

    now = datetime.datetime.now(datetime.UTC)
    stretch = Stretch("encode", now - datetime.timedelta(hours=1), now)
    for changed, says in (
        ({"processor": "store"}, "cannot be played"),
        ({"processor": "nobody"}, "cannot be played"),
        ({"end": stretch.begin}, "AOS5002"),
        ({"processor": "supervise"}, "AOS5003"),
    ):
        with pytest.raises(Exception, match=says):
            asyncio.run(replay(Settings(), dataclasses.replace(stretch, **changed), lambda row: None))  # type: ignore[arg-type]
