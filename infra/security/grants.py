"""Makes users and rights on a broker, as its administrator: what the plan says, and of rights nothing else.

Kafka's protocol by hand where aiokafka has no words for it. A password never leaves this process: what is sent is
the salted hash that SCRAM keeps.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest_v1, DeleteAclsRequest_v1, DescribeAclsRequest_v1
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    CompactArray,
    CompactBytes,
    CompactString,
    Int8,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from aos.codecs.errors import SettingsError
from aos.infra.security.rights import GROUP, LITERAL, PREFIXED, TOPIC, Right

ITERATIONS = (
    4096  # the least Kafka takes; our passwords are 256 random bits, which no number of rounds makes stronger
)
SHA_512 = 2
ANY, ALLOW, ANY_PATTERN = 1, 3, 1
RESOURCES = {TOPIC: 2, GROUP: 3}
PATTERNS = {LITERAL: 3, PREFIXED: 4}
OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Alter": 7, "Describe": 8, "DescribeConfigs": 10}


def passwords(folder: Path, users: Iterable[str]) -> dict[str, str]:
    """The password of each user, made at first: a file by the user's name, readable by its owner alone."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    found = {}
    for user in users:
        path = folder / user
        if not path.exists():
            temporary = folder / f".{user}.new"
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
            temporary.replace(path)
        found[user] = path.read_text().strip()
    return found


async def grant(client: Mapping[str, Any], known: Mapping[str, str], rights: Sequence[Right]) -> None:
    """Make these users (name and password) and exactly these rights; other rights on the broker are taken away.

    `client`: arguments of an aiokafka client that may administer the broker.
    """
    admin = AIOKafkaAdminClient(**client)
    await admin.start()
    try:
        await _set_users(admin, known)
        there = await granted(admin)
        await _add(admin, [right for right in rights if right not in there])
        await _remove(admin, there - set(rights))
    finally:
        await admin.close()


async def _set_users(admin: Any, known: Mapping[str, str]) -> None:
    rows: list[tuple[Any, ...]] = []
    for user, password in known.items():
        salt = secrets.token_bytes(32)
        salted = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS)
        rows.append((user, SHA_512, ITERATIONS, salt, salted, {}))
    answer = await _ask(admin, AlterUsers(rows))
    for user, code, message, *_ in answer.results:
        if code:
            raise SettingsError("AOS5011", f"the user {user} was not made: {message or code}")


async def granted(admin: Any) -> set[Right]:
    """The rights on the broker that could be in a plan."""
    answer = await _ask(admin, _Describe())
    if answer.error_code:
        raise SettingsError(
            "AOS5011", f"the rights were not told: {answer.error_message or answer.error_code}"
        )
    kinds, shapes, words = (_inverse(table) for table in (RESOURCES, PATTERNS, OPERATIONS))
    found = set()
    for kind, name, pattern, entries in answer.resources:
        for principal, host, operation, permission in entries:
            if (
                kind in kinds
                and pattern in shapes
                and (host, permission) == ("*", ALLOW)
                and operation in words
            ):
                user = principal.removeprefix("User:")
                found.add(Right(user, kinds[kind], name, shapes[pattern], words[operation]))
    return found


def _inverse(table: Mapping[str, int]) -> dict[int, str]:
    return {number: word for word, number in table.items()}


async def _add(admin: Any, rights: Sequence[Right]) -> None:
    if rights:
        answer = await _ask(admin, CreateRights([_numbers(right) for right in rights]))
        for right, (code, message) in zip(rights, answer.creation_responses, strict=True):
            if code:
                raise SettingsError("AOS5011", f"{' '.join(right)} was not granted: {message or code}")


async def _remove(admin: Any, rights: Iterable[Right]) -> None:
    rows = [_numbers(right) for right in rights]
    if rows:
        answer = await _ask(admin, _Delete(rows))
        for code, message, _ in answer.filter_responses:
            if code:
                raise SettingsError("AOS5011", f"a right was not taken away: {message or code}")


def _numbers(right: Right) -> tuple[Any, ...]:
    shape = (RESOURCES[right.resource], right.name, PATTERNS[right.pattern])
    return (*shape, f"User:{right.user}", "*", OPERATIONS[right.operation], ALLOW)


async def _ask(admin: Any, request: Any) -> Any:
    return await admin._client.send(admin._client.get_random_node(), request)


class CreateRights(Request[CreateAclsRequest_v1]):  # type: ignore[misc]
    """Version 1: the first that knows prefixes."""

    API_KEY = CreateAclsRequest_v1.API_KEY

    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        self._rows = rows

    def build(self, request_struct_class: Any) -> Any:
        return CreateAclsRequest_v1(self._rows)


class _Delete(Request[DeleteAclsRequest_v1]):  # type: ignore[misc]
    API_KEY = DeleteAclsRequest_v1.API_KEY

    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        self._rows = rows

    def build(self, request_struct_class: Any) -> Any:
        return DeleteAclsRequest_v1(self._rows)


class _Describe(Request[DescribeAclsRequest_v1]):  # type: ignore[misc]
    """All that there are."""

    API_KEY = DescribeAclsRequest_v1.API_KEY

    def build(self, request_struct_class: Any) -> Any:
        return DescribeAclsRequest_v1(ANY, None, ANY_PATTERN, None, None, ANY, ANY)


class AlterUsersResponse(Response):  # type: ignore[misc]
    API_KEY = 51
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            CompactArray(
                ("user", CompactString("utf-8")),
                ("error_code", Int16),
                ("error_message", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class AlterUsersV0(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 51
    API_VERSION = 0
    RESPONSE_TYPE = AlterUsersResponse
    SCHEMA = Schema(
        (
            "deletions",
            CompactArray(("name", CompactString("utf-8")), ("mechanism", Int8), ("tags", TaggedFields)),
        ),
        (
            "upsertions",
            CompactArray(
                ("name", CompactString("utf-8")),
                ("mechanism", Int8),
                ("iterations", Int32),
                ("salt", CompactBytes),
                ("salted_password", CompactBytes),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class AlterUsers(Request[AlterUsersV0]):  # type: ignore[misc]
    API_KEY = 51

    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        self._rows = rows

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class([], self._rows, {})
