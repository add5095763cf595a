"""Adding partitions while AOS runs: which topics get how many, and what becomes of what is under way.

A request keeps its `home`, and an attempt the partition of its cell: both travel in the rows. New homes are made over
the partitions that all topics of a request have (`codecs.topics.shared_counts`), by encode, from its next start on; so
it does not matter in which order topics are extended, or that somebody extends one of them alone. A topic is never
made smaller, and `fixed` ones stay as they are.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka.errors import KafkaError

from aos.codecs.errors import SettingsError, StackError
from aos.codecs.settings import Settings
from aos.codecs.topics import all_topics
from aos.infra.runtime import options
from aos.streams.shell.topics import Admin

LISTED_S, LOOK_S = 30.0, 0.2


async def extend(settings: Settings, count: int, dry: bool = False) -> list[dict[str, Any]]:
    """Give every spread topic at least `count` partitions; what was added, by topic. `dry`: only say it."""
    spread = [topic.name for topic in all_topics(settings.tenants) if topic.spread and not topic.fixed]
    try:
        async with Admin(options(settings)) as admin:
            there = {name: found for name, (_, found) in (await admin.ids()).items()}
            missing = [name for name in spread if name not in there]
            if missing:
                raise SettingsError("AOS5004", f"missing: {', '.join(missing)}")
            most = max(there[name] for name in spread)
            if count < most:
                raise SettingsError(
                    "AOS5002", f"{count} partitions, there are {most}", "a topic is never made smaller"
                )
            wanted = {name: count for name in spread if there[name] < count}
            if wanted and not dry:
                await admin.extend(wanted)
                await _listed(admin, wanted)
    except KafkaError as error:
        raise StackError(f"the broker did not add partitions: {error!r}", "it takes the right to alter topics; "
                         "what was added stays, and the command may be given again", "AOS6002") from error  # fmt: skip
    return [{"topic": name, "before": there[name], "after": wanted[name]} for name in sorted(wanted)]


async def _listed(admin: Admin, wanted: dict[str, int]) -> None:
    """Wait until the broker lists them: a worker that starts right after must see them."""
    async with asyncio.timeout(LISTED_S):
        while True:
            there = await admin.ids()
            if all(there[name][1] >= count for name, count in wanted.items()):
                return
            await asyncio.sleep(LOOK_S)
