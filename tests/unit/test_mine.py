"""mine: windows of collaborations, clusters with lasting ids, pairs with effect and error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from aos.codecs import rows as codec
from aos.codecs.settings import Settings
from aos.streams import learn, mine
from aos.streams.processor import Batch, Output, Views

START = 1_700_000_000_000_000
SECOND = 1_000_000


def views(**settings: Any) -> Views:
    return Views(settings=Settings(**{"mine_every": 100, "mine_window": 1000, **settings}))


def experience(kind: str, serial: int, **more: Any) -> dict[str, Any]:
    return {
        "tenant": "default", "request_id": serial.to_bytes(16, "little"), "requested_at": START, "home": 0,
        "domain": "default", "round": 0, "kind": kind, "step": 0, "attempt": 1, "status": "ok", "judged": False,
        "priority": 2, "cost_usd_micros": 5, "cpu_us": 0, "tokens": 0, "waited_us": 0, "latency_us": 1000,
        "finished_at": START + serial, "sampled": False, "sample_share": 1.0, "model_version": 0,
        "settings_version": 0, "degraded": False, "score": 0.5, **more,
    }  # fmt: skip


def teamwork(
    serial: int, first: str, second: str, score: float, kind: str = "build", **more: Any
) -> list[dict[str, Any]]:
    """A request of two steps: `second` works on what `first` made."""
    return [
        experience("attempt", serial, agent=first, team=[first], task_kind=kind, score=1.0, **more),
        experience(
            "attempt", serial, agent=second, step=1, team=[first, second], task_kind=kind, score=score, **more
        ),
        experience("request", serial, step=-1, team=[first, second], task_kind=kind, score=score, **more),
    ]


def run(
    rows: list[dict[str, Any]], state: mine.State | None = None, now: int = START, size: int = 60, **how: Any
) -> tuple[mine.State, list[Output]]:
    state = state or mine.initial(0)
    outputs: list[Output] = []
    for at in range(0, len(rows), size):
        batch = Batch("aos.experiences", 0, at, codec.from_dicts("experience", rows[at : at + size]))
        result = mine.step(state, batch, now, views(**how), 1)
        outputs += result.outputs
    return state, outputs


def test_an_attempt_that_comes_again_is_one_pair_before_and_after_its_request_ended() -> None:
    first, second, end = teamwork(1, "ada", "eve", 0.5)
    once, _ = run([first, second, end])
    again, _ = run([first, second, second, first, end, second, end])
    assert [one.pairs for one in once.windows["default"].rows] == [(("ada", "eve", 0.5),)]
    assert mine.dump(again) == mine.dump(once)
    assert not again.open


FIRSTS = {"ada": 0.15, "bob": 0.05, "cyd": -0.15, "dot": 0.0}
SECONDS = {"eve": 0.15, "fox": -0.15, "gus": 0.0, "hal": 0.05}


def planted(count: int, seed: int = 0, start: int = 0) -> list[dict[str, Any]]:
    """Every first with every second: cyd and fox are better together than they are, all others add up."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for serial in range(start, start + count):
        first, second = str(rng.choice(list(FIRSTS))), str(rng.choice(list(SECONDS)))
        chance = 0.5 + FIRSTS[first] + SECONDS[second] + (0.4 if (first, second) == ("cyd", "fox") else 0.0)
        kind = "build" if second in ("eve", "fox") else "check"
        rows += teamwork(serial, first, second, float(rng.random() < chance), kind)
    return rows


def patterns(output: Output) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = output.rows.to_pylist()
    return found


def mined_pairs(seed: int) -> dict[tuple[str, ...], dict[str, Any]]:
    _, outputs = run(planted(2000, seed), mine_every=2000, mine_window=2000)
    return {tuple(row["members"]): row for row in patterns(outputs[-1]) if row["kind"] == "pair"}


def test_a_planted_pair_is_found_and_no_other() -> None:
    for seed in range(3):
        pairs = mined_pairs(seed)
        assert len(pairs) == 16
        assert sum(row["support"] for row in pairs.values()) == 2000
        best = max(pairs, key=lambda key: pairs[key]["effect"] / pairs[key]["error"])
        assert best == ("cyd", "fox")
        assert pairs[best]["effect"] == pytest.approx(0.4, abs=0.15)
        assert {key for key, row in pairs.items() if abs(row["effect"]) > 3 * row["error"]} == {best}


