"""The memory of ended requests: their result rows without the payloads, and where in the ledger the rest stands.

The rows are the Arrow columns the results were sent with, so remembering a request costs next to nothing; the
payload is read again from the ledger when somebody asks (`output_offset`, `output_row`), and so is the request
itself for a redrive (`offset`, `row`). Bounded by age and by number, row by row: what is forgotten does not depend
on how the rows came.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from aos.codecs.fields import I32, I64
from aos.codecs.schemas import RECORDS

PLACES = (("offset", I64), ("row", I32), ("output_offset", I64), ("output_row", I32))
"""Where the request and its output stand in the ledger; -1 for nowhere."""

SCHEMA = pa.schema(
    [f for f in RECORDS["result"].schema if f.name not in ("payload", "repeated")]
    + [pa.field(name, type, nullable=False) for name, type in PLACES]
)


class _Chunk(NamedTuple):
    first: int  # sequence number of its first row
    rows: pa.RecordBatch
    ids: list[bytes]
    finished: np.ndarray[Any, Any]  # int64, microseconds, ascending


class Memory:
    """Rows of SCHEMA in order of their end, found by request id. A request's later round hides its earlier one."""

    __slots__ = ("_chunks", "_end", "_head", "_sequences")

    def __init__(self) -> None:
        self._chunks: deque[_Chunk] = deque()
        self._sequences: dict[bytes, int] = {}
        self._head = 0
        self._end = 0

    def __len__(self) -> int:
        return self._end - self._head

    def __contains__(self, request_id: bytes) -> bool:
        return request_id in self._sequences

    def add(self, rows: pa.RecordBatch) -> None:
        """Remember rows of SCHEMA."""
        if not rows.num_rows:
            return
        ids = rows.column("request_id").to_numpy(zero_copy_only=False).tolist()
        finished = rows.column("finished_at").view(pa.int64()).to_numpy()
        self._chunks.append(_Chunk(self._end, rows, ids, finished))
        for request_id in ids:
            self._sequences[request_id] = self._end
            self._end += 1

    def find(self, request_id: bytes) -> pa.RecordBatch | None:
        """The one row of a request, None when it is not remembered."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return None
        for chunk in reversed(self._chunks):
            if chunk.first <= sequence:
                return chunk.rows.slice(sequence - chunk.first, 1)
        return None

    def round(self, request_id: bytes) -> int | None:
        """The last round of a request that ended, None when it is not remembered."""
        row = self.find(request_id)
        return None if row is None else int(row.column("round")[0].as_py())

    def forget(self, before: int, rows_max: int) -> None:
        """Drop what ended before that time, and the oldest beyond `rows_max`."""
        head = max(self._head, self._end - rows_max)
        for chunk in self._chunks:
            expired = 0 if chunk.finished[0] >= before else int(np.searchsorted(chunk.finished, before))
            head = max(head, chunk.first + expired)
            if expired < len(chunk.ids):
                break
        while self._head < head:
            chunk = self._chunks[0]
            end = min(head, chunk.first + len(chunk.ids))
            for sequence in range(self._head, end):
                request_id = chunk.ids[sequence - chunk.first]
                if self._sequences.get(request_id) == sequence:
                    del self._sequences[request_id]
            self._head = end
            if end == chunk.first + len(chunk.ids):
                self._chunks.popleft()

    def dump(self) -> pa.RecordBatch:
        """All remembered rows, oldest first."""
        parts = [chunk.rows.slice(max(0, self._head - chunk.first)) for chunk in self._chunks]
        return pa.concat_batches(parts) if parts else pa.RecordBatch.from_pylist([], schema=SCHEMA)
