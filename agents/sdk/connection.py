"""Where the broker is, and the inbox topic, for programs that use the SDK."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aos.agents.sdk.security import NAMES, security_of
from aos.codecs.errors import StackError

RUN_FILE = "AOS_RUN_FILE"
WAIT_S = 0.1
YES = ("1", "true", "yes", "on")

log = logging.getLogger("aos.agents")


def run_file() -> Path:
    """Where a running local stack says its addresses (JSON: bootstrap, database_url, prefix)."""
    named = os.environ.get(RUN_FILE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/aos-{os.getuid()}"
    return Path(base) / "aos-stack.json"


def running_stack() -> dict[str, Any] | None:
    """Addresses of the running local stack, None when there is none (or its owner died)."""
    try:
        found: dict[str, Any] = json.loads(run_file().read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    owner = found.get("pid")
    return found if isinstance(owner, int) and Path(f"/proc/{owner}").exists() else None


def connection(
    user: str, *, bootstrap: str | None = None, kafka: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The arguments of an aiokafka client: servers, protocol, user, authority.

    From `bootstrap` and `kafka` as given, else from the environment (AOS_BOOTSTRAP, AOS_SECURITY_PROTOCOL …), else
    from the running local stack. `user`: who this program is where there is a folder of users and none is named.
    """
    given = dict(kafka or {})
    if "bootstrap_servers" in given:
        return given
    environ = {name: os.environ.get(f"AOS_{name.upper()}", "") for name in NAMES}
    found: dict[str, Any] = {**environ, "allow_plaintext": environ["allow_plaintext"].lower() in YES}
    servers = bootstrap or resolve_bootstrap()
    stack = running_stack()
    if not environ["security_protocol"] and stack is not None and stack["bootstrap"] == servers:
        found |= {name: stack[name] for name in NAMES if name in stack and name != "kafka_username"}
    if "security_protocol" in given:
        return {"bootstrap_servers": servers, **given}
    security = security_of(found)
    if not security.username:
        security = security.named(user)
    return {**security.clients(servers), **given}


async def start_client(client: Any, common: Mapping[str, Any]) -> None:
    """Start an aiokafka client of `connection`; if security keeps it from that, the reason is raised in a sentence."""
    from aiokafka.errors import KafkaError  # here and not before: declaring a service is to stay light

    from aos.agents.sdk.refusals import refusal

    try:
        await client.start()
    except KafkaError as error:
        said = await asyncio.to_thread(refusal, error, common)
        if said is None:
            raise
        raise said from error


def resolve_bootstrap() -> str:
    """AOS_BOOTSTRAP, else the running local stack's; a StackError says what to do otherwise."""
    named = os.environ.get("AOS_BOOTSTRAP")
    if named:
        return named
    stack = running_stack()
    if stack is None:
        raise StackError(
            "no broker is named and no local stack runs", "set AOS_BOOTSTRAP or run `aos up`", "AOS6002"
        )
    return str(stack["bootstrap"])


async def wait_for_topic(producer: Any, topic: str) -> None:
    """Return when the topic is there. AOS makes a service's inbox when it sees the registration; where it may not
    create topics an administrator has made it before."""
    waited = 0.0
    while topic not in (await producer.client.fetch_all_metadata()).topics():
        if waited and waited % 10 < WAIT_S:
            log.warning("topic %s is not there yet: is AOS running, may it create topics?", topic)
        await asyncio.sleep(WAIT_S)
        waited += WAIT_S
