"""learn: teaches every outcome to the posteriors and publishes what is believed of each agent.

in: aos.experiences (kinds attempt, correction, tick; the others are not for it)
out: aos.beliefs, key <domain>/<task kind> (whole value of the kind), <domain>#centres
key: the learning domain (a partition holds whole domains)
state: `Learner` (cells [agents x kinds], last lessons, river models, mean embeddings), what is not yet published
order: a fold over one log; a repeated experience is known by (request, round, step, attempt) and skipped, a correction
    replaces the score of the lesson it is about
errors: none of its own: quarantined rows teach nothing
cost: .5 ms a message and 8 us an outcome at 128 a message, 50 us more for a sampled one; a publication 13 us a cell of
    the domain (`solve`) and .5 ms a key; a snapshot of 2,100 cells and lessons 5 ms
publication: at once when none was sent for 100 ms of log time, else with a later message or a tick; never more than
    ten messages a second over a while, those with the most news for their age first
source: analytics/posterior.py
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from aos.analytics import learner_state, river_models
from aos.analytics.beliefs import ALL_KINDS, centres_key, key_of
from aos.analytics.learner import Learner, Outcomes
from aos.analytics.lessons import keys_of
from aos.analytics.posterior import CELLS_MAX
from aos.codecs import columns as arrays
from aos.codecs import rows as codec
from aos.codecs.fields import F32S
from aos.codecs.settings import Settings
from aos.streams.processor import Batch, Output, Step, Views

PUBLISH_EVERY_US = 100_000  # log time between two publications, and what one message costs of the rate
CELLS_A_PUBLICATION = 250  # posteriors of more cells are solved, and so published, less often: 5 % of a core
PUBLISH_BURST = 10  # messages that may go at once after a rest
ALL_KINDS_EVERY_US = 1_000_000  # beliefs over all kinds matter to work without a kind and to new kinds
CENTRES_EVERY_US = 5_000_000  # 1 KB an agent that changes slowly
NEWS_MAX = 4 * CELLS_MAX  # keys; beyond it those of forgotten domains go
_TIME = pa.timestamp("us", tz="UTC")
CENTRES = "#centres"  # the kind under which a domain's mean embeddings wait for publication


@dataclass(slots=True)
class News:
    """What one key has not yet published: outcomes since, outcomes before, log time of the last publication."""

    waiting: int = 0
    told: int = 0
    published_at: int = 0


@dataclass(slots=True)
class State:
    """`paid_until`: log time up to which the message rate is used up."""

    learner: Learner = field(default_factory=Learner)
    news: dict[tuple[str, str], News] = field(default_factory=dict)
    published_at: int = 0
    paid_until: int = 0
    version: int = 0


prepare = river_models.prepare


def initial(partition: int) -> State:
    """Nothing learned."""
    return State()


def step(state: State, batch: Batch, now: int, views: Views, seed: int) -> Step[State]:
    """Teach a message of experiences; publish what is due."""
    settings: Settings = views.settings
    rows = batch.rows
    state.version = batch.offset + 1
    kinds = rows.column("kind").to_numpy(zero_copy_only=False)
    free = ~arrays.valid(rows.column("quarantined"))
    learns = (kinds == "attempt") & free
    for name in ("score", "agent", "surface"):
        learns &= arrays.valid(rows.column(name))
    if learns.any():
        taught = state.learner.teach(_outcomes(rows, learns), now, settings.discount)
        for (domain, kind), count in Counter(taught).items():
            _note(state, domain, kind, count)
    corrects = (kinds == "correction") & free
    if corrects.any():
        _correct(state, rows.filter(pa.array(corrects)), settings.discount)
    if len(state.news) > NEWS_MAX:
        known = state.learner.cells.kinds
        state.news = {key: item for key, item in state.news.items() if key[0] in known}
    outputs = _publish(state, now, settings.prior_strength)
    return Step(state, outputs, _next_due(state, now))


def tick(partition: int, now: int) -> pa.RecordBatch:
    """The row that is appended when a publication is due and nothing came."""
    texts = dict.fromkeys(("tenant", "domain"), "")
    zeros = ("round", "attempt", "priority", "cost_usd_micros", "cpu_us", "tokens", "waited_us", "latency_us")
    row = {
        **texts,
        **dict.fromkeys((*zeros, "sample_share", "model_version", "settings_version"), 0),
        **dict.fromkeys(("judged", "sampled", "degraded"), False),
        **dict.fromkeys(("requested_at", "finished_at"), now),
        **dict.fromkeys(("kind", "status"), "tick"),
        "request_id": bytes(16),
        "home": partition,
        "step": -1,
        "team": [],
    }
    return codec.from_dicts("experience", [row])


def dump(state: State) -> dict[str, pa.RecordBatch]:
    """The state as record batches; the same state gives the same bytes."""
    news = [(*key, item.waiting, item.told, item.published_at) for key, item in state.news.items()]
    columns = list(zip(*news, strict=True)) or [(), (), (), (), ()]
    types = (pa.string(), pa.string(), pa.int64(), pa.int64(), pa.int64())
    names = ("domain", "kind", "waiting", "told", "published_at")
    parts = learner_state.dump(state.learner)
    made = [pa.array(column, type) for column, type in zip(columns, types, strict=True)]
    parts["news"] = pa.RecordBatch.from_arrays(made, names=list(names))
    clock = {name: [getattr(state, name)] for name in ("published_at", "paid_until", "version")}
    parts["clock"] = pa.RecordBatch.from_pydict(clock)
    return parts


def load(partition: int, parts: Mapping[str, pa.RecordBatch]) -> State:
    """The state whose `dump` this is."""
    clock = parts["clock"].to_pylist()[0]
    news = {
        (row["domain"], row["kind"]): News(row["waiting"], row["told"], row["published_at"])
        for row in parts["news"].to_pylist()
    }
    return State(learner_state.load(parts), news, **clock)


def _outcomes(rows: pa.RecordBatch, learns: np.ndarray) -> Outcomes:
    """The attempts among the rows as what the learner takes."""
    places = np.flatnonzero(learns)

    def numbers(name: str) -> np.ndarray:
        column: np.ndarray = rows.column(name).to_numpy(zero_copy_only=False)[places]
        return column

    def texts(name: str) -> list[Any]:
        found: list[Any] = numbers(name).tolist()
        return found

    ids = rows.column("request_id")
    whole = np.frombuffer(ids.buffers()[1], np.uint8).reshape(-1, ids.type.byte_width)
    spent = np.empty((len(places), 3))
    for at, name in enumerate(("latency_us", "cost_usd_micros", "cpu_us")):
        spent[:, at] = numbers(name)
    embeddings = _tensors(rows, "embedding", learns)
    surfaces = _tensors(rows, "surface", learns)
    assert surfaces is not None, "what has no surface is not taught"
    return Outcomes(
        keys_of(
            whole[ids.offset : ids.offset + len(ids)][places].tobytes(),
            *(numbers(name) for name in ("round", "step", "attempt")),
        ),
        [name or "" for name in texts("step_name")],
        texts("domain"),
        texts("task_kind"),
        texts("agent"),
        numbers("score").astype(np.float64),
        spent,
        surfaces,
        embeddings,
        numbers("sampled").astype(np.bool_),
    )


def _tensors(rows: pa.RecordBatch, name: str, wanted: np.ndarray) -> np.ndarray | None:
    """The wanted rows of a tensor column [n, size], None when any of them is null."""
    column = rows.column(name)
    if column.null_count:
        column = column.storage.filter(pa.array(wanted))
        return None if column.null_count else codec.tensor(column)
    found: np.ndarray = codec.tensor(column)[wanted]
    return found


def _correct(state: State, rows: pa.RecordBatch, discount: float) -> None:
    for row in rows.select(["tenant", "request_id", "step_name", "score"]).to_pylist():
        changed = state.learner.correct(
            row["tenant"], row["request_id"], row["step_name"], row["score"], discount
        )
        if changed is not None:
            _note(state, *changed, 1)


def _note(state: State, domain: str, kind: str, count: int) -> None:
    for name in (kind, CENTRES) if kind == ALL_KINDS else (kind, ALL_KINDS, CENTRES):
        item = state.news.get((domain, name))
        if item is None:
            item = state.news[domain, name] = News()
        item.waiting += count


def _due_at(state: State, key: tuple[str, str], item: News) -> int:
    """Log time from which a key may be published again."""
    domain, kind = key
    if kind == CENTRES:
        return item.published_at + CENTRES_EVERY_US
    waits = kind == ALL_KINDS and not _alone(state, domain)
    return item.published_at + (ALL_KINDS_EVERY_US if waits else PUBLISH_EVERY_US)


def _alone(state: State, domain: str) -> bool:
    """Whether work of the domain comes without a kind: then the beliefs over all kinds decide, and hurry."""
    return ALL_KINDS in state.learner.cells.kinds.get(domain, ())


def _publish(state: State, now: int, prior_strength: float) -> list[Output]:
    """Messages that are due now, within the rate, those with the most news for their age first."""
    if now < state.published_at + _pause_us(state):
        return []
    waiting = [(key, item) for key, item in state.news.items() if item.waiting]
    due = [(key, item) for key, item in waiting if now >= _due_at(state, key, item)]
    due.sort(key=lambda pair: (-_urgency(pair[1], now), pair[0]))
    start = max(state.paid_until, now - PUBLISH_BURST * PUBLISH_EVERY_US)
    due = due[: (now - start) // PUBLISH_EVERY_US]
    if not due:
        return []
    solved: dict[str, Any] = {}
    outputs = []
    for (domain, kind), item in due:
        if domain not in state.learner.cells.kinds:  # forgotten since
            del state.news[domain, kind]
            continue
        if kind == CENTRES:
            outputs += _centres(state, domain, now)
        else:
            if domain not in solved:
                solved[domain] = state.learner.solve(domain, prior_strength)
            outputs.append(_beliefs(state, domain, kind, solved[domain], now, prior_strength))
        item.told, item.waiting, item.published_at = item.told + item.waiting, 0, now
    state.published_at = now
    state.paid_until = start + len(due) * PUBLISH_EVERY_US
    return outputs


def _pause_us(state: State) -> int:
    """Log time between two publications: longer where there is more to solve."""
    return PUBLISH_EVERY_US * (1 + len(state.learner.cells.keys) // CELLS_A_PUBLICATION)


def _urgency(item: News, now: int) -> float:
    """News relative to what was told, times age: new kinds first, nobody for ever last."""
    return item.waiting / (10.0 + item.told) * (now - item.published_at)


def _next_due(state: State, now: int) -> int | None:
    """When the next publication may go, None when nothing waits."""
    soonest = max(state.published_at + _pause_us(state), state.paid_until + PUBLISH_EVERY_US, now + 1)
    first = None
    for key, item in state.news.items():
        if item.waiting:
            at = _due_at(state, key, item)
            if at <= soonest:
                return soonest
            first = at if first is None or at < first else first
    return first


def _beliefs(state: State, domain: str, kind: str, solved: Any, now: int, prior_strength: float) -> Output:
    believed = state.learner.beliefs(domain, kind, solved, prior_strength)
    count = len(believed.agents)
    drifted = believed.drifted_at
    columns = {
        "domain": [domain] * count,
        "task_kind": [kind] * count,
        "agent": believed.agents,
        "count": believed.count,
        "score": np.clip(believed.weights[:, 0], 0.0, 1.0),
        "deviation": np.sqrt(believed.variances[:, 0]),
        "latency_us": believed.latency_us,
        "cost_usd_micros": believed.cost_usd_micros,
        "cpu_us": believed.cpu_us,
        "drift_count": believed.drift_count.astype(np.int32),
        "drifted_at": arrays.array(drifted, _TIME, drifted == 0),
        "weights": _lists(believed.weights),
        "variances": _lists(believed.variances),
        "model_version": np.full(count, state.version, np.int64),
        "updated_at": np.full(count, now, np.int64),
        "means": [believed.means.tolist()] + [None] * (count - 1),
        "scales": [believed.scales.tolist()] + [None] * (count - 1),
    }
    return Output("aos.beliefs", codec.from_columns("belief", count, columns), key=key_of(domain, kind))


def _centres(state: State, domain: str, now: int) -> list[Output]:
    names, vectors = state.learner.centres_of(domain)
    count = len(names)
    if not count:
        return []
    nothing = np.zeros(count)
    columns = {
        "domain": [domain] * count,
        "task_kind": [ALL_KINDS] * count,
        "agent": names,
        **dict.fromkeys(("count", "score", "deviation", "latency_us", "cost_usd_micros", "cpu_us"), nothing),
        "drift_count": np.zeros(count, np.int32),
        "centre": _lists(vectors),
        "model_version": np.full(count, state.version, np.int64),
        "updated_at": np.full(count, now, np.int64),
    }
    return [Output("aos.beliefs", codec.from_columns("belief", count, columns), key=centres_key(domain))]


def _lists(values: np.ndarray) -> pa.Array:
    """[rows, size] as a list column."""
    offsets = pa.array(np.arange(0, values.size + 1, values.shape[1], dtype=np.int32))
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.ListArray.from_arrays(offsets, flat, type=F32S)
