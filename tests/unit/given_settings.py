"""Changes of settings as they stand on the log, and steps that look at them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pyarrow as pa

from aos.codecs.rows import from_dicts
from aos.streams.live import TOPIC, RuntimeSettings
from aos.streams.processor import Views
from tests.unit.given_fleet import NOW


def message(version: int, *rows: tuple[str, str, Any], change: int = 0) -> pa.RecordBatch:
    """One change: (name, tenant, value) each."""
    same = {"version": version, "change": change.to_bytes(16, "big"), "changed_at": NOW, "changed_by": "me"}
    return from_dicts(
        "setting", [{"name": n, "tenant": t, "value": json.dumps(v), **same} for n, t, v in rows]
    )


def runtime_of(*rows: tuple[str, str, Any]) -> RuntimeSettings:
    """What is in force after these, a change each."""
    runtime = RuntimeSettings()
    for number, row in enumerate(rows, 1):
        assert runtime.apply(b"", message(number, row))
    assert not runtime.refused
    return runtime


def with_runtime(views: Views, *rows: tuple[str, str, Any]) -> Views:
    """What a row or journal processor sees after these changes."""
    runtime = runtime_of(*rows)
    return replace(views, settings=runtime.over(views.settings), views={**views.views, TOPIC: runtime})
