"""Crumbs: what a process that died was at, as the next one finds it."""

from __future__ import annotations

from pathlib import Path

from aos.streams.shell.crumbs import DEATHS_MAX, GROW_SLOTS, Crumbs, deadly, suspicious


def test_a_message_is_deadly_after_three_deaths_in_a_row(tmp_path: Path) -> None:
    path = tmp_path / "crumbs"
    for deaths in range(DEATHS_MAX + 1):
        crumbs = {"a": Crumbs(path).of("learn", "a", 0)}
        assert crumbs["a"].suspect == ((7, deaths) if deaths else (-1, 0))
        assert deadly(crumbs) == ({("a", 7)} if deaths == DEATHS_MAX else set())
        assert suspicious(crumbs) == (deaths > 0)
        for offset in (5, 6):
            crumbs["a"].enter(offset)
            crumbs["a"].leave()
        crumbs["a"].enter(7)  # and is not heard of again


def test_deaths_at_different_messages_are_not_added(tmp_path: Path) -> None:
    path = tmp_path / "crumbs"
    for offset in (3, 4, 3, 4, 3):
        Crumbs(path).of("learn", "a", 0).enter(offset)
    assert Crumbs(path).of("learn", "a", 0).suspect == (3, 1)


def test_a_deadly_message_stays_known_while_others_are_done(tmp_path: Path) -> None:
    path = tmp_path / "crumbs"
    for _ in range(DEATHS_MAX):
        Crumbs(path).of("learn", "a", 0).enter(7)
    for _ in range(3):
        crumb = Crumbs(path).of("learn", "a", 0)
        crumb.enter(8)
        crumb.leave()
        assert crumb.suspect == (7, DEATHS_MAX)


def test_inputs_have_crumbs_of_their_own_however_many_there_are(tmp_path: Path) -> None:
    path = tmp_path / "crumbs"
    first = Crumbs(path)
    names = [("learn", f"topic-{n}", n % 7) for n in range(3 * GROW_SLOTS)]
    crumbs = [first.of(*name) for name in names]
    for n, crumb in enumerate(crumbs):
        crumb.enter(n)
    again = Crumbs(path)
    assert [again.of(*name).suspect for name in names] == [(n, 1) for n in range(len(names))]
    nowhere = Crumbs(None)
    for n, name in enumerate(names):
        nowhere.of(*name).enter(n)
    assert not suspicious({"a": nowhere.of(*names[0])})


def test_a_file_of_rubbish_is_no_reason_not_to_start(tmp_path: Path) -> None:
    path = tmp_path / "crumbs"
    path.write_bytes(b"\xff" * 1000)
    crumb = Crumbs(path).of("learn", "a", 0)
    crumb.enter(1)
    assert Crumbs(path).of("learn", "a", 0).suspect == (1, 1)
