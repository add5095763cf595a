"""Which pieces of which files the demo works on: real files of this machine, stratified by kind and size."""

from __future__ import annotations

import random
import sysconfig
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aos.codecs.errors import StackError

PIECE_BYTES_MAX = 30_000  # with the request's text it fits the 32 KiB a payload may have
PIECE_BYTES_MIN = 512
FILES_MAX = 20_000  # how many files are looked at
KINDS = {
    ".py": "python", ".pyc": "bytecode", ".so": "binary", ".a": "binary", ".o": "binary", ".h": "c", ".c": "c",
    ".txt": "text", ".md": "text", ".rst": "text", ".json": "data", ".csv": "data", ".xml": "data", ".html": "data",
    ".zip": "packed", ".gz": "packed", ".whl": "packed", ".png": "packed", ".bz2": "packed", ".xz": "packed",
}  # fmt: skip
SIZES = ((2_000, "small"), (8_000, "medium"), (PIECE_BYTES_MAX, "large"))
BUDGET_US = (1_000, 100_000)  # CPU time, drawn on a log scale
PER_BYTE = ((0.7, "tight"), (3.7, "fair"), (float("inf"), "ample"))  # CPU time for each byte, microseconds


@dataclass(frozen=True)
class Piece:
    """A file, or a part of a larger one, and the CPU time one attempt at it may take."""

    path: Path
    offset: int
    size: int
    kind: str
    budget_us: int

    @property
    def task_kind(self) -> str:
        """What a client knows of the work: how much time there is for each byte."""
        return "squeeze-" + _class(self.budget_us / self.size, PER_BYTE)

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def pieces(count: int, seed: int, folder: Path | None = None) -> list[Piece]:
    """`count` pieces drawn by the seed, evenly over the strata (kind, size) that there are."""
    randomly = random.Random(seed)
    root = folder or Path(sysconfig.get_path("stdlib"))
    strata = _strata(root, randomly)
    if not strata:
        raise StackError(
            f"no file of at least {PIECE_BYTES_MIN} bytes in {root}", "name another folder with --files"
        )
    names = sorted(strata)
    found = []
    for number in range(count):
        path, offset, size = randomly.choice(strata[names[number % len(names)]])
        budget = round(BUDGET_US[0] * (BUDGET_US[1] / BUDGET_US[0]) ** randomly.random())
        found.append(Piece(path, offset, size, names[number % len(names)][0], budget))
    randomly.shuffle(found)
    return found


def _strata(root: Path, randomly: random.Random) -> dict[tuple[str, str], list[tuple[Path, int, int]]]:
    found: dict[tuple[str, str], list[tuple[Path, int, int]]] = defaultdict(list)
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    randomly.shuffle(files)
    for path in files[:FILES_MAX]:
        try:
            total = path.stat().st_size
        except OSError:
            continue  # it went away while we looked
        if total < PIECE_BYTES_MIN:
            continue
        size = min(total, PIECE_BYTES_MAX)
        offset = randomly.randrange(0, total - size + 1) if total > size else 0
        found[KINDS.get(path.suffix.lower(), "other"), _class(size, SIZES)].append((path, offset, size))
    return found


def _class(value: float, classes: Sequence[tuple[float, str]]) -> str:
    for most, name in classes:
        if value <= most:
            return name
    return classes[-1][1]
