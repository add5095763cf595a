"""What the metadata of record batches tells about all their arrays at once, before any of them is looked at.

A batch's metadata lists its arrays depth first (nodes: length and number of nulls) and their memory (buffers: place
and length). Of a record whose schema is known it is known which of them matter, so that three questions are a few
numpy calls for a whole message, or for many messages, instead of a walk through every array of every column:
is there a null where none may be, does an empty array begin behind its values, is every number finite.
A Yes is sure (given that pyarrow read and validated the batches); a No only means that the arrays themselves
must be asked (`fit`, `finite`).
cost: 10 us a message of 62 columns instead of 400.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

# what of a float is all ones in a NaN or an infinity, by its bytes
_EXPONENTS = {2: np.uint16(0x7C00), 4: np.uint32(0x7F800000), 8: np.uint64(0x7FF0000000000000)}
_COUNT = struct.Struct("<I")


class Place(NamedTuple):
    """Where a record batch stands in a message: its first byte, its length, and the first bytes of its body and of
    its metadata's vectors of nodes and buffers."""

    start: int
    size: int
    body: int
    nodes: int
    buffers: int

    def shifted(self, by: int) -> Place:
        """The same batch so many bytes further on."""
        return Place(self.start + by, self.size, self.body + by, self.nodes + by, self.buffers + by)


