"""A `Learner` at rest: record batches by name and back, byte for byte, nothing pickled.

cells (posteriors and the values each detector is rebuilt from), lessons (oldest first), models (river's weights,
intercepts and moments), centres (sums of embeddings). Gram matrices are symmetric: half is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from aos.analytics.beliefs import TERMS
from aos.analytics.learner import Learner
from aos.analytics.lessons import LESSONS_MAX, Lessons
from aos.analytics.posterior import SUMS, Cells
from aos.analytics.river_models import Detector, OnlineModels
from aos.codecs.fields import EMBEDDING_SIZE, SURFACE_SIZE

_UPPER = np.triu_indices(TERMS)
_UPPER_FLAT = _UPPER[0] * TERMS + _UPPER[1]
_DOUBLES = pa.list_(pa.float64())


def dump(learner: Learner) -> dict[str, pa.RecordBatch]:
    """Everything the learner is; the same learner gives the same bytes."""
    return {
        "cells": _dump_cells(learner),
        "lessons": _dump_lessons(learner.lessons),
        "models": _dump_models(learner.models),
        "centres": _dump_centres(learner),
    }


def load(parts: Mapping[str, pa.RecordBatch]) -> Learner:
    """The learner whose `dump` this is."""
    learner = Learner(lessons=_load_lessons(parts["lessons"]))
    _load_cells(learner, parts["cells"])
    values: dict[str, list[tuple[str, str, float]]] = {}
    for row in parts["models"].to_pylist():
        values.setdefault(row["domain"], []).append((row["model"], row["name"], row["value"]))
    learner.models = {domain: OnlineModels.load(found) for domain, found in values.items()}
    centres = parts["centres"]
    vectors = _matrix(centres.column("sum"), EMBEDDING_SIZE)
    keys = zip(centres.column("domain").to_pylist(), centres.column("agent").to_pylist(), strict=True)
    learner.centres = {key: vectors[row].copy() for row, key in enumerate(keys)}
    return learner


def _dump_cells(learner: Learner) -> pa.RecordBatch:
    cells, count = learner.cells, len(learner.cells.keys)
    domains, kinds, agents = zip(*cells.keys, strict=True) if cells.keys else ((), (), ())
    grams = cells.grams[:count].reshape(count, TERMS * TERMS).take(_UPPER_FLAT, axis=1)
    columns: dict[str, Any] = {
        "domain": pa.array(domains, pa.string()),
        "kind": pa.array(kinds, pa.string()),
        "agent": pa.array(agents, pa.string()),
        "gram": _fixed(grams, len(_UPPER[0])),
        "moment": _fixed(cells.moments[:count], TERMS),
        "square": cells.squares[:count],
        "sums": _fixed(cells.sums[:count], len(SUMS)),
        "lessons": cells.lessons[:count],
        "touched": cells.touched[:count],
        "drift_count": cells.drift_count[:count],
        "drifted_at": cells.drifted_at[:count],
        "watched": _watched(learner),
    }
    return pa.RecordBatch.from_pydict(columns)


def _watched(learner: Learner) -> pa.ListArray:
    """The values of each cell's detector."""
    found = [learner.detectors.get(key) for key in learner.cells.keys]
    values = b"".join([one.values.tobytes() for one in found if one is not None])
    offsets = np.zeros(len(found) + 1, np.int32)
    np.cumsum([0 if one is None else len(one.values) for one in found], out=offsets[1:])
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(np.frombuffer(values, np.float64)), type=_DOUBLES
    )


def _load_cells(learner: Learner, rows: pa.RecordBatch) -> None:
    cells = Cells()
    cells.place(
        list(zip(*(rows.column(name).to_pylist() for name in ("domain", "kind", "agent")), strict=True))
    )
    count = rows.num_rows
    halves = _matrix(rows.column("gram"), len(_UPPER[0]))
    cells.grams[:count, _UPPER[0], _UPPER[1]] = halves
    cells.grams[:count, _UPPER[1], _UPPER[0]] = halves
    cells.moments[:count] = _matrix(rows.column("moment"), TERMS)
    cells.sums[:count] = _matrix(rows.column("sums"), len(SUMS))
    cells.squares[:count] = rows.column("square").to_numpy()
    for name in ("lessons", "touched", "drift_count", "drifted_at"):
        getattr(cells, name)[:count] = rows.column(name).to_numpy()
    learner.cells = cells
    watched = zip(cells.keys, rows.column("watched").to_pylist(), strict=True)
    learner.detectors = {key: Detector(values) for key, values in watched if values}


def _dump_lessons(lessons: Lessons) -> pa.RecordBatch:
    made = np.arange(lessons.made - len(lessons.keys), lessons.made)
    slots = made % LESSONS_MAX
    first = int(slots[0]) if len(slots) else 0  # the oldest; before it stand the newest
    return pa.RecordBatch.from_pydict(
        {
            "serial": made.astype(np.int64),
            "key": pa.array(lessons.keys[first:] + lessons.keys[:first], pa.binary()),
            "name": pa.array(lessons.names[first:] + lessons.names[:first], pa.string()),
            "cell": lessons.cells[slots],
            "number": lessons.numbers[slots],
            "score": lessons.scores[slots],
            "surface": _fixed(lessons.surfaces[slots], SURFACE_SIZE),
        }
    )


def _load_lessons(rows: pa.RecordBatch) -> Lessons:
    lessons = Lessons()
    count = rows.num_rows
    if not count:
        return lessons
    serials = rows.column("serial").to_numpy()
    lessons.made = int(serials[-1]) + 1
    slots = serials % LESSONS_MAX
    keys, names = rows.column("key").to_pylist(), rows.column("name").to_pylist()
    lessons.keys, lessons.names = [b""] * count, [""] * count
    for slot, key, name in zip(slots.tolist(), keys, names, strict=True):
        lessons.keys[slot], lessons.names[slot] = key, name
        lessons.slots[key] = slot
    lessons.heads[slots] = np.frombuffer(b"".join(key[:8] for key in keys), np.uint64)
    lessons.cells[slots] = rows.column("cell").to_numpy()
    lessons.numbers[slots] = rows.column("number").to_numpy()
    lessons.scores[slots] = rows.column("score").to_numpy()
    lessons.surfaces[slots] = _matrix(rows.column("surface"), SURFACE_SIZE)
    return lessons


def _dump_models(models: Mapping[str, OnlineModels]) -> pa.RecordBatch:
    parts = [(domain, model.dump()) for domain, model in models.items()]
    found = [value for _, values in parts for value in values]
    names, features, values = zip(*found, strict=True) if found else ((), (), ())
    text = pa.string()
    return pa.RecordBatch.from_pydict(
        {
            "domain": pa.array([domain for domain, values in parts for _ in values], text),
            "model": pa.array(names, text),
            "name": pa.array(features, text),
            "value": pa.array(values, pa.float64()),
        }
    )


def _dump_centres(learner: Learner) -> pa.RecordBatch:
    sums = list(learner.centres.values())
    vectors = np.concatenate(sums) if sums else np.zeros(0, np.float32)
    return pa.RecordBatch.from_pydict(
        {
            "domain": pa.array([key[0] for key in learner.centres], pa.string()),
            "agent": pa.array([key[1] for key in learner.centres], pa.string()),
            "sum": _fixed(vectors, EMBEDDING_SIZE),
        }
    )


def _fixed(values: np.ndarray, size: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), size)


def _matrix(column: pa.Array, size: int) -> np.ndarray:
    values: np.ndarray = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), size)
    return values
