"""How a record is declared: fields with type, nullability, meaning and unit, in one place.

`Record.schema` is what travels (no metadata: 2.1 KB instead of 7.2 KB a message); `Record.documented` carries
the meanings as field metadata for those who ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from aos.codecs.layout import Layout

TEXT = pa.string()
BYTES = pa.binary()
BOOL = pa.bool_()
I8, I16, I32, I64 = pa.int8(), pa.int16(), pa.int32(), pa.int64()
F32, F64 = pa.float32(), pa.float64()
TIME = pa.timestamp("us", tz="UTC")
ID = pa.binary(16)
TEXTS = pa.list_(pa.field("item", TEXT, nullable=False))
I64S = pa.list_(pa.field("item", I64, nullable=False))
I16S = pa.list_(pa.field("item", I16, nullable=False))
F32S = pa.list_(pa.field("item", F32, nullable=False))

EMBEDDING_SIZE = 256  # what the offline text encoder gives; half floats, 512 bytes a row
SURFACE_SIZE = 16  # cheap features of a request, see agents/encoding.py
EMBEDDING = pa.fixed_shape_tensor(pa.float16(), [EMBEDDING_SIZE])
SURFACE = pa.fixed_shape_tensor(pa.float32(), [SURFACE_SIZE])


@dataclass(frozen=True, slots=True)
class Field:
    """One column. `nullable=False` is checked at encode and at decode, because Arrow itself does not."""

    name: str
    type: pa.DataType
    doc: str
    unit: str = ""
    nullable: bool = False
    since: int = 1


def need(name: str, type: pa.DataType, doc: str, unit: str = "", since: int = 1) -> Field:
    """A column that every row must fill."""
    return Field(name, type, doc, unit, False, since)


def may(name: str, type: pa.DataType, doc: str, unit: str = "", since: int = 1) -> Field:
    """A column that may be null."""
    return Field(name, type, doc, unit, True, since)


def struct(*fields: Field) -> pa.DataType:
    """A struct type from fields (their meanings are kept by whoever declares the struct)."""
    return pa.struct([pa.field(f.name, f.type, nullable=f.nullable) for f in fields])


def structs(*fields: Field) -> pa.DataType:
    """A list of structs."""
    return pa.list_(pa.field("item", struct(*fields), nullable=False))


def _parts(type: pa.DataType) -> list[pa.DataType]:
    if isinstance(type, pa.BaseExtensionType):
        type = type.storage_type
    return [type.field(i).type for i in range(type.num_fields)]


def _has_floats(type: pa.DataType) -> bool:
    return bool(pa.types.is_floating(type)) or any(_has_floats(part) for part in _parts(type))


@dataclass(frozen=True)
class Record:
    """One record type. `version` grows when a field is added; fields are only added, at the end."""

    name: str
    version: int
    doc: str
    fields: tuple[Field, ...]
    parts: tuple[
        tuple[str, tuple[Field, ...]], ...
    ] = ()  # (column, its struct's fields), for the reference page

    @cached_property
    def schema(self) -> pa.Schema:
        """The wire schema: names, types, nullability, nothing else."""
        return pa.schema([pa.field(f.name, f.type, nullable=f.nullable) for f in self.fields])

    @cached_property
    def documented(self) -> pa.Schema:
        """The same with `doc`, `unit`, `since` as field metadata."""
        return pa.schema(
            [
                pa.field(
                    f.name,
                    f.type,
                    nullable=f.nullable,
                    metadata={"doc": f.doc, "unit": f.unit, "since": str(f.since)},
                )
                for f in self.fields
            ]
        )

    @cached_property
    def schema_bytes(self) -> bytes:
        """How a stream of exactly this schema begins: the IPC message of the schema."""
        return bytes(self.schema.serialize())

    @cached_property
    def required(self) -> tuple[int, ...]:
        """Numbers of the columns that no row may leave null."""
        return tuple(i for i, field in enumerate(self.fields) if not field.nullable)

    @cached_property
    def nested(self) -> tuple[int, ...]:
        """Numbers of the columns with parts: lists, structs and tensors."""
        return tuple(i for i, field in enumerate(self.fields) if _parts(field.type))

    @cached_property
    def layout(self) -> Layout:
        """Where in a message's metadata what is said of which array."""
        return Layout(self.schema)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of all columns."""
        return frozenset(field.name for field in self.fields)

    @cached_property
    def floating(self) -> tuple[int, ...]:
        """Numbers of the columns that hold floating-point numbers, in parts too."""
        return tuple(i for i, field in enumerate(self.fields) if _has_floats(field.type))

    def __getitem__(self, name: str) -> Field:
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(name)


COMMON: tuple[Field, ...] = (
    need("tenant", TEXT, "Whose request this is; taken from the topic it came by, never from the payload"),
    may("traceparent", TEXT, "W3C trace context, handed on unchanged"),
    need("request_id", ID, "blake2b of tenant and client id, or of topic, partition, offset and row"),
    need(
        "requested_at", TIME, "The request's event time, else its append time; fixed once at the edge", "UTC"
    ),
    need(
        "home", I32, "The partition of every later message of this request; computed once, echoed by agents"
    ),
    need("domain", TEXT, "The learning domain the outcome teaches (default: the tenant)"),
    need("round", I16, "0 at first, one more with every redrive"),
)

# of whatever an agent at work on an attempt says
ECHO: tuple[Field, ...] = (
    need("request_id", ID, "Echo of the assignment"),
    need("home", I32, "Echo of the assignment"),
    need("step", I16, "Echo of the assignment"),
    need("attempt", I16, "Echo of the assignment"),
    need("agent", TEXT, "Echo of the assignment"),
    need("epoch", I64, "Echo of the assignment"),
    need("token", ID, "Echo of the assignment: proof that the attempt is the agent's"),
)

# of match, ready, decision, trail, experience and result; "null: not degraded" costs a batch one column of nulls
RUNG: Field = may(
    "rung",
    TEXT,
    "How it was degraded: last-beliefs, prior, round-robin or fallback (docs/operations.md); null when it was not",
)
