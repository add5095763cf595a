"""How commands print: rows as an aligned table or as JSON, always on stdout; notes on stderr."""

from __future__ import annotations

import base64
import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer


class Form(StrEnum):
    """``-o``: text for people, json for programs."""

    text = "text"
    json = "json"


FormOption = Annotated[Form, typer.Option("-o", "--output", help="text or json")]


def emit(rows: Sequence[Mapping[str, Any]], form: Form, columns: Sequence[str] | None = None) -> None:
    """Print rows; `columns` chooses and orders those of the table (JSON has all)."""
    if form is Form.json:
        print(json.dumps([plain(row) for row in rows], indent=2))
        return
    names = list(columns or (rows[0] if rows else ()))
    table = [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in [names, *table]) for i in range(len(names))]
    for line in [names, *table]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def emit_one(row: Mapping[str, Any], form: Form) -> None:
    """Print one thing: its names and values, or one JSON object."""
    if form is Form.json:
        print(json.dumps(plain(row), indent=2))
        return
    width = max((len(name) for name in row), default=0)
    for name, value in row.items():
        if value is not None:
            print(f"{name.ljust(width)}  {_cell(value)}")


def note(text: str) -> None:
    """A line for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def plain(value: Any) -> Any:
    """What JSON can say: ids as hex, other bytes as text or base64, times as ISO 8601."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _bytes(bytes(value))
    if isinstance(value, (datetime.datetime, datetime.date)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return float(value) if hasattr(value, "__float__") else str(value)


def _bytes(value: bytes) -> str | dict[str, str]:
    if len(value) == 16:
        return value.hex()
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _cell(value: Any) -> str:
    value = plain(value)
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, dict)):
        return json.dumps(value)
    return str(value)
