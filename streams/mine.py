"""mine: keeps a window of collaborations a learning domain and mines it for clusters and pairs that work.

in: aos.experiences (kinds attempt and request; ticks and all else are not for it)
out: aos.patterns, key <domain>: all patterns of the domain
key: the learning domain
state: windows [<= mine_window a domain], pairs by attempt of requests that are not finished, clusters published last
order: a fold over one log: attempts of a request stand before its end; an attempt that comes again is known while its
    request is open, and as long as the window holds it, like its end
errors: none of its own: quarantined rows are not mined
cost: .1 to .3 ms a message, 10 us more for what several agents had a part in; .8 to 1.3 s of CPU a mining of
    5,000 collaborations, when `mine_every` new ones came and not more than once in `REST_US` of log time a domain, so
    that a backlog cannot turn into minings without end
source: analytics/mining.py
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, repeat
from typing import Any

import numpy as np
import pyarrow as pa

from aos.analytics.mining import Collaboration, Pair, Pattern, mine
from aos.codecs import columns as arrays
from aos.codecs import rows as codec
from aos.codecs.settings import Settings
from aos.streams.processor import Batch, Output, Step, Views

REST_US = 10_000_000  # log time between two minings of a domain
OPEN_MAX = 20_000  # unfinished requests whose pairs are remembered; beyond it the oldest are forgotten
HELD_MAX = (
    100_000  # collaborations of all windows of a partition; beyond it the domain idle longest is forgotten
)

Key = tuple[bytes, int]  # request id, round
Attempt = tuple[int, int]  # step, attempt


@dataclass(slots=True)
class Window:
    """One learning domain. `fresh`: collaborations since the last mining."""

    rows: deque[Collaboration] = field(default_factory=deque)
    ids: set[Key] = field(default_factory=set)
    known: list[Pattern] = field(default_factory=list)
    fresh: int = 0
    mined_at: int = 0
    touched: int = 0

    def add(self, one: Collaboration, most: int) -> None:
        """Take in a collaboration once; the oldest leave."""
        key = (one.request_id, one.round)
        if key in self.ids:
            return
        self.ids.add(key)
        self.rows.append(one)
        self.fresh += 1
        while len(self.rows) > most:
            gone = self.rows.popleft()
            self.ids.discard((gone.request_id, gone.round))


@dataclass(slots=True)
class State:
    """Windows by domain; pairs by unfinished request and attempt."""

    windows: dict[str, Window] = field(default_factory=dict)
    open: dict[Key, dict[Attempt, list[Pair]]] = field(default_factory=dict)


def initial(partition: int) -> State:
    """No window."""
    return State()


def step(state: State, batch: Batch, now: int, views: Views, seed: int) -> Step[State]:
    """Take in a message of experiences; mine the domains that are due."""
    settings: Settings = views.settings
    rows = batch.rows
    places = _wanted(rows, state.open)
    for row in _dicts(rows, places) if len(places) else ():
        if row["kind"] == "attempt":
            _pairs(state, row)
        else:
            _end(state, row, now, settings.mine_window)
    _forget(state)
    outputs = []
    for domain, window in state.windows.items():
        rested = not window.mined_at or now >= window.mined_at + REST_US
        if window.fresh >= settings.mine_every and rested:
            window.known = mine(domain, list(window.rows), window.known)
            window.fresh, window.mined_at = 0, now
            outputs.append(_patterns(domain, window, batch.offset + 1))
    return Step(state, outputs)


def _wanted(rows: pa.RecordBatch, open_: Mapping[Key, Any]) -> np.ndarray:
    """Places of the rows that may change a window: attempts on what others had made, ends of what several worked on.

    Most of what comes is the work of one agent and neither.
    """
    kinds = rows.column("kind").to_numpy(zero_copy_only=False)
    taught = arrays.valid(rows.column("score")) & ~arrays.valid(rows.column("quarantined"))
    several = arrays.lengths(rows.column("team")) > 1
    wanted = taught & several & (kinds == "attempt")
    ends = taught & (kinds == "request")
    if open_ or wanted.any():
        ids = rows.column("request_id").to_numpy(zero_copy_only=False).tolist()
        keys = list(zip(ids, rows.column("round").to_pylist(), strict=True))
        begun = {keys[place] for place in np.flatnonzero(wanted).tolist()}
        for place in np.flatnonzero(ends & ~several).tolist():
            wanted[place] = keys[place] in open_ or keys[place] in begun
    found: np.ndarray = np.flatnonzero(wanted | (ends & several))
    return found


_COLUMNS = [
    "request_id", "round", "kind", "step", "attempt", "domain", "task_kind", "agent", "score", "team", "latency_us",
    "cost_usd_micros",
]  # fmt: skip


def _dicts(rows: pa.RecordBatch, places: np.ndarray) -> list[dict[str, Any]]:
    """These rows as dicts, `finished_at` as microseconds."""
    found: list[dict[str, Any]] = rows.select(_COLUMNS).take(pa.array(places)).to_pylist()
    times = arrays.ints(rows.column("finished_at"), 0)[places].tolist()
    return [row | {"finished_at": time} for row, time in zip(found, times, strict=True)]


def dump(state: State) -> dict[str, pa.RecordBatch]:
    """The state as record batches; the same state gives the same bytes."""
    known = [(domain, one) for domain, window in state.windows.items() for one in window.known]
    windows = [
        {"domain": domain, "fresh": one.fresh, "mined_at": one.mined_at, "touched": one.touched}
        for domain, one in state.windows.items()
    ]
    patterns = [
        {
            "domain": domain,
            **{name: getattr(one, name) for name in _PATTERN.names if name not in ("domain", "mix")},
            "mix": [
                {"kind": kind, "agent": agent, "share": share} for (kind, agent), share in one.mix.items()
            ],
        }
        for domain, one in known
    ]
    return {
        "windows": pa.RecordBatch.from_pylist(windows, schema=_WINDOW),
        "collaborations": _dump_collaborations(state),
        "patterns": pa.RecordBatch.from_pylist(patterns, schema=_PATTERN),
        "open": _dump_open(state),
    }


def _dump_collaborations(state: State) -> pa.RecordBatch:
    """All windows, column by column: they may hold `HELD_MAX` rows."""
    rows = [one for window in state.windows.values() for one in window.rows]
    columns: dict[str, Any] = dict(
        zip(Collaboration._fields, zip(*rows, strict=True) if rows else repeat(()), strict=False)
    )
    columns["domain"] = [domain for domain, window in state.windows.items() for _ in window.rows]
    made = {"members": _text_lists(columns["members"]), "pairs": _pair_lists(columns["pairs"])}
    found = [
        made[field.name] if field.name in made else pa.array(columns[field.name], field.type)
        for field in _COLLABORATION
    ]
    return pa.RecordBatch.from_arrays(found, schema=_COLLABORATION)


def _dump_open(state: State) -> pa.RecordBatch:
    rows = [
        (*key, *attempt, pairs) for key, attempts in state.open.items() for attempt, pairs in attempts.items()
    ]
    *keys, pairs = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    found = [pa.array(column, field.type) for column, field in zip(keys, list(_OPEN)[:-1], strict=True)]
    return pa.RecordBatch.from_arrays([*found, _pair_lists(pairs)], schema=_OPEN)


def _text_lists(lists: Sequence[Sequence[str]]) -> pa.Array:
    items = pa.array([item for items in lists for item in items], pa.string())
    return arrays.list_of(np.array([len(items) for items in lists], np.int64), items, _TEXTS)


def _pair_lists(lists: Sequence[Sequence[Pair]]) -> pa.Array:
    pairs = [pair for pairs in lists for pair in pairs]
    columns = zip(*pairs, strict=True) if pairs else ((), (), ())
    fields = list(_PAIR.value_type)
    items = [pa.array(column, field.type) for column, field in zip(columns, fields, strict=True)]
    values = pa.StructArray.from_arrays(items, fields=fields)
    return arrays.list_of(np.array([len(pairs) for pairs in lists], np.int64), values, _PAIR)


def load(partition: int, parts: Mapping[str, pa.RecordBatch]) -> State:
    """The state whose `dump` this is."""
    state = State()
    for row in parts["windows"].to_pylist():
        domain = row.pop("domain")
        state.windows[domain] = Window(**row)
    for row in parts["collaborations"].to_pylist():
        window = state.windows[row.pop("domain")]
        pairs = tuple(Pair(**pair) for pair in row.pop("pairs"))
        one = Collaboration(**{**row, "members": tuple(row["members"])}, pairs=pairs)
        window.rows.append(one)
        window.ids.add((one.request_id, one.round))
    for row in parts["patterns"].to_pylist():
        mix = {(item["kind"], item["agent"]): item["share"] for item in row.pop("mix")}
        domain, members, centre = row.pop("domain"), tuple(row.pop("members")), tuple(row.pop("centre"))
        state.windows[domain].known.append(Pattern(**row, members=members, centre=centre, mix=mix))
    for row in parts["open"].to_pylist():
        attempts = state.open.setdefault((row["request_id"], row["round"]), {})
        attempts[row["step"], row["attempt"]] = [Pair(**pair) for pair in row["pairs"]]
    return state


_TEXTS = pa.list_(pa.string())
_PAIR = pa.list_(pa.struct({"first": pa.string(), "second": pa.string(), "score": pa.float64()}))
_WINDOW = pa.schema({"domain": pa.string(), **dict.fromkeys(("fresh", "mined_at", "touched"), pa.int64())})
_OPEN = pa.schema(
    {"request_id": pa.binary(), **dict.fromkeys(("round", "step", "attempt"), pa.int64()), "pairs": _PAIR}
)
_COLLABORATION = pa.schema(
    {
        "domain": pa.string(), "request_id": pa.binary(), "round": pa.int64(), "finished_at": pa.int64(),
        "kind": pa.string(), "members": pa.list_(pa.string()), "score": pa.float64(), "latency_us": pa.int64(),
        "cost_usd_micros": pa.int64(), "pairs": _PAIR,
    }
)  # fmt: skip
_PATTERN = pa.schema(
    {
        "domain": pa.string(), "id": pa.string(), "kind": pa.string(), "members": pa.list_(pa.string()),
        "task_kind": pa.string(), "support": pa.int64(), "score": pa.float64(), "baseline": pa.float64(),
        "effect": pa.float64(), "error": pa.float64(), "persistence": pa.float64(),
        "centre": pa.list_(pa.float64()),
        "mix": pa.list_(pa.struct({"kind": pa.string(), "agent": pa.string(), "share": pa.float64()})),
    }
)  # fmt: skip


def _pairs(state: State, row: Mapping[str, Any]) -> None:
    """Remember who worked on whose output, until the request ends; of an attempt once."""
    key = (row["request_id"], row["round"])
    *before, self = row["team"]
    found = [Pair(first, self, row["score"]) for first in dict.fromkeys(before) if first != self]
    window = state.windows.get(row["domain"])
    if found and (window is None or key not in window.ids):
        state.open.setdefault(key, {}).setdefault((row["step"], row["attempt"]), found)


def _end(state: State, row: Mapping[str, Any], now: int, most: int) -> None:
    """A finished request becomes a collaboration, if several agents had a part in it."""
    attempts = state.open.pop((row["request_id"], row["round"]), {})
    pairs = [pair for found in attempts.values() for pair in found]
    members = tuple(dict.fromkeys([*row["team"], *(name for pair in pairs for name in pair[:2])]))
    if len(members) < 2:
        return
    window = state.windows.get(row["domain"])
    if window is None:
        window = state.windows[row["domain"]] = Window()
    window.touched = now
    window.add(
        Collaboration(
            row["request_id"], row["round"], row["finished_at"], row["task_kind"] or "", members, row["score"],
            row["latency_us"], row["cost_usd_micros"], tuple(pairs),
        ),
        most,
    )  # fmt: skip


def _forget(state: State) -> None:
    for key in list(islice(state.open, max(0, len(state.open) - OPEN_MAX))):
        del state.open[key]
    while sum(len(window.rows) for window in state.windows.values()) > HELD_MAX and len(state.windows) > 1:
        del state.windows[min(state.windows, key=lambda domain: (state.windows[domain].touched, domain))]


def _patterns(domain: str, window: Window, version: int) -> Output:
    found = window.known
    count = len(found)
    times = [one.finished_at for one in window.rows]
    columns = {
        "domain": [domain] * count,
        "pattern": [one.id for one in found],
        "task_kind": [one.task_kind or None for one in found],
        "centre": [list(one.centre) or None for one in found],
        "members": [list(one.members) for one in found],
        **{
            name: [getattr(one, name) for one in found]
            for name in ("kind", "support", "score", "baseline", "effect", "error", "persistence")
        },
        "window_from": np.full(count, min(times), np.int64),
        "window_to": np.full(count, max(times), np.int64),
        "version": np.full(count, version, np.int64),
    }
    return Output("aos.patterns", codec.from_columns("pattern", count, columns), key=domain.encode())
