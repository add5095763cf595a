"""Who stands still, and who only has nothing to do."""

from __future__ import annotations

from typing import Any

from aos.streams.shell.watchdog import Fetched, Place, Watchdog


class Loop:
    def __init__(self, moved_at: float) -> None:
        self.moved_at, self.busy = moved_at, False


def test_a_loop_that_gets_work_after_a_long_rest_does_not_stand_still() -> None:
    """It has moved long ago, because there was nothing to do."""
    dog, loop = Watchdog(60.0, list), Loop(0.0)
    assert dog.still_s(loop, 3600.0) == 0
    loop.busy = True
    assert dog.still_s(loop, 3601.0) == 1.0
    assert dog.still_s(loop, 3800.0) == 200.0
    loop.moved_at = 3799.0
    assert dog.still_s(loop, 3800.0) == 1.0


def test_a_loop_that_never_moved_since_it_was_made_stands_still_from_then() -> None:
    dog, loop = Watchdog(60.0, list), Loop(10.0)
    loop.busy = True
    assert dog.still_s(loop, 200.0) == 190.0


class Log:
    """A broker: ends of logs, and what of them can be read."""

    def __init__(self) -> None:
        self.end, self.records = 5, {0, 1, 2, 3}  # at 4 stands a marker of a transaction

    async def bounds(self, tps: Any) -> Any:
        return dict.fromkeys(tps, (0, self.end))

    async def read(self, topic: str, partition: int, start: int, end: int) -> Any:
        for offset in sorted(self.records):
            if start <= offset < end:
                yield offset


async def test_a_lag_is_late_when_the_same_offset_is_waited_for_too_long() -> None:
    place: Place = ("match", "aos.tasks", 0)
    wanted, log = {place: 2}, Log()
    fetched = Fetched(10.0, log, lambda: wanted)  # type: ignore[arg-type]
    assert await fetched.look(0.0) == []
    assert await fetched.look(20.0) == []
    assert await fetched.look(20.1) == [(place, 2)]
    wanted[place] = 3
    assert await fetched.look(30.0) == [], "something came"
    assert await fetched.look(45.0) == []
    wanted.clear()
    assert await fetched.look(50.0) == [], "it wants no more: held, full or resting"
    wanted[place] = 3
    assert await fetched.look(60.0) == []
    assert await fetched.look(80.1) == [(place, 3)]


async def test_a_marker_that_never_comes_is_no_lag() -> None:
    place: Place = ("match", "aos.tasks", 0)
    wanted, log = {place: 4}, Log()
    fetched = Fetched(10.0, log, lambda: wanted)  # type: ignore[arg-type]
    await fetched.look(0.0)
    assert await fetched.look(100.0) == []
    log.records.add(5)
    log.end = 6
    assert await fetched.look(101.0) == [(place, 4)]
