"""Partitions that are added by `aos topics extend`: which topics get them, and what is refused."""

from __future__ import annotations

import asyncio

import pytest

from aos.codecs.errors import SettingsError
from aos.codecs.settings import Settings
from aos.infra.partitions import extend
from aos.infra.runtime import make_topics, options
from aos.streams.shell.topics import Admin
from tests.stack.loopkit import run, settings_for


async def partitions(settings: Settings) -> dict[str, int]:
    async with Admin(options(settings)) as admin:
        return {name: count for name, (_, count) in (await admin.ids()).items()}


def test_a_smaller_number_is_refused_and_nothing_is_added(
    bootstrap: str, database_url: str, topic_prefix: str
) -> None:
    settings = settings_for(bootstrap, database_url, topic_prefix, partitions=2)
    make_topics(settings)
    before = run(partitions(settings))
    with pytest.raises(SettingsError, match="AOS5002"):
        asyncio.run(extend(settings, 1))
    assert run(partitions(settings)) == before
