"""Lines that repeat themselves: each is there, none floods the log, and memory is bounded."""

from __future__ import annotations

import logging

from aos.streams.shell.seldom import AGAIN_S, TEXTS_MAX, Seldom


def record(text: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("aiokafka", logging.ERROR, "", 1, text, args, None)


def test_a_text_comes_once_in_ten_seconds_and_another_at_once() -> None:
    now = [0.0]
    seldom = Seldom(lambda: now[0])
    assert [seldom.filter(record("no node %d", n)) for n in (1, 1, 2, 1)] == [True, False, True, False]
    now[0] = AGAIN_S
    assert seldom.filter(record("no node %d", 1))


def test_it_remembers_a_bounded_number_of_texts() -> None:
    seldom = Seldom(lambda: 0.0)
    assert all(seldom.filter(record("text %d", n)) for n in range(3 * TEXTS_MAX))
    assert len(seldom._said) <= TEXTS_MAX
