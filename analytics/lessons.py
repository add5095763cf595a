"""The last lessons: what was taught, so that it is taught once, corrected once, and can be taught again.

A ring of the newest `LESSONS_MAX` lessons of a partition. A repeated experience is recognised by its key (request,
round, step, attempt); a correction finds the lesson it is about; after a drift a cell is taught anew from its newest
ones. What the ring has forgotten is too old for all three: a repeat would then count twice, a correction is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aos.codecs.fields import SURFACE_SIZE

LESSONS_MAX = 32_768  # 3 s at 10,000 outcomes/s, hours of a usual day; 4 MB in a snapshot
KEY_SIZE = 22  # request id 16, then round, step, attempt as little-endian 16-bit integers

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]


def keys_of(
    ids: bytes | pa.Buffer, rounds: np.ndarray, steps: np.ndarray, attempts: np.ndarray
) -> list[bytes]:
    """Keys of attempts; `ids` are the bytes of their request ids, one behind the other."""
    count = len(rounds)
    keys = np.empty((count, KEY_SIZE), np.uint8)
    keys[:, :16] = np.frombuffer(ids, np.uint8).reshape(count, 16)
    keys[:, 16:] = np.column_stack((rounds, steps, attempts)).astype("<i2").view(np.uint8)
    whole = keys.tobytes()
    return [whole[start : start + KEY_SIZE] for start in range(0, len(whole), KEY_SIZE)]


@dataclass(slots=True)
class Lessons:
    """The ring. Slot of the lesson with serial number s is ``s % LESSONS_MAX``; `made` is the next serial number."""

    made: int = 0
    keys: list[bytes] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of steps
    slots: dict[bytes, int] = field(default_factory=dict)
    heads: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(LESSONS_MAX, np.uint64))
    cells: Ints = field(default_factory=lambda: np.full(LESSONS_MAX, -1, np.int64))
    numbers: Ints = field(default_factory=lambda: np.zeros(LESSONS_MAX, np.int64))
    scores: Doubles = field(default_factory=lambda: np.zeros(LESSONS_MAX))
    surfaces: Floats = field(default_factory=lambda: np.zeros((LESSONS_MAX, SURFACE_SIZE), np.float32))

    def fresh(self, keys: Sequence[bytes]) -> list[int]:
        """Positions of the keys that were not taught yet; the first of equal ones."""
        seen: set[bytes] = set()
        found = []
        for position, key in enumerate(keys):
            if key not in self.slots and key not in seen:
                seen.add(key)
                found.append(position)
        return found

    def add(
        self,
        keys: Sequence[bytes],
        names: Sequence[str],
        cells: Ints,
        numbers: Ints,
        scores: Doubles,
        surfaces: Floats,
    ) -> None:
        """Keep lessons, all fresh, in their order."""
        slots = np.arange(self.made, self.made + len(keys)) % LESSONS_MAX
        for slot, key, name in zip(slots.tolist(), keys, names, strict=True):
            if slot < len(self.keys):
                if self.slots.get(self.keys[slot]) == slot:
                    del self.slots[self.keys[slot]]
                self.keys[slot], self.names[slot] = key, name
            else:
                self.keys.append(key)
                self.names.append(name)
            self.slots[key] = slot
        self.heads[slots] = np.frombuffer(b"".join(key[:8] for key in keys), np.uint64)
        self.cells[slots], self.numbers[slots], self.scores[slots] = cells, numbers, scores
        self.surfaces[slots] = surfaces
        self.made += len(keys)

    def about(self, request: bytes, step_name: str | None) -> int | None:
        """Slot of the lesson a correction is about: the last attempt of the step, or of the last step."""
        head = np.frombuffer(request[:8], np.uint64)[0]
        slots = np.flatnonzero(self.heads[: len(self.keys)] == head).tolist()
        found = [slot for slot in slots if self.keys[slot][:16] == request]
        if step_name is not None:
            found = [slot for slot in found if self.names[slot] == step_name]
        return max(found, key=self._place, default=None)

    def newest(self, cell: int, count: int) -> list[int]:
        """Slots of a cell's newest lessons, at most `count`, oldest first."""
        slots = np.flatnonzero(self.cells[: len(self.keys)] == cell)
        return [int(slot) for slot in slots[np.argsort(self.numbers[slots], kind="stable")][-count:]]

    def move(self, moved: Ints) -> None:
        """Follow cells to their new rows (-1: forgotten)."""
        count = len(self.keys)
        known = self.cells[:count] >= 0
        self.cells[:count] = np.where(known, moved[np.maximum(self.cells[:count], 0)], -1)

    def _place(self, slot: int) -> tuple[int, ...]:
        """(round, step, attempt) of a lesson."""
        return tuple(np.frombuffer(self.keys[slot][16:], "<i2").tolist())
