"""What agents at work may ask for, checked at the edge: a child as any request is, a change of context as JSON.

A call whose head is wrong (no token, an attempt below 1) is a dead letter, because nobody could be answered; a child
that is wrong in itself goes on with its code, and its agent is told. Whether the attempt is the caller's only supervise
can say.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa

from aos.agents import encoding, requests
from aos.agents.admission import Refused, ranges_of_calls
from aos.agents.ledger_calls import CONTEXT_BYTES_MAX
from aos.codecs import rows as make
from aos.codecs.columns import array, ints, list_of, valid
from aos.codecs.errors import CODES, RecordError
from aos.codecs.fields import TIME
from aos.codecs.records_flow import LEDGER
from aos.codecs.settings import Settings

NESTED_MAX = 32  # of a value in a context: whoever reads it may have a small stack
_ASKED = (
    "text", "payload", "content_type", "task_kind", "require", "pin", "exclude", "deadline_ms", "budget_usd_micros",
    "budget_cpu_us",
)  # fmt: skip
_STEPS = LEDGER.schema.field("steps").type


def check(rows: pa.RecordBatch, partitions: int) -> Refused:
    """Rows (record call) that nobody can answer, with the reason; `partitions` of the ledger."""
    refused = ranges_of_calls(rows, partitions)
    contexts = rows["context"].to_pylist()
    for row, action in enumerate(rows["action"].to_pylist()):
        if action == "share" and row not in refused:
            wrong = _wrong(contexts[row])
            if wrong is not None:
                refused[row] = RecordError("AOS1014", f"context {wrong}")
    return refused


def _wrong(context: bytes | None) -> str | None:
    """Why these are no changes of a context."""
    if context is None or len(context) > CONTEXT_BYTES_MAX:
        return f"must be given, and have at most {CONTEXT_BYTES_MAX} bytes"
    try:
        found = json.loads(context, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {str(error)[:200]}"
    if not isinstance(found, dict):
        return "must be a JSON object"
    return None if _flat(found) else f"is nested more than {NESTED_MAX} deep"


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    found = float(text)
    if not math.isfinite(found):
        raise ValueError(f"{text[:40]} is too large a number")
    return found


def _flat(found: Any) -> bool:
    """Whether it is nested at most NESTED_MAX deep; without recursion."""
    level = [found]
    for _ in range(NESTED_MAX):
        inner = [list(v.values()) if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))]
        level = [value for values in inner for value in values]
        if not level:
            return True
    return False


def delegated(rows: pa.RecordBatch, appended_at: np.ndarray, settings: Settings) -> dict[str, Any]:
    """The ledger's columns of children that are asked for: one step each, or why it is refused."""
    count = rows.num_rows
    asked = make.from_columns("request", count, {name: rows[name] for name in _ASKED})
    checked = requests.check(asked, appended_at, settings).refused
    good = np.setdiff1d(np.arange(count), list(checked))
    steps = pa.nulls(count, _STEPS)
    if len(good):
        places = np.full(count, -1)
        places[good] = np.arange(len(good))
        steps = _steps(asked.take(pa.array(good))).take(pa.array(places, mask=places < 0))
    codes = [checked[row].code if row in checked else None for row in range(count)]
    words = [
        f"{CODES[checked[row].code].message}: {checked[row].message}"[:500] if row in checked else None
        for row in range(count)
    ]
    deadline = appended_at + ints(rows["deadline_ms"], 0) * 1000
    return {
        "deadline_at": array(deadline, TIME, ~valid(rows["deadline_ms"])),
        "budget_usd_micros": rows["budget_usd_micros"],
        "budget_cpu_us": rows["budget_cpu_us"],
        "task_kind": rows["task_kind"],
        "steps": steps,
        "code": codes,
        "message": words,
    }


def _steps(asked: pa.RecordBatch) -> pa.ListArray:
    """The one step of each of these requests, with all that match and its agent will need."""
    steps = requests.explode(asked, {})
    found = requests.readings(asked, steps)
    count = asked.num_rows
    priority = np.full(count, requests.PRIORITY_DEFAULT)
    surface = encoding.surface(
        found.features, steps.columns["payload"], priority, ints(asked["budget_cpu_us"], 0)
    )
    columns = dict(steps.columns)
    type = _STEPS.value_type
    for name, values in (("embedding", found.vectors), ("surface", surface)):
        columns[name] = pa.FixedSizeListArray.from_arrays(
            pa.array(values.reshape(-1)), type=type.field(name).type
        )
    structs = pa.StructArray.from_arrays([columns[field.name] for field in type], fields=list(type))
    return list_of(np.ones(count, np.int64), structs, _STEPS)
