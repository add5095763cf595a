"""What a request may ask: limits, the shape of a workflow, and a request taken apart into steps.

A request that is readable but wrong gets one code and a sentence, the first of those in this order: values outside
their range, times, tensors, sizes, nothing asked, then the workflow (too many steps, names, unknown steps, cycles).
All is computed on columns; only workflows and tensors are looked at one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aos.agents import encoding
from aos.codecs.columns import array, ints, lengths, list_of, offsets, valid
from aos.codecs.fields import I16S, TEXTS
from aos.codecs.settings import Settings

ID_BYTES_MAX = 256
NAME_BYTES_MAX = 128  # of a domain, kind, step, media type, trace context
NAMES_BYTES_MAX = (
    512  # of all names of a request or of a step: they travel with every task, match and ready row
)
REQUIRE_MAX = 62  # capabilities of a step: a bit each in `covers`
BUDGET_USD_MICROS_MAX = 10**15
BUDGET_CPU_US_MAX = 10**12
DEADLINE_MS_MAX = 366 * 86_400_000
TIMEOUT_MS_MIN, TIMEOUT_MS_MAX = 10, 7 * 86_400_000
WORKFLOW_BYTES_MAX = 1024 * 1024  # of texts and payloads of all steps, inherited ones counted for each step
FUTURE_US = 86_400_000_000  # clocks ahead by less are clamped
PRIORITY_DEFAULT = 2
SINGLE_STEP = "main"  # the name of the step of a request that is no workflow
TENSOR_TYPE = "application/vnd.aos.tensor"
_DAY_US = 86_400_000_000


class Refusal(NamedTuple):
    """Why a request is rejected."""

    code: str
    message: str


class Graph(NamedTuple):
    """A workflow by step numbers, in the order given."""

    after: list[list[int]]
    judges: list[int]  # -1 for none


class Checked(NamedTuple):
    """What `check` found: refusals and graphs by row."""

    refused: dict[int, Refusal]
    graphs: dict[int, Graph]


class Steps(NamedTuple):
    """Steps of many requests, those of one request together and in the order given."""

    owner: np.ndarray  # int64 [m]: row of the request
    number: np.ndarray  # int16 [m]: number of the step in its request
    counts: np.ndarray  # int64 [n]: steps of each request
    columns: dict[str, pa.Array]  # as in LEDGER_STEP, without embedding and surface
    texts: pa.Array  # the distinct texts among the steps: those that inherit one share it
    text: np.ndarray  # int64 [m]: which of `texts` each step has


def check(rows: pa.RecordBatch, appended_at: np.ndarray, settings: Settings) -> Checked:
    """Which of the `rows` (record request) are refused, and the graphs of the workflows that are not.

    `appended_at`: int64 [n], microseconds, when each row reached the broker.
    """
    refused: dict[int, Refusal] = {}

    def refuse(where: np.ndarray, code: str, message: str) -> None:
        if where.any():
            for row in np.flatnonzero(where):
                refused.setdefault(int(row), Refusal(code, message))

    _ranges(rows, refuse)
    times = rows["requested_at"]
    if times.null_count < len(times):
        requested = np.where(valid(times), ints(times, 0), appended_at)
        late = requested > appended_at + FUTURE_US
        early = requested < appended_at - settings.past_days * _DAY_US
        refuse(late, "AOS2012", "requested_at is more than a day after the broker's clock")
        refuse(early, "AOS2012", f"requested_at is more than {settings.past_days} days ago")
    for row, refusal in _tensors(rows).items():
        refused.setdefault(row, refusal)
    sizes = _bytes(rows)
    too_large = sizes > settings.payload_bytes_max
    refuse(too_large, "AOS2004", f"text and payload take more than {settings.payload_bytes_max} bytes")
    workflow = lengths(rows["steps"]) > 0
    refuse(
        ~workflow & (lengths(rows["text"]) == 0) & ~valid(rows["payload"]) & (lengths(rows["tensor"]) == 0),
        "AOS2009", "neither text nor payload, tensor or steps",
    )  # fmt: skip
    return Checked(refused, _workflows(rows, workflow, settings, refused))


def _ranges(rows: pa.RecordBatch, refuse: Any) -> None:
    for name, low, high in (
        ("priority", 0, 3),
        ("deadline_ms", 1, DEADLINE_MS_MAX),
        ("budget_usd_micros", 0, BUDGET_USD_MICROS_MAX),
        ("budget_cpu_us", 1, BUDGET_CPU_US_MAX),
    ):
        if rows[name].null_count == len(rows[name]):
            continue
        values = ints(rows[name], low)
        refuse((values < low) | (values > high), "AOS2010", f"{name} must be from {low} to {high}")
    if rows["policy"].null_count < rows.num_rows:
        known = pc.is_in(rows["policy"], pa.array(["learned", "round-robin", None]))
        refuse(~known.to_numpy(zero_copy_only=False), "AOS2010", "policy must be learned or round-robin")
    for name, most in (
        ("id", ID_BYTES_MAX),
        ("traceparent", NAME_BYTES_MAX),
        ("domain", NAME_BYTES_MAX),
        ("task_kind", NAME_BYTES_MAX),
        ("content_type", NAME_BYTES_MAX),
    ):
        if rows[name].null_count < rows.num_rows:
            refuse(lengths(rows[name]) > most, "AOS2010", f"{name} is longer than {most} bytes")
    refuse(lengths(rows["require"]) > REQUIRE_MAX, "AOS2010", f"require has more than {REQUIRE_MAX} names")
    refuse(_names(rows) > NAMES_BYTES_MAX, "AOS2010", f"its names take more than {NAMES_BYTES_MAX} bytes")


def _names(rows: pa.RecordBatch) -> np.ndarray:
    """Bytes of the names that travel with a request's tasks."""
    lists: np.ndarray = _list_bytes(rows["require"]) + _list_bytes(rows["pin"]) + _list_bytes(rows["exclude"])
    return np.asarray(lists + lengths(rows["domain"]) + lengths(rows["task_kind"]))


