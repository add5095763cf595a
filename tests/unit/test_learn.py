"""learn: what it teaches, when it publishes, that it is a fold; and that it routes well."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from aos.analytics.beliefs import Beliefs, key_of
from aos.analytics.strategies import DEFAULT
from aos.codecs import rows as codec
from aos.codecs.settings import Settings
from aos.streams import learn
from aos.streams.processor import Batch, Output, Views

_spec = importlib.util.spec_from_file_location(
    "learning_world", Path(__file__).with_name("learning_world.py")
)
assert _spec is not None
assert _spec.loader is not None
world = importlib.util.module_from_spec(_spec)
sys.modules["learning_world"] = world  # dataclasses look their module up
_spec.loader.exec_module(world)

START = 1_700_000_000_000_000
MS = 1_000
TABLE = world.planted_table(1, tasks=600)


def views(**settings: Any) -> Views:
    return Views(settings=Settings(**settings))


def message(first: int, count: int = 16, seed: int = 0, **more: Any) -> pa.RecordBatch:
    """Outcomes of tasks first, first + 1 … on agents drawn by the seed."""
    tasks = np.arange(first, first + count)
    agents = np.random.default_rng([seed, first]).integers(0, len(TABLE.agents), count)
    return world.experiences(TABLE, tasks, agents, TABLE.scores[tasks, agents], tasks, **more)


def run(
    messages: list[pa.RecordBatch],
    state: learn.State | None = None,
    start: int = 0,
    every_us: int = 20 * MS,
    **how: Any,
) -> tuple[learn.State, list[Output]]:
    state = state or learn.initial(0)
    outputs: list[Output] = []
    for offset, rows in enumerate(messages, start):
        result = learn.step(
            state, Batch("aos.experiences", 0, offset, rows), START + offset * every_us, views(**how), 1
        )
        state = result.state
        outputs += result.outputs
    return state, outputs


def seen(outputs: list[Output]) -> Beliefs:
    beliefs = Beliefs()
    for output in outputs:
        assert output.topic == "aos.beliefs"
        assert output.rows.schema == codec.record("belief").schema
        beliefs.apply(output.key or b"", output.rows)
    return beliefs


def flushed(state: learn.State, start: int) -> list[Output]:
    """All that still waits, by ticks far apart."""
    ticks = [learn.tick(0, START)] * 40
    return run(ticks, state, start, every_us=10_000 * MS)[1]


def bytes_of(state: learn.State) -> dict[str, bytes]:
    return {name: rows.serialize().to_pybytes() for name, rows in learn.dump(state).items()}


def correction(
    serial: int, score: float, step_name: str | None = None, tenant: str = "world"
) -> pa.RecordBatch:
    row = learn.tick(0, START).to_pylist()[0]
    id = serial.to_bytes(8, "little") * 2
    return codec.from_dicts(
        "experience",
        [
            {
                **row, "kind": "correction", "tenant": tenant, "request_id": id, "score": score, "step_name": step_name,
            }
        ],
    )  # fmt: skip


def state_of_cells(state: learn.State) -> dict[str, Any]:
    cells = learn.dump(state)["cells"].to_pydict()
    return {name: cells[name] for name in ("gram", "moment", "square")}


def test_what_succeeds_is_believed() -> None:
    good = np.zeros(16, np.int64)
    rows = world.experiences(TABLE, np.zeros(16, np.int64), good, np.ones(16), np.arange(16))
    bad = world.experiences(TABLE, np.zeros(16, np.int64), good + 1, np.zeros(16), np.arange(100, 116))
    state, outputs = run([rows, bad])
    beliefs = seen(outputs + flushed(state, 2))
    kind = TABLE.kinds[0]
    told = beliefs.predict(
        "world", kind, TABLE.agents[:3], TABLE.surfaces[:1], np.zeros((1, 256), np.float16)
    )
    assert told.score[0, 0] > 0.7
    assert told.score[0, 1] < 0.3
    assert told.score[0, 1] < told.score[0, 2] < told.score[0, 0]  # nobody knows the third
    assert told.deviation[0, 2] > told.deviation[0, 0]
    assert told.count[0] == pytest.approx(16, rel=0.05)
    assert beliefs.version("world") >= 2


def test_a_repeated_experience_teaches_once() -> None:
    once, _ = run([message(0), message(16)])
    twice, _ = run([message(0), message(0), message(16), message(0)])
    assert state_of_cells(once) == state_of_cells(twice)


@pytest.mark.parametrize(
    "more",
    [
        {"quarantined": ["x"] * 16},
        {"kind": ["foreign"] * 16},
        {"kind": ["request"] * 16},
        {"score": [None] * 16},
    ],
)
def test_what_must_not_teach_does_not(more: dict[str, Any]) -> None:
    state, outputs = run([message(0, **more)])
    assert not state.learner.cells.keys
    assert not outputs
    assert (
        learn.step(state, Batch("aos.experiences", 0, 9, learn.tick(0, START)), START, views(), 1).next_due
        is None
    )


def test_a_correction_replaces_the_score_once() -> None:
    rows = message(0)
    columns = rows.to_pydict()
    scores = np.array(columns["score"])
    scores[5] = 0.25
    corrected, _ = run([rows, correction(5, 0.25), correction(5, 0.25)])
    taught, _ = run([message(0, score=scores.astype(np.float32))])
    for name in ("moment", "square"):
        one, other = np.array(state_of_cells(corrected)[name]), np.array(state_of_cells(taught)[name])
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_a_later_correction_replaces_an_earlier_one() -> None:
    first, _ = run([message(0), correction(5, 0.9), correction(5, 0.25)])
    only, _ = run([message(0), correction(5, 0.25)])
    np.testing.assert_allclose(state_of_cells(first)["moment"], state_of_cells(only)["moment"], atol=1e-12)


def test_a_correction_of_another_tenant_changes_nothing() -> None:
    for tenant in ("other", "worl", "", "world/part"):
        corrected, _ = run([message(0), correction(5, 0.25, tenant=tenant)])
        assert state_of_cells(corrected) == state_of_cells(run([message(0)])[0])


def test_a_correction_of_another_step_or_request_changes_nothing() -> None:
    plain, _ = run([message(0)])
    other, _ = run([message(0), correction(999, 0.1), correction(5, 0.1, step_name="other")])
    assert state_of_cells(plain) == state_of_cells(other)


def test_snapshot_and_rest_is_the_whole() -> None:
    messages = [message(first) for first in range(0, 480, 16)]
    whole, _ = run(messages)
    half, _ = run(messages[:15])
    again = learn.load(0, learn.dump(half))
    assert bytes_of(again) == bytes_of(half)
    rest, outputs = run(messages[15:], again, 15)
    assert bytes_of(rest) == bytes_of(whole)
    assert outputs


def test_the_same_log_gives_the_same_bytes_whatever_the_hash_seed(tmp_path: Path) -> None:
    import hashlib
    import os
    import subprocess

    script = tmp_path / "fold.py"
    script.write_text(
        "import sys, importlib.util, hashlib\n"
        f"spec = importlib.util.spec_from_file_location('test_learn', {str(Path(__file__))!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "state, _ = module.run([module.message(first) for first in range(0, 96, 16)])\n"
        "print(hashlib.sha256(repr(sorted(module.bytes_of(state).items())).encode()).hexdigest())\n"
    )
    path = os.pathsep.join(sys.path)
    state, _ = run([message(first) for first in range(0, 96, 16)])
    here = hashlib.sha256(repr(sorted(bytes_of(state).items())).encode()).hexdigest()
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": path}
    there = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)], env=env, capture_output=True, text=True
    )
    assert there.stdout.strip() == here, there.stderr


def test_news_stand_in_the_order_of_the_log() -> None:
    state, _ = run([message(0)])
    kinds = list(dict.fromkeys(TABLE.kinds[:16]))
    assert [kind for _, kind in state.news] == [kinds[0], "", learn.CENTRES, *kinds[1:]]


def test_publication_is_at_once_then_paced() -> None:
    state, outputs = run([message(0)])
    assert outputs  # the first news goes at once
    sent = []
    for offset in range(1, 200):
        result = learn.step(
            state,
            Batch("aos.experiences", 0, offset, message(16 + offset % 500)),
            START + offset * 20 * MS,
            views(),
            1,
        )
        sent.append(len(result.outputs))
    # 4 s of log time: at most 10 a second and the burst, never within 100 ms of the last
    assert sum(sent) <= 4 * 10 + learn.PUBLISH_BURST
    published = [place for place, count in enumerate(sent) if count]
    assert min(np.diff(published)) >= 5


def test_what_waits_is_due_and_a_tick_sends_it() -> None:
    state, outputs = run([message(0), message(16)], every_us=MS)
    rest: list[Output] = []
    now, ticks = START + MS, 0
    while True:
        result = learn.step(state, Batch("aos.experiences", 0, 9, learn.tick(0, now)), now, views(), 1)
        rest += result.outputs
        if result.next_due is None:
            break
        assert result.next_due > now
        now, ticks = result.next_due, ticks + 1
        assert ticks < 50
    keys = {output.key for output in outputs + rest}
    assert keys == {key_of("world", kind) for kind in {*TABLE.kinds[:32], ""}}
    assert now < START + 10_000_000


def test_only_what_changed_is_published() -> None:
    state, _ = run([message(first) for first in range(0, 160, 16)])
    flushed(state, 10)
    one = TABLE.kinds.index("kind1")
    rows = world.experiences(TABLE, np.full(4, one), np.zeros(4, np.int64), np.ones(4), np.arange(900, 904))
    _, outputs = run([rows], state, 300_000_000)
    later = flushed(state, 400_000)
    assert {output.key for output in outputs + later} == {key_of("world", "kind1"), key_of("world", "")}


def test_similarity_is_to_past_successes() -> None:
    rng = np.random.default_rng(3)
    sums, texts = rng.standard_normal(256), rng.standard_normal(256)
    embedding = np.array([sums / np.linalg.norm(sums)] * 8 + [texts / np.linalg.norm(texts)] * 8)
    agents = np.array([0] * 8 + [1] * 8)
    rows = world.experiences(
        TABLE,
        np.zeros(16, np.int64),
        agents,
        np.ones(16),
        np.arange(16),
        embedding=embedding.astype(np.float16),
    )
    state, outputs = run([rows])
    beliefs = seen(outputs + flushed(state, 1))
    told = beliefs.predict(
        "world", None, TABLE.agents[:3], TABLE.surfaces[:2], embedding[[0, 15]].astype(np.float16)
    )
    assert told.similarity[0, 0] > 0.99
    assert told.similarity[1, 1] > 0.99
    assert abs(told.similarity[0, 1]) < 0.3
    assert (told.similarity[:, 2] == 0).all()


def test_a_degraded_agent_gets_under_a_tenth_of_its_kind_within_150_tasks() -> None:
    for seed in range(3):
        table = world.planted_table(seed, tasks=2400, agents=8, kinds=3)
        rng = np.random.default_rng(seed)
        order = rng.permutation(2400)
        before = world.play(table, seed, order=order[:1200])
        favourite = int(np.bincount(before.chosen[600:]).argmax())

        def broken(position: int, scores: np.ndarray, favourite: int = favourite) -> np.ndarray:
            return np.where((np.arange(8) == favourite) & (position >= 1200), 0.0, scores)

        after = world.play(table, seed, order=order, change=broken)
        for kind in set(table.kinds):
            mine = [place for place in range(1200, 2400) if table.kinds[order[place]] == kind]
            share = np.mean(after.chosen[mine[150:]] == favourite)
            assert share < 0.1, (seed, kind, share)
        assert after.state.learner.cells.drift_count.sum() > 0


def test_a_stationary_world_loses_little_to_forgetting() -> None:
    for_ever, forgets = [], []
    for seed in range(3):
        table = world.planted_table(seed, tasks=1500)
        for_ever.append(world.play(table, seed, settings=Settings(discount=1.0)).scores.mean())
        forgets.append(world.play(table, seed).scores.mean())
    assert np.mean(forgets) > np.mean(for_ever) - 0.015


def test_learning_beats_chance_and_always_the_average(measured: Any) -> None:
    scores, rounds = [], []
    for seed in range(3):
        table = world.planted_table(seed, tasks=1500)
        scores.append(world.play(table, seed).scores.mean())
        rounds.append(table.scores.mean())
    measured(f"planted world: learned {np.mean(scores):.3f}, round robin {np.mean(rounds):.3f}")
    assert np.mean(scores) > np.mean(rounds) + 0.1


@pytest.mark.long
def test_the_routing_table_is_learned_as_well_as_the_reference(shared_data: Path, measured: Any) -> None:
    table = world.real_table(shared_data / "routing_llmrouter.parquet")
    plays = [world.play(table, seed, exploration=DEFAULT.exploration).scores for seed in range(5)]
    whole, last = np.mean([p.mean() for p in plays]), np.mean([p[-1000:].mean() for p in plays])
    measured(f"routing table, kinds given, 5 seeds: whole {whole:.4f}, last 1,000 {last:.4f}")
    assert whole >= 0.672
    assert last >= 0.685