class Declared:
    """What the metadata of some batches of one message says.

    `nodes`: int64 [batches, arrays, 2], length and nulls; `buffers`: int64 [batches, buffers, 2], the first byte in the
    body and the length; `bodies`: int64 [batches, 1], where a body begins in the message.
    """

    __slots__ = ("_bodies", "_buffers", "_layout", "_nodes", "_value")

    def __init__(
        self,
        layout: Layout,
        value: bytes | pa.Buffer,
        nodes: np.ndarray,
        buffers: np.ndarray,
        bodies: np.ndarray,
    ) -> None:
        self._layout, self._value, self._nodes, self._buffers, self._bodies = (
            layout,
            value,
            nodes,
            buffers,
            bodies,
        )

    def solid(self) -> bool:
        """No null stands where the record allows none, in parts of columns too."""
        return not np.count_nonzero(self._nodes[:, self._layout.solid, 1])

    def started(self) -> bool:
        """Every empty list and text begins at 0, or has no memory that could say otherwise."""
        layout = self._layout
        if not len(layout.offset):
            return True
        empty = self._nodes[:, layout.offset, 0] == 0
        held = self._buffers[:, layout.starts]
        empty &= held[..., 1] >= 4
        if not np.count_nonzero(empty):
            return True
        first = (held[..., 0] + self._bodies)[empty]
        words = np.frombuffer(self._value, np.int32, len(self._value) // 4)
        if int(first.max()) >= 4 * len(words) or np.count_nonzero(first & 3):
            return False
        return not np.count_nonzero(words[first >> 2])

    def finite(self) -> bool:
        """No number is a NaN or an infinity, those under nulls included where not all are null."""
        for width, exponent, numbers, memory in self._layout.floats:
            nodes, spans = self._nodes[:, numbers], self._buffers[:, memory]
            live = nodes[..., 0] > nodes[..., 1]  # arrays with anything but nulls
            firsts = (spans[..., 0] + self._bodies)[live].tolist()
            parts = []
            for first, size in zip(firsts, spans[..., 1][live].tolist(), strict=True):
                if first % width:
                    return False
                parts.append(np.frombuffer(self._value, exponent.dtype, size // width, first))
            if parts:
                bits = (parts[0] if len(parts) == 1 else np.concatenate(parts)) & exponent
                if bits.max(initial=0) == exponent:
                    return False
        return True


class _Array(NamedTuple):
    """One array of a schema: whether it must be without nulls, whether it may be empty though there are rows, and the
    numbers of its buffers."""

    type: pa.DataType
    solid: bool
    below: bool
    buffers: range


class Layout:
    """The arrays of a schema, depth first, and which of their nodes and buffers matter.

    `solid`: nodes that must be without nulls, `required` those of whole columns. `offset`: nodes of lists and texts
    below a list, `starts`: the buffers of their offsets. `floats`: by bytes of a number, its exponent, the nodes of
    such numbers and the buffers of their values.
    """

    def __init__(self, schema: pa.Schema) -> None:
        arrays: list[_Array] = []
        required = []
        for field in schema:
            if not field.nullable:
                required.append(len(arrays))
            arrays += _arrays(field.type, not field.nullable, False, arrays[-1].buffers.stop if arrays else 0)
        self.required = _numbers(required)
        self.solid = _numbers(number for number, array in enumerate(arrays) if array.solid)
        varying = [
            (number, array) for number, array in enumerate(arrays) if array.below and _varies(array.type)
        ]
        self.offset = _numbers(number for number, _ in varying)
        self.starts = _numbers(array.buffers[1] for _, array in varying)
        self.floats: list[tuple[int, Any, np.ndarray, np.ndarray]] = []
        for width, exponent in _EXPONENTS.items():
            found = [
                n for n, a in enumerate(arrays) if pa.types.is_floating(a.type) and a.type.byte_width == width
            ]
            if found:
                memory = _numbers(arrays[number].buffers[1] for number in found)
                self.floats.append((width, exponent, _numbers(found), memory))
        self._nodes, self._buffers = len(arrays), arrays[-1].buffers.stop if arrays else 0

    def filled(self, value: bytes | pa.Buffer, nodes: int) -> bool:
        """Whether no required column of the batch, whose vector of nodes begins there, has a null."""
        found = _pairs(value, [nodes], self._nodes)
        return found is not None and not np.count_nonzero(found[0, self.required, 1])

    def declared(self, value: bytes | pa.Buffer, places: Sequence[Place]) -> Declared | None:
        """What the metadata of these batches of a message says; None when there are none or it is built otherwise."""
        if not places:
            return None
        nodes = _pairs(value, [place.nodes for place in places], self._nodes)
        buffers = _pairs(value, [place.buffers for place in places], self._buffers)
        if nodes is None or buffers is None:
            return None
        bodies = np.array([[place.body] for place in places], np.int64)
        return Declared(self, value, nodes, buffers, bodies)


def _pairs(value: bytes | pa.Buffer, vectors: Sequence[int], count: int) -> np.ndarray | None:
    """Flatbuffer vectors of `count` pairs of 64-bit numbers: int64 [vectors, count, 2]; None if one is none such.

    A vector is its length in 32 bits and then the pairs, which begin in steps of 8 bytes.
    """
    last = len(value) - 4 - 16 * count
    for at in vectors:
        if at % 8 != 4 or at > last or _COUNT.unpack_from(value, at)[0] != count:
            return None
    if len(vectors) == 1:
        return np.frombuffer(value, np.int64, 2 * count, vectors[0] + 4).reshape(1, count, 2)
    words = np.frombuffer(value, np.int64, len(value) // 8)
    first = np.array(vectors, np.int64)[:, None] + 4 >> 3
    found: np.ndarray = words[first + np.arange(2 * count)].reshape(len(vectors), count, 2)
    return found


def _numbers(found: Iterable[int]) -> np.ndarray:
    return np.array(list(found), np.int64)


def _arrays(type: pa.DataType, solid: bool, below: bool, first: int) -> Iterator[_Array]:
    """An array and those it is made of, depth first; `first` is the number of its first buffer."""
    if isinstance(type, pa.BaseExtensionType):
        type = type.storage_type
    buffers = range(first, first + _buffers(type))
    yield _Array(type, solid, below, buffers)
    listed = pa.types.is_list(type) or pa.types.is_large_list(type)
    # a vector is read as one block of memory, so a null in it is never right
    vector = pa.types.is_fixed_size_list(type)
    after = buffers.stop
    for index in range(type.num_fields):
        part = type.field(index)
        for array in _arrays(part.type, vector or not part.nullable, below or listed, after):
            after = array.buffers.stop
            yield array


def _buffers(type: pa.DataType) -> int:
    """How many buffers an array has of its own: its nulls, and its values or offsets, and its bytes."""
    if pa.types.is_null(type):
        return 0
    if pa.types.is_struct(type) or pa.types.is_fixed_size_list(type):
        return 1
    texts = pa.types.is_string(type) or pa.types.is_binary(type)
    return 3 if texts or pa.types.is_large_string(type) or pa.types.is_large_binary(type) else 2


def _varies(type: pa.DataType) -> bool:
    """Whether an array of it has offsets (of 32 bits: no record has others)."""
    return bool(pa.types.is_list(type) or pa.types.is_string(type) or pa.types.is_binary(type))
