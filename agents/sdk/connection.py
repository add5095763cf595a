"""Where the broker is, and the inbox topic, for programs that use the SDK."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Any

from aos.codecs.errors import StackError

RUN_FILE = "AOS_RUN_FILE"
WAIT_S = 0.1

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
