"""Where no secret may be: command lines of all processes, and files."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

NO_TEXT = (".index", ".timeindex")  # of Kafka's logs: numbers, and 10 MiB each


class Watched:
    """Command lines of all processes, while it runs."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.wait(0.05):
            for process in Path("/proc").iterdir():
                if process.name.isdigit():
                    try:
                        self.seen.add((process / "cmdline").read_bytes())
                    except OSError:
                        continue  # it ended while we looked

    def stop(self) -> set[bytes]:
        self._end.set()
        self._thread.join()
        return self.seen


def in_files(folder: Path, secrets: dict[str, str], but: Iterable[str]) -> list[str]:
    """Which secret stands in which file of a folder; `but`: names of files or folders below it that may hold some."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in NO_TEXT:
            continue
        if path.is_file() and not set(path.relative_to(folder).parts) & set(but):
            body = path.read_bytes()
            found += [f"{name} in {path}" for name, secret in secrets.items() if secret.encode() in body]
    return found
