"""A worker whose processors are users of their own: one `Worker` each in one process, from outside they are one.

Each has its own connections, so that the broker lets it do what its row in the topology says and nothing else. Secure
deployments alone pay for it: a producer, a reader and its views for each processor, not for each process.
"""

from __future__ import annotations

import asyncio
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from aiokafka.errors import KafkaError

from aos.agents.sdk.refusals import refusal
from aos.streams.processor import Processor, View
from aos.streams.shell.options import Options
from aos.streams.shell.views import ViewService
from aos.streams.shell.worker import Deployment, Worker


def worker_of(deployment: Deployment, options: Options) -> Worker:
    """One worker for all processors; or a crew, where each is a user of its own."""
    return Crew(deployment, options) if options.security.users else Worker(deployment, options)


class Crew(Worker):
    """Workers of one processor each."""

    def __init__(self, deployment: Deployment, options: Options) -> None:
        super().__init__(replace(deployment, processors=(), views=()), options)
        self.members = [_member(deployment, options, processor) for processor in deployment.processors]
        self.views = AllViews(options, [member.views for member in self.members])

    async def start(self) -> None:
        await asyncio.gather(*(_start(member) for member in self.members))
        for member in self.members:
            self.metrics.update(member.metrics)
            self.apps += member.apps
            self.ports += member.ports

    def stop_soon(self) -> None:
        self.stopping = True
        for member in self.members:
            member.stop_soon()

    async def stop(self) -> None:
        await asyncio.gather(*(member.stop() for member in self.members))

    async def ensure_topic(self, name: str) -> None:
        """By the one that writes such topics: nobody else may make them."""
        for member in self.members:
            if any(name.startswith(topic) for topic in member.deployment.processors[0].writes):
                await member.ensure_topic(name)


class AllViews(ViewService):
    """The views of several services, for who looks from outside."""

    def __init__(self, options: Options, services: Sequence[ViewService]) -> None:
        self._services = services
        self.values = cast(dict[str, Any], ChainMap(*(service.values for service in services)))

    def staleness_s(self) -> float:
        return max((service.staleness_s() for service in self._services), default=0.0)


async def _start(member: Worker) -> None:
    """What security keeps one from is said with its name."""
    try:
        await member.start()
    except KafkaError as error:
        known = await asyncio.to_thread(refusal, error, member.options.clients())
        if known is None:
            raise
        raise known from error


def _member(deployment: Deployment, options: Options, processor: Processor) -> Worker:
    own = options.as_processor(processor.name)
    if own.crumbs:
        own = replace(own, crumbs=f"{own.crumbs}.{processor.name}")
    return Worker(replace(deployment, processors=(processor,), views=_views(deployment, processor)), own)


def _views(deployment: Deployment, processor: Processor) -> list[View]:
    """Its own, and those that are in nobody's row because everybody looks at them."""
    in_rows = {topic for each in deployment.processors for topic in each.views}
    return [view for view in deployment.views if view.topic in processor.views or view.topic not in in_rows]