def _bytes(rows: pa.RecordBatch) -> np.ndarray:
    """Bytes of text and payload of each request; a tensor without payload is the payload."""
    tensors = np.where(valid(rows["payload"]), 0, lengths(rows["tensor"]) * 4)
    return np.asarray(lengths(rows["text"]) + lengths(rows["payload"]) + tensors)


def _tensors(rows: pa.RecordBatch) -> dict[int, Refusal]:
    refused: dict[int, Refusal] = {}
    if rows["tensor_shape"].null_count == rows.num_rows:
        return refused
    sizes = lengths(rows["tensor"])
    for row, shape in enumerate(rows["tensor_shape"].to_pylist()):
        if shape is not None and (min(shape, default=1) < 0 or math.prod(shape) != sizes[row] or not shape):
            shown = f"shape {shape[:8]} of {sizes[row]} values"
            refused[row] = Refusal("AOS1010", f"tensor_shape does not fit: {shown[:200]}")
    return refused


def _workflows(
    rows: pa.RecordBatch, workflow: np.ndarray, settings: Settings, refused: dict[int, Refusal]
) -> dict[int, Graph]:
    """Check the workflows among `rows`; add to `refused`, return the graphs of the others."""
    graphs: dict[int, Graph] = {}
    if not workflow.any():
        return graphs
    steps = rows["steps"].flatten()
    counts = lengths(rows["steps"])
    ends = np.cumsum(counts)
    wrong = _step_refusals(rows, steps, np.repeat(np.arange(len(counts)), counts), settings.payload_bytes_max)
    names = steps.field("name").to_pylist()
    after = steps.field("after").to_pylist()
    judges = steps.field("judges").to_pylist()
    for row in np.flatnonzero(workflow):
        if int(row) in refused:
            continue
        part = slice(int(ends[row] - counts[row]), int(ends[row]))
        found = graph(names[part], after[part], judges[part], settings.steps_max)
        if isinstance(found, Graph) and int(row) in wrong:
            found = wrong[int(row)]
        if isinstance(found, Graph):
            graphs[int(row)] = found
        else:
            refused[int(row)] = found
    return graphs


