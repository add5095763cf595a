"""Who a request is, where it lives, and the secret of an attempt: computed here and nowhere else.

All three are pure functions of what is given, so a record read twice gives the same request. A request is
(tenant, client's id) when the client named one, else the place its row stood at. Nobody but the edge calls
`home`: every later message carries the number, so that partitions can be added while requests are in flight.
"""

from __future__ import annotations

import hmac
import struct
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import Any

ID_BYTES = 16
Hash = Any  # hashlib does not name the type of its objects
_ORIGIN = struct.Struct(">iqi")  # partition, offset, row
_CALLER = struct.Struct(">hhh")  # round, step, attempt
_ATTEMPT = struct.Struct(">hhhq")  # round, step, attempt, epoch


def request_id(tenant: str, client_id: str) -> bytes:
    """16 bytes: the same client id of the same tenant is the same request."""
    found = _clients_of(tenant).copy()
    found.update(client_id.encode())
    made: bytes = found.digest()
    return made


@lru_cache(maxsize=1024)
def _clients_of(tenant: str) -> Hash:
    """The hash's state behind the tenant: half the time of a client's id."""
    # the tenant's length first: ("a", "bc") and ("ab", "c") are different requests
    name = tenant.encode()
    return blake2b(struct.pack(">I", len(name)) + name, digest_size=ID_BYTES, person=b"aos-client")


def request_id_at(topic: str, partition: int, offset: int, row: int) -> bytes:
    """16 bytes for a row without a client's id: where it stood (`topic` without prefix)."""
    data = _ORIGIN.pack(partition, offset, row) + topic.encode()
    return blake2b(data, digest_size=ID_BYTES, person=b"aos-origin").digest()


def child_id(parent: bytes, round: int, step: int, attempt: int, call: str) -> bytes:
    """16 bytes for what an attempt hands out: the same call of the same attempt is the same child."""
    data = parent + _CALLER.pack(round, step, attempt) + call.encode()
    return blake2b(data, digest_size=ID_BYTES, person=b"aos-child").digest()


def home(request_id: bytes, partitions: int) -> int:
    """The partition of every later message of the request: its id, read as a number, modulo `partitions`."""
    return int.from_bytes(request_id, "big") % partitions


def token(
    secret: bytes, request_id: bytes, round: int, step: int, attempt: int, agent: str, epoch: int
) -> bytes:
    """16 bytes that only who holds `secret` can make: the right to answer one attempt as one agent."""
    data = request_id + _ATTEMPT.pack(round, step, attempt, epoch) + agent.encode()
    inner, outer = _pads(secret)
    inside, outside = inner.copy(), outer.copy()
    inside.update(data)
    outside.update(inside.digest())
    made: bytes = outside.digest()[:ID_BYTES]
    return made


@lru_cache(maxsize=8)
def _pads(secret: bytes) -> tuple[Hash, Hash]:
    """HMAC-SHA256's two states after the key (RFC 2104): hmac.digest makes them anew each time, at twice the cost."""
    key = sha256(secret).digest() if len(secret) > 64 else secret
    padded = key.ljust(64, b"\0")
    return sha256(bytes(b ^ 0x36 for b in padded)), sha256(bytes(b ^ 0x5C for b in padded))


def token_is(expected: bytes, given: bytes | None) -> bool:
    """Whether an answer carries the right token, compared in constant time."""
    return given is not None and bool(hmac.compare_digest(expected, given))


def domain(tenant: str, name: str | None) -> str:
    """The learning domain a request teaches: the tenant's own, or a part of it.

    A named one stands under the tenant's name, so that no tenant can teach another's.
    """
    return f"{tenant}/{name}" if name else tenant
