"""How the programs of a run meet: files in one folder, because a child has no other way to its owner.

`<name>.ready` says that a program is prepared, `go` holds the moment at which the load begins, `<name>.json` what the
program has to report.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

LOOK_S = 0.01


def say_ready(folder: Path, name: str) -> None:
    """Tell the owner that this program is prepared."""
    (folder / f"{name}.ready").touch()


def wait_go(folder: Path) -> float:
    """The moment of the start, seconds since the epoch; the owner ends programs that wait in vain."""
    while not (folder / "go").exists():
        time.sleep(LOOK_S)
    return float((folder / "go").read_text())


def say_go(folder: Path, start: float) -> None:
    """Name the moment of the start."""
    _whole(folder / "go", str(start))


def report(folder: Path, name: str, found: Any) -> None:
    """Leave what the owner is to read."""
    _whole(folder / f"{name}.json", json.dumps(found))


def reported(folder: Path, name: str) -> Any:
    """What a program left."""
    return json.loads((folder / f"{name}.json").read_text())


def wait_for(
    folder: Path, names: Iterable[str], ending: str, limit_s: float, alive: Callable[[str], bool]
) -> None:
    """Return when every program has its file; an error says who ended or took too long."""
    ends = time.monotonic() + limit_s
    for name in names:
        path = folder / f"{name}.{ending}"
        while not path.exists():
            if not alive(name) and not path.exists():
                raise RuntimeError(f"{name} ended early; its log ends with:\\n{tail(folder / f'{name}.log')}")
            if time.monotonic() > ends:
                raise RuntimeError(f"{name} said nothing for {limit_s:.0f} s")
            time.sleep(LOOK_S)


def tail(log: Path) -> str:
    """The end of a log."""
    return log.read_text(errors="replace")[-2000:] if log.exists() else "(no log)"


def _whole(path: Path, text: str) -> None:
    """Write so that nobody reads half of it."""
    fresh = path.with_suffix(path.suffix + ".new")
    fresh.write_text(text)
    fresh.replace(path)