def _step_refusals(
    rows: pa.RecordBatch, steps: pa.StructArray, owner: np.ndarray, payload_bytes_max: int
) -> dict[int, Refusal]:
    """What is wrong with single steps, by request."""
    wrong: dict[int, Refusal] = {}

    def refuse(where: np.ndarray, code: str, message: str) -> None:
        for step in np.flatnonzero(where):
            wrong.setdefault(
                int(owner[step]), Refusal(code, f"step {steps[int(step)]['name']}: {message}"[:300])
            )

    timeouts = ints(steps.field("timeout_ms"), TIMEOUT_MS_MIN)
    outside = (timeouts < TIMEOUT_MS_MIN) | (timeouts > TIMEOUT_MS_MAX)
    refuse(outside, "AOS2010", f"timeout_ms must be from {TIMEOUT_MS_MIN} to {TIMEOUT_MS_MAX}")
    names = sum(_list_bytes(steps.field(name)) for name in ("require", "pin", "exclude"))
    names = names + lengths(steps.field("name")) + lengths(steps.field("task_kind")) + _names(rows)[owner]
    refuse(names > NAMES_BYTES_MAX, "AOS2010", f"its names take more than {NAMES_BYTES_MAX} bytes")
    many = lengths(steps.field("require")) > REQUIRE_MAX
    refuse(many, "AOS2010", f"require has more than {REQUIRE_MAX} names")
    sizes = np.zeros(len(owner), np.int64)
    for name in ("text", "payload"):
        own, inherited = steps.field(name), lengths(rows[name])
        if name == "payload":
            inherited = _bytes(rows) - lengths(rows["text"])
        sizes += np.where(valid(own), lengths(own), inherited[owner])
    refuse(sizes > payload_bytes_max, "AOS2004", f"text and payload take more than {payload_bytes_max} bytes")
    whole = np.bincount(owner, sizes, rows.num_rows)
    refuse(
        whole[owner] > WORKFLOW_BYTES_MAX, "AOS2004", f"all steps take more than {WORKFLOW_BYTES_MAX} bytes"
    )
    return wrong


def graph(
    names: list[str], after: list[list[str] | None], judges: list[str | None], steps_max: int
) -> Graph | Refusal:
    """A workflow's steps by number, or what is wrong with it."""
    if len(names) > steps_max:
        return Refusal("AOS2003", f"{len(names)} steps, at most {steps_max}")
    numbers = {name: number for number, name in enumerate(names)}
    if len(numbers) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        return Refusal("AOS2008", f"two steps are named {twice[:NAME_BYTES_MAX]}")
    if "" in numbers:
        return Refusal("AOS2010", "a step's name is empty")
    before: list[list[int]] = []
    verdicts: list[int] = []
    for name, wanted, judged in zip(names, after, judges, strict=True):
        named = [
            *(wanted or ()),
            *((judged,) if judged is not None else ()),
        ]  # a judge comes after what it judges
        for other in named:
            if other not in numbers:
                return Refusal("AOS2002", f"step {name} names {other[:NAME_BYTES_MAX]}, which is no step")
        before.append(sorted({numbers[other] for other in named}))
        verdicts.append(-1 if judged is None else numbers[judged])
    if not _acyclic(before):
        return Refusal("AOS2001", "a step comes after itself")
    return Graph(before, verdicts)


def _acyclic(before: list[list[int]]) -> bool:
    """Whether the steps can be put in an order in which each comes after those `before` it."""
    done: set[int] = set()
    left = list(range(len(before)))
    while left:
        rest = [number for number in left if not done.issuperset(before[number])]
        if len(rest) == len(left):
            return False
        done.update(left)
        done.difference_update(rest)
        left = rest
    return True


def explode(rows: pa.RecordBatch, graphs: Mapping[int, Graph]) -> Steps:
    """The steps of good requests (`graphs` by row of these `rows`); a request that is no workflow has one."""
    payload, content_type = _payloads(rows)
    inherited = {
        "task_kind": rows["task_kind"],
        "text": rows["text"],
        "payload": payload,
        "require": rows["require"],
        "pin": rows["pin"],
        "exclude": rows["exclude"],
    }
    single = rows.num_rows
    if graphs:
        steps = _taken_apart(rows, graphs, inherited, content_type)
    else:
        columns = inherited | {
            "name": pa.repeat(SINGLE_STEP, single),
            "after": list_of(np.zeros(single, np.int32), pa.array([], pa.int16()), I16S),
            "judges": array(np.full(single, -1), pa.int16()),
            "timeout_ms": pa.nulls(single, pa.int64()),
            "content_type": content_type,
        }
        owner = np.arange(single)
        counts = np.ones(single, np.int64)
        steps = Steps(owner, np.zeros(single, np.int16), counts, columns, rows["text"], owner)
    for name in ("require", "pin", "exclude"):
        steps.columns[name] = _filled(steps.columns[name])
    return steps


