"""optimise: a domain's policy follows its evidence, within bounds, version by version."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from aos.analytics.beliefs import Beliefs, key_of
from aos.analytics.patterns import Patterns
from aos.analytics.strategies import DEFAULT, Strategies, guard
from aos.codecs import rows as codec
from aos.codecs.settings import Settings
from aos.streams import learn, optimise
from aos.streams.processor import Batch, Output, Views

START = 1_700_000_000_000_000


def believed(scores: list[float], deviation: float, drifts: int = 0, kind: str = "k") -> Beliefs:
    """Beliefs on one kind and over all kinds."""
    beliefs = Beliefs()
    for name in (kind, ""):
        base = {
            "domain": "default", "task_kind": name, "count": 50.0, "score": 0.5, "deviation": deviation,
            "latency_us": 1.0, "cost_usd_micros": 1.0, "cpu_us": 1.0, "drift_count": drifts,
            "variances": [deviation**2] * 17, "model_version": 1, "updated_at": START,
        }  # fmt: skip
        rows = [
            {**base, "agent": "", "weights": [0.5] + [0.0] * 16, "means": [0.0] * 16, "scales": [1.0] * 16}
        ]
        rows += [
            {**base, "agent": f"a{n}", "weights": [score] + [0.0] * 16} for n, score in enumerate(scores)
        ]
        beliefs.apply(key_of("default", name), codec.from_dicts("belief", rows))
    return beliefs


def views(beliefs: Beliefs | None = None, strategies: Strategies | None = None) -> Views:
    found = {
        "aos.beliefs": beliefs or Beliefs(),
        "aos.patterns": Patterns(),
        "aos.strategies": strategies or Strategies(),
    }
    return Views(settings=Settings(optimise_every=100), views=found)


def attempts(count: int, start: int = 0, **more: Any) -> pa.RecordBatch:
    row = learn.tick(0, START).to_pylist()[0]
    base = {
        **row,
        "kind": "attempt",
        "domain": "default",
        "status": "ok",
        "score": 0.5,
        "agent": "a0",
        "step": 0,
    }
    return codec.from_dicts("experience", [{**base, **more} for _ in range(count)])


def run(
    state: optimise.State,
    beliefs: Beliefs | None,
    *messages: pa.RecordBatch,
    start: int = 0,
    published: Strategies | None = None,
) -> tuple[optimise.State, list[Output]]:
    outputs: list[Output] = []
    for offset, rows in enumerate(messages, start):
        batch = Batch("aos.experiences", 0, offset, rows)
        result = optimise.step(state, batch, START + offset, views(beliefs, published), 1)
        state = result.state
        outputs += result.outputs
    return state, outputs


def policies(outputs: list[Output]) -> list[dict[str, Any]]:
    return [row for output in outputs for row in output.rows.to_pylist()]


def test_exploration_falls_as_the_posteriors_settle_and_rises_after_a_drift() -> None:
    settled = believed([0.9, 0.3], 0.01)
    state, outputs = run(optimise.initial(0), settled, *[attempts(100)] * 12)
    rows = policies(outputs)
    path = [DEFAULT.exploration, *(row["exploration"] for row in rows)]
    assert path == sorted(path, reverse=True)
    assert path[-1] < 0.3
    assert [row["version"] for row in rows] == list(
        range(1, len(rows) + 1)
    )  # each message proposed: next offsets
    drifted = believed([0.9, 0.3], 0.01, drifts=1)
    state, outputs = run(state, drifted, attempts(100))
    (row,) = policies(outputs)
    assert row["exploration"] > path[-1] + 0.1
    assert "1 agents changed" in row["reason"]
    _, outputs = run(state, drifted, attempts(100))
    assert "0 agents changed" in policies(outputs)[0]["reason"]  # told once


def test_messages_read_again_adopt_what_was_published_though_the_beliefs_moved_on() -> None:
    settled = believed([0.9, 0.3], 0.01)
    _, outputs = run(optimise.initial(0), settled, *[attempts(100)] * 3)
    out = Strategies()
    for output in outputs:
        out.apply(output.key or b"", output.rows)
    otherwise = believed([0.9, 0.3], 0.01, drifts=3)
    state, again = run(optimise.initial(0), otherwise, *[attempts(100)] * 3, published=out)
    assert not again
    assert state.courses["default"].strategy == out.of("default")
    _, fresh = run(state, otherwise, attempts(100), start=3, published=out)
    assert [row["version"] for row in policies(fresh)] == [4]


def test_nothing_new_is_no_new_version() -> None:
    unsettled = believed([0.6, 0.5], 0.4)
    _, outputs = run(optimise.initial(0), unsettled, *[attempts(100)] * 5)
    assert not outputs


@pytest.mark.parametrize(("status", "grows"), [("timeout", "weight_latency"), ("failed", "weight_stability")])
def test_what_outcomes_suffer_from_weighs_more_within_bounds(status: str, grows: str) -> None:
    message = attempts(100, status=status, score=0.0)
    _, outputs = run(optimise.initial(0), believed([0.6, 0.5], 0.4), *[message] * 30)
    rows = policies(outputs)
    assert rows[-1][grows] > 0.3
    strategies = Strategies()
    for output in outputs:
        strategies.apply(output.key or b"", output.rows)
        assert guard(strategies.of("default")) == []
        assert strategies.of("default").version == output.rows.column("version")[0].as_py()
    assert strategies.of("elsewhere") == DEFAULT


def test_proposals_wait_for_enough_outcomes() -> None:
    state, outputs = run(optimise.initial(0), believed([0.9, 0.3], 0.01), attempts(99))
    assert not outputs
    _, outputs = run(state, believed([0.9, 0.3], 0.01), attempts(1))
    assert [output.key for output in outputs] == [b"default"]
    assert policies(outputs)[0]["evidence_count"] == 100


@pytest.mark.parametrize("more", [{"quarantined": "score-missing"}, {"kind": "foreign"}, {"kind": "tick"}])
def test_what_teaches_nothing_moves_nothing(more: dict[str, Any]) -> None:
    state, outputs = run(optimise.initial(0), believed([0.9, 0.3], 0.01), attempts(200, **more))
    assert not outputs
    assert not state.courses


def test_state_survives_a_snapshot_and_goes_on_alike() -> None:
    beliefs = believed([0.9, 0.3], 0.01)
    state, _ = run(optimise.initial(0), beliefs, attempts(100), attempts(50, status="timeout"))
    again = optimise.load(0, optimise.dump(state))
    assert again == state
    one, other = run(state, beliefs, attempts(60)), run(again, beliefs, attempts(60))
    assert policies(one[1]) == policies(other[1])
    assert one[1]