def test_two_good_agents_are_not_yet_a_good_pair() -> None:
    pair = mined_pairs(4)["ada", "eve"]
    assert pair["score"] > 0.7
    assert abs(pair["effect"]) < 2 * pair["error"]


def test_clusters_are_teams_on_kinds_and_keep_their_ids() -> None:
    state, outputs = run(planted(800), mine_every=800)
    first = {row["pattern"]: row for row in patterns(outputs[-1]) if row["kind"] == "cluster"}
    assert len(first) == 16
    state, outputs = run(planted(800, seed=9, start=800), state, START + 20 * SECOND, mine_every=800)
    again = {row["pattern"]: row for row in patterns(outputs[-1]) if row["kind"] == "cluster"}
    assert set(again) == set(first)
    for id, row in again.items():
        assert set(row["members"]) == set(first[id]["members"])
    assert min(row["persistence"] for row in again.values()) >= 0.0


def test_an_agents_failures_count_for_the_pair_though_the_request_lost_it() -> None:
    rows: list[dict[str, Any]] = []
    for serial in range(100):
        rows += [
            experience("attempt", serial, agent="b", step=1, team=["a", "b"], score=0.0, status="failed"),
            experience("attempt", serial, agent="c", step=1, attempt=2, team=["a", "c"], score=1.0),
            experience("request", serial, step=-1, team=["a", "c"], score=1.0),
        ]
    _, outputs = run(rows)
    scores = {tuple(row["members"]): row["score"] for row in patterns(outputs[0]) if row["kind"] == "pair"}
    assert scores == {("a", "b"): 0.0, ("a", "c"): 1.0}


@pytest.mark.parametrize(
    "rows",
    [
        [experience("request", 1, step=-1, team=["a"])],
        [experience("request", 1, step=-1, team=["a", "b"], score=None, status="cancelled")],
        [experience("request", 1, step=-1, team=["a", "b"], quarantined="score-out-of-range")],
        [experience("foreign", 1, agent="a", team=["a", "b"])],
        learn.tick(0, START).to_pylist(),
    ],
    ids=["alone", "unscored", "quarantined", "foreign", "tick"],
)
def test_what_is_no_collaboration_is_not_mined(rows: list[dict[str, Any]]) -> None:
    state, outputs = run(rows)
    assert not state.windows
    assert not outputs


def test_mining_waits_for_new_collaborations_and_rests() -> None:
    state, outputs = run(planted(99))
    assert not outputs
    state, outputs = run(planted(1, start=99), state)
    assert len(outputs) == 1
    assert outputs[0].key == b"default"
    state, outputs = run(planted(200, start=100), state, START + SECOND)
    assert not outputs
    state, outputs = run(planted(1, start=300), state, START + 11 * SECOND)
    assert len(outputs) == 1


def test_a_repeated_end_counts_once() -> None:
    state, _ = run(planted(50))
    state, _ = run(planted(50), state)
    assert len(state.windows["default"].rows) == 50


def test_the_window_forgets_the_oldest() -> None:
    state, _ = run(planted(300), mine_window=120)
    window = state.windows["default"]
    assert len(window.rows) == len(window.ids) == 120
    assert window.rows[0].finished_at == START + 180


def test_domains_do_not_mix() -> None:
    rows = planted(60) + [{**row, "domain": "other"} for row in planted(60, start=60)]
    state, _ = run(rows)
    assert {domain: len(window.rows) for domain, window in state.windows.items()} == {
        "default": 60,
        "other": 60,
    }


def bytes_of(parts: dict[str, pa.RecordBatch]) -> dict[str, bytes]:
    return {name: rows.serialize().to_pybytes() for name, rows in parts.items()}


def test_state_survives_a_snapshot_and_goes_on_alike() -> None:
    state, _ = run(planted(130) + planted(1, start=900)[:2])
    again = mine.load(0, mine.dump(state))
    assert bytes_of(mine.dump(again)) == bytes_of(mine.dump(state))
    more = planted(150, start=200)
    one, outputs = run(more, state, START + 60 * SECOND)
    other, outputs_again = run(more, again, START + 60 * SECOND)
    assert bytes_of(mine.dump(one)) == bytes_of(mine.dump(other))
    assert [output.rows for output in outputs] == [output.rows for output in outputs_again]
    assert outputs
