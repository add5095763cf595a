"""What a test may ask for: a running stack, a database of its own, topic names of its own, the shared data.

A test that asks for the stack is marked `stack` by itself. Where the stack cannot start, such a test is
skipped with the reason; where CI or AOS_REQUIRE_STACK is set they fail: a skip must never pass for a proof.
To keep one stack between test runs: `python -m aos.infra.local`, then set AOS_TEST_BOOTSTRAP and
AOS_TEST_DATABASE_URL to the addresses it prints.
"""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from aos.infra.local import LocalStack, StackError

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
SHARED_ABSENT = "not run: ../shared is absent"
MEASURED = pytest.StashKey[list[str]]()
STACK_FIXTURES = {"stack", "own_stack", "bootstrap", "database_url", "topic_prefix"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the stack, so that `-m 'not stack'` always means it."""
    for item in items:
        if STACK_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.stack)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was measured, and in one line which tests were not run for want of the shared data."""
    for line in terminalreporter.config.stash.get(MEASURED, []):
        terminalreporter.write_line(f"measured: {line}")
    skipped = terminalreporter.stats.get("skipped", [])
    missing = [report.nodeid for report in skipped if SHARED_ABSENT in str(report.longrepr)]
    if missing:
        terminalreporter.write_line(
            f"{len(missing)} tests not run: ../shared is absent: {', '.join(missing)}"
        )


def started(stack: LocalStack) -> LocalStack:
    """The stack, up; else the test is skipped, or fails where a stack is required."""
    try:
        stack.start()
    except StackError as error:
        said = f"{error.detail} {error.hint}"
        if os.environ.get("AOS_REQUIRE_STACK") or os.environ.get("CI"):
            pytest.fail(f"the local stack is required here and did not start: {said}", pytrace=False)
        pytest.skip(f"the local stack did not start: {said}")
    return stack


@pytest.fixture(scope="session")
def stack() -> Iterator[LocalStack]:
    """One broker and one database for the whole run; nobody may stop them (see `own_stack`)."""
    shared = LocalStack(
        bootstrap=os.environ.get("AOS_TEST_BOOTSTRAP"), database_url=os.environ.get("AOS_TEST_DATABASE_URL")
    )
    try:
        yield started(shared)
    finally:
        shared.stop()


@pytest.fixture
def own_stack() -> Iterator[LocalStack]:
    """A broker and a database for one test, which may kill them."""
    private = LocalStack()
    try:
        yield started(private)
    finally:
        private.stop()


@pytest.fixture
def bootstrap(stack: LocalStack) -> str:
    """The address of the session's broker."""
    return stack.bootstrap


@pytest.fixture(scope="module")
def database_url(stack: LocalStack) -> Iterator[str]:
    """The URL of a fresh database with the timescaledb extension, one for each test module."""
    name = f"aos_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(stack.database_url, autocommit=True) as link:
        link.execute(f"CREATE DATABASE {name}".encode())
        url = urlunsplit(urlsplit(stack.database_url)._replace(path=f"/{name}"))
        with psycopg.connect(url, autocommit=True) as fresh:
            fresh.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
    yield url
    with psycopg.connect(stack.database_url, autocommit=True) as link:
        link.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def topic_prefix(stack: LocalStack) -> Iterator[str]:
    """A prefix that no other test's topics and groups have; topics with it are deleted after the test."""
    prefix = f"t{uuid.uuid4().hex[:10]}."
    yield prefix
    # in a thread: the test's own event loop is not ours to replace
    cleaner = threading.Thread(target=asyncio.run, args=(delete_topics(stack.bootstrap, prefix),))
    cleaner.start()
    cleaner.join()


async def delete_topics(bootstrap: str, prefix: str) -> None:
    """Delete every topic whose name begins with `prefix`; idle topics cost the broker files and time."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        names = [name for name in await admin.list_topics() if name.startswith(prefix)]
        if names:
            await admin.delete_topics(names)
    finally:
        await admin.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the recorded data sets beside the checkout; where it is absent the test is not run."""
    if not SHARED_DATA.is_dir():
        pytest.skip(SHARED_ABSENT)
    return SHARED_DATA


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Note a measured figure; it is printed at the end of the run and never asserted."""
    return request.config.stash.setdefault(MEASURED, []).append