def _taken_apart(
    rows: pa.RecordBatch, graphs: Mapping[int, Graph], inherited: dict[str, pa.Array], content_type: pa.Array
) -> Steps:
    """`explode` where there are workflows: own columns of a step, the request's where they are null."""
    steps = rows["steps"].flatten()
    given = lengths(rows["steps"])
    count = np.maximum(given, 1)
    owner = np.repeat(np.arange(rows.num_rows), count)
    number = (np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)).astype(np.int16)
    of_workflow = given[owner] > 0
    flat = np.where(of_workflow, np.cumsum(of_workflow) - 1, -1)  # place of each step in `steps`
    columns: dict[str, pa.Array] = {"content_type": taken(content_type, owner)}
    texts, text = rows["text"], owner
    for name, whole in inherited.items():
        own = steps.field(name)
        if own.null_count == len(own):
            columns[name] = taken(whole, owner)
            continue
        mine = of_workflow & valid(own)[flat]
        both, take = pa.concat_arrays([own, whole]), np.where(mine, flat, len(steps) + owner)
        columns[name] = both.take(pa.array(take))
        if name == "text":
            used, text = np.unique(take, return_inverse=True)
            texts = both.take(pa.array(used))
        elif name == "payload":
            columns["content_type"] = content_type.take(pa.array(np.where(mine, 0, owner), mask=mine))
    places = pa.array(flat, mask=~of_workflow)
    names = pa.concat_arrays([steps.field("name"), pa.array([SINGLE_STEP])])
    columns["name"] = names.take(pa.array(np.where(of_workflow, flat, len(steps))))
    columns["timeout_ms"] = taken(steps.field("timeout_ms"), places)
    columns["after"], columns["judges"] = _shapes(np.cumsum(count) - count, len(owner), graphs)
    return Steps(owner, number, count, columns, texts, text)


def _shapes(firsts: np.ndarray, count: int, graphs: Mapping[int, Graph]) -> tuple[pa.Array, pa.Array]:
    """Columns `after` and `judges` of `count` steps; `firsts` are the places of the requests' first steps."""
    after: list[Sequence[int]] = [()] * count
    judges = [-1] * count
    for row, shape in graphs.items():
        part = slice(int(firsts[row]), int(firsts[row]) + len(shape.judges))
        after[part], judges[part] = shape.after, shape.judges
    numbers = pa.array(list(chain.from_iterable(after)), pa.int16())
    return list_of(np.array([len(one) for one in after]), numbers, I16S), pa.array(judges, pa.int16())


def taken(column: pa.Array, places: np.ndarray | pa.Array) -> pa.Array:
    """The elements at `places`; of a column without values, nulls."""
    if column.null_count == len(column):
        return pa.nulls(len(places), column.type)
    return column.take(places if isinstance(places, pa.Array) else pa.array(places))


def _payloads(rows: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
    """Payload and media type of each request; a tensor without payload becomes the payload."""
    payload, content_type = rows["payload"], rows["content_type"]
    alone = ~valid(payload) & (lengths(rows["tensor"]) > 0)
    if not alone.any():
        return payload, content_type
    values, types = payload.to_pylist(), content_type.to_pylist()
    for row in np.flatnonzero(alone):
        tensor = rows["tensor"][int(row)].values.to_numpy(zero_copy_only=False)
        shape = rows["tensor_shape"][int(row)].as_py() or [len(tensor)]
        values[row] = tensor.astype("<f4").tobytes()
        types[row] = f"{TENSOR_TYPE}; dtype=float32; shape={','.join(map(str, shape))}"
    return pa.array(values, pa.binary()), pa.array(types, pa.string())


def readings(rows: pa.RecordBatch, steps: Steps) -> encoding.Reading:
    """What each step's text is; where a request has a tensor it stands for the vector of its text."""
    found = encoding.read(steps.texts)
    if not np.array_equal(steps.text, np.arange(len(steps.texts))):
        found = found.take(steps.text)
    if rows["tensor"].null_count == rows.num_rows:
        return found
    own = np.zeros(len(steps.owner), bool)
    workflow = lengths(rows["steps"]) > 0
    own[workflow[steps.owner]] = valid(rows["steps"].flatten().field("text"))
    for row in np.flatnonzero(lengths(rows["tensor"])):
        tensor = rows["tensor"][int(row)].values.to_numpy(zero_copy_only=False)
        found.vectors[(steps.owner == row) & ~own] = encoding.project(tensor)
    return found


def _list_bytes(column: pa.Array) -> np.ndarray:
    """Bytes of all texts of each list."""
    if column.null_count == len(column):
        return np.zeros(len(column), np.int64)
    # the texts begin and end where the lists say, in the texts' own offsets
    ends = offsets(column.values)[offsets(column)] if len(column.values) else np.zeros(len(column) + 1, int)
    found: np.ndarray = np.subtract(ends[1:], ends[:-1], dtype=np.int64)
    return np.where(valid(column), found, 0) if column.null_count else found


def _filled(column: pa.Array) -> pa.Array:
    """A list column with empty lists for nulls."""
    if column.null_count == 0:
        return column
    items = _NO_TEXTS if column.null_count == len(column) else column.flatten()
    return list_of(lengths(column), items, TEXTS)


_NO_TEXTS = pa.array([], pa.string())
