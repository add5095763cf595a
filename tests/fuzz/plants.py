"""Decoders that are broken on purpose: each must be reported, else the oracle proves nothing."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from aos.codecs import json as objects
from aos.codecs import wire
from aos.streams import gather

Undo = Callable[[], None]


def _replace(module: Any, name: str, made: Any) -> Undo:
    before = getattr(module, name)
    setattr(module, name, made)
    return lambda: setattr(module, name, before)


def no_checksum() -> Undo:
    """Headers are not looked at."""
    return _replace(wire, "_check_headers", lambda value, headers, record: None)


def no_nulls() -> Undo:
    """Nulls pass where none may be: nothing is fitted when the schema is the record's."""
    real = wire.fit

    def fit(rows: Any, record: Any, **options: Any) -> Any:
        return (rows, {}) if rows.schema == record.schema else real(rows, record, **options)

    return _replace(wire, "fit", fit)


def no_finiteness() -> Undo:
    """NaN and infinities pass."""
    return _replace(wire, "finite", lambda rows, record: {})


def no_types() -> Undo:
    """Any type passes."""
    return _replace(wire, "_check_types", lambda schema: None)


def no_keys() -> Undo:
    """A JSON key may stand twice."""
    return _replace(objects, "_check_keys", lambda value: None)


def lost_rows() -> Undo:
    """gather forgets the dead letters of rows."""
    return _replace(gather.DeadLetters, "rows", lambda self, raw, bad: None)


def crash() -> Undo:
    """A message of nine rows or more kills the process, as pyarrow does when it is not made to validate."""
    real = wire._read

    def read(value: bytes, headers: Any, record: Any) -> Any:
        found = real(value, headers, record)
        if found[0].num_rows > 8:
            ctypes.string_at(0)
        return found

    return _replace(wire, "_read", read)


def hang() -> Undo:
    """A message of nine rows or more is never done."""
    real = wire._read

    def read(value: bytes, headers: Any, record: Any) -> Any:
        found = real(value, headers, record)
        while found[0].num_rows > 8:
            pass
        return found

    return _replace(wire, "_read", read)


PLANTS: dict[str, Callable[[], Undo]] = {
    one.__name__.replace("_", "-"): one
    for one in (no_checksum, no_nulls, no_finiteness, no_types, no_keys, lost_rows, crash, hang)
}
SEEN_AS = dict.fromkeys(PLANTS, "silent_accepts") | {"crash": "crashes", "hang": "hangs"}
# a target that meets the fault soon; all, where nothing stands here
WHERE: dict[str, tuple[str, ...]] = dict.fromkeys(PLANTS, ()) | {
    "no-keys": ("--target", "json"),
    "lost-rows": ("--target", "admit"),
}
