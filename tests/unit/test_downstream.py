"""Back-pressure: ages from looks at a log, and an edge that takes nothing in while it is held back."""

from __future__ import annotations

import random
from typing import Any

from aos.streams.shell.downstream import Backlog, Downstream
from aos.streams.shell.options import Options


def test_the_age_is_that_of_the_oldest_undone_message() -> None:
    now = 0.0
    backlog = Backlog(lambda: now)
    assert backlog.look({0: 5, 1: 0}, {0: 5}) == 0
    now = 1.0
    assert backlog.look({0: 7, 1: 3}, {0: 5, 1: 3}) == 0  # there since now, as far as is known
    now = 3.0
    assert backlog.look({0: 9, 1: 3}, {0: 6, 1: 3}) == 2.0
    assert backlog.look({0: 9, 1: 3}, {0: 7, 1: 3}) == 0
    now = 4.0
    assert backlog.look({0: 9, 1: 3}, {0: 8, 1: 3}) == 1.0
    assert backlog.look({0: 9, 1: 3}, {0: 9, 1: 3}) == 0


def test_a_group_that_never_committed_is_behind_from_the_first_message() -> None:
    now = 0.0
    backlog = Backlog(lambda: now)
    assert backlog.look({0: 1}, {}) == 0
    now = 9.0
    assert backlog.look({0: 100}, {}) == 9.0


def test_a_log_made_anew_is_measured_from_there() -> None:
    now = 0.0
    backlog = Backlog(lambda: now)
    backlog.look({0: 100}, {0: 50})
    now = 9.0
    assert backlog.look({0: 2}, {0: 0}) == 0


def test_the_age_is_right_within_a_look_whatever_is_appended_and_done() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        now, appended, done = 0.0, [], 0
        backlog = Backlog(lambda: now)  # noqa: B023 it is called within this turn only
        for _ in range(200):
            now += 0.5
            appended += [now - rng.uniform(0, 0.5) for _ in range(rng.randrange(4))]
            done = rng.randint(done, len(appended))
            age = backlog.look({0: len(appended)}, {0: done})
            true = now - min(appended[done:], default=now)
            assert true - 0.5 <= age <= true


def test_who_is_behind_is_let_go_at_half_of_what_held_it() -> None:
    reader: Any = None
    watched = Downstream(Options("", behind_s=5.0), reader, reader, "supervise", "aos.ledger", 1)
    found = []
    for age in (4.9, 5.1, 4.0, 2.6, 2.4, 4.9):
        watched.judge(age)
        found.append(watched.behind)
    assert found == [False, True, True, True, False, False]


def test_who_is_late_is_so_before_it_is_behind() -> None:
    reader: Any = None
    watched = Downstream(Options("", behind_s=5.0, late_s=1.5), reader, reader, "supervise", "aos.ledger", 1)
    found = []
    for age_s in (1.0, 1.6, 1.0, 0.7, 6.0):
        watched.judge(age_s)
        found.append((watched.late, watched.behind))
    assert found == [(False, False), (True, False), (True, False), (False, False), (True, True)]
