"""What the faults of tenants, upgrades and combinations draw from their seed, and how they tell right from wrong."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import google_crc32c
import pyarrow as pa
import pytest

from aos.codecs.schemas import RECORDS
from aos.streams.dead_letters import DeadLetters
from aos.streams.gather import gather, tenants_of
from aos.streams.processor import Raw
from aos.streams.shell.codec import WireCodec
from aos.streams.shell.snapshots import Snapshots, pack
from tests.chaos import faults_combined, faults_tenants, shelf
from tests.chaos.faults import load_all
from tests.chaos.faults_upgrade import planned
from tests.chaos.journal import ACKNOWLEDGED, Journal
from tests.chaos.shelf import Item, Key, Saved
from tests.fuzz.insides import Log, drive

TENANTS = ("default", "acme", "umbra")
CODEC = WireCodec()
IDS = {"aos.ledger": "a"}


def saved(processor: str, slot: int, offset: int, text: str) -> Saved:
    """A whole snapshot of one text."""
    body, sizes = pack({"words": pa.record_batch({"word": pa.array([text])})})
    manifest = {
        "processor": processor, "partition": 0, "slot": slot, "generation": 3, "offsets": {"aos.ledger": offset},
        "ids": IDS, "now": 5, "due": None, "journal": 0, "parts": [list(size) for size in sizes],
        "size": len(body), "crc32c": google_crc32c.value(body), "format": 1,
    }  # fmt: skip
    return Saved(manifest, (body,))


def log_with(items: list[Item]) -> Log:
    return Log(
        SimpleNamespace(offset=n, key=one.key, value=one.value, headers=list(one.headers.items()))
        for n, one in enumerate(items)
    )


def restored(items: list[Item], words: list[str]) -> str | None:
    """The text of the state a worker would begin with; it refuses other columns, as a runner does."""

    def refused(found: Any) -> str | None:
        return None if found.batches()["words"].schema.names == words else "other columns"

    log = log_with(items)
    found = drive(Snapshots(CODEC, log, log).load("learn", 0, IDS, refused))  # type: ignore[arg-type]
    return None if found is None else str(found.batches()["words"].column(0)[0].as_py())


@pytest.mark.parametrize("damage", shelf.DAMAGES, ids=lambda one: one.__name__)
@pytest.mark.parametrize("seed", range(5))
def test_a_damaged_slot_is_never_taken_for_what_stood_there(damage: shelf.Damage, seed: int) -> None:
    """Each damage must hurt (else the fault proves nothing), and none may be believed."""
    first, older, newest = (
        saved("learn", slot, at, text) for slot, at, text in ((1, 5, "first"), (0, 10, "older"), (1, 20, "newest"))
    )  # fmt: skip
    whole = [*shelf.items(("learn", 0, 1), first), *shelf.items(("learn", 0, 0), older)]
    whole += shelf.items(("learn", 0, 1), newest)
    assert restored(whole, ["word"]) == "newest"
    other = saved("mine", 1, 99, "another's")
    written = damage(("learn", 0, 1), [first, newest], other, Random(seed))
    assert restored([*whole, *written], ["word"]) == "older"


def test_every_state_is_damaged_and_every_kind_of_damage_is_done() -> None:
    places: list[Key] = [(name, 0, slot) for name in "abcdef" for slot in (0, 1)]
    found = {place: [saved(place[0], place[2], 10 + place[2], place[0])] for place in places}
    plans = planned(found, Random(4))
    assert {plan.place[0] for plan in plans} == set("abcdef")
    assert {plan.damage for plan in plans} == set(shelf.DAMAGES)
    assert all((plan.place[0], 0, 1) in {other.place for other in plans} for plan in plans), "newest first"
    assert [plan.place for plan in plans] == [plan.place for plan in planned(found, Random(4))]
    assert [plan.damage for plan in plans] != [plan.damage for plan in planned(found, Random(5))]


def test_what_overlaps_is_two_or_three_of_different_kinds_and_the_seeds() -> None:
    draws = [faults_combined.drawn(Random(seed)) for seed in range(200)]
    assert {len(draw) for draw in draws} == {2, 3}
    group_of = {begin: group for group in faults_combined.GROUPS for begin in group}
    assert all(len({group_of[begin] for begin in draw}) == len(draw) for draw in draws)
    assert {begin for draw in draws for begin in draw} == set(group_of)
    assert draws[7] == faults_combined.drawn(Random(7))


def test_every_forgery_is_its_topics_tenants_or_refused() -> None:
    """The whole of what encode decides of it, without a broker."""
    made = faults_tenants.probes(TENANTS, Random(1), 100, "f")
    assert {probe.tenant for probe in made} == set(TENANTS)
    for probe in made:
        topic = "aos.requests" if probe.tenant == "default" else f"aos.requests.{probe.tenant}"
        raw = Raw(topic, 0, 1, 0, probe.key, probe.value, probe.headers)
        dead = DeadLetters("encode", TENANTS)
        found = gather([raw], RECORDS["request"], TENANTS, dead)
        refused = bool(found.bad or dead.outputs())
        assert refused == (probe.expect is None)
        if not refused:
            assert tenants_of(found, [raw], TENANTS) == [probe.tenant]
            assert found.rows.column("id").to_pylist() == [probe.id]
    ids = [(probe.tenant, probe.id) for probe in made]
    assert len(set(ids)) == len(ids)
    assert len({id for _, id in ids}) < len(ids), "some ids are used by two tenants"


def test_a_rate_is_counted_by_the_journals_and_p99_is_the_nearest_rank(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal-a.ndjson")
    since = time.time()
    journal.sent({"id": f"{n}", "tenant": "acme", "key": "p", "seq": n} for n in range(6))
    journal.sent([{"id": "x", "tenant": "umbra", "key": "p", "seq": 0}])
    journal.settled({"id": "0", "tenant": "acme", "key": "p", "seq": 0}, ACKNOWLEDGED)
    journal.close()
    stand: Any = SimpleNamespace(folder=tmp_path)
    assert faults_tenants.mean_rate(stand, ["acme"], since, since + 2) == 3.0
    assert faults_tenants.mean_rate(stand, ["default"], since, since + 2) == 0.0
    assert faults_tenants.p99([float(n) for n in range(200)]) == 198.0
    assert faults_tenants.p99([]) == 0.0


def test_a_tenant_is_calm_when_what_it_sent_a_moment_ago_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a backlog would be the measure of itself."""
    stand: Any = SimpleNamespace(folder=tmp_path)
    journal = Journal(tmp_path / "journal-a.ndjson")
    journal.sent([{"id": "a", "tenant": "acme", "key": "p", "seq": 0}])
    journal.close()
    monkeypatch.setattr(faults_tenants, "CALM_S", 0.0)
    monkeypatch.setattr(faults_tenants, "CALM_LIMIT_S", 0.1)
    monkeypatch.setattr(faults_tenants, "ends", lambda stand, tenants: {})
    assert not faults_tenants.calm(stand, ["acme"])
    assert faults_tenants.calm(stand, ["umbra"])
    monkeypatch.setattr(faults_tenants, "ends", lambda stand, tenants: {("acme", "a"): 1.0})
    assert faults_tenants.calm(stand, ["acme"])


@pytest.mark.parametrize("number", [29, 30, 31, 32, 33, 40])
def test_the_fault_has_hands(number: int) -> None:
    fault = load_all()[number]
    assert fault.inject.__name__ != "no_hands"
    assert fault.missing() is None


def test_the_row_of_forged_tenants_says_what_is_not_tried() -> None:
    assert "gateway" in load_all()[29].waits
    assert load_all()[37].missing()
