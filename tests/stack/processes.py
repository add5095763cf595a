"""Who works in a folder: what a command that ended must not have left behind."""

from __future__ import annotations

import os
from pathlib import Path


def processes_in(folder: Path) -> dict[int, str]:
    """Processes that work in a folder: it stands in their command line or environment."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            command, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended while we looked
        if str(folder).encode() in command + environment:
            found[int(process.name)] = command.decode(errors="replace")[:200]
    return found
