"""What runs beside the loops of a worker: tasks that look now and then, and the one admin connection they share."""

from __future__ import annotations

import abc
import asyncio

from aos.streams.shell.options import Options
from aos.streams.shell.topics import Admin


class Background(abc.ABC):
    """A task from `start` to `stop`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._watch(), name=self._name)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @abc.abstractmethod
    async def _watch(self) -> None:
        """Until cancelled."""


class Admins:
    """One admin connection a worker: made when it is first needed, and anew after it failed somebody."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lock = asyncio.Lock()
        self._admin: Admin | None = None

    async def get(self) -> Admin:
        """The connection; KafkaError when the broker does not answer."""
        async with self._lock:
            if self._admin is None:
                admin = Admin(self._options)
                await admin.__aenter__()
                self._admin = admin
            return self._admin

    async def drop(self, admin: Admin | None = None) -> None:
        """Close it, unless somebody has dropped `admin` already."""
        async with self._lock:
            if self._admin is not None and admin in (None, self._admin):
                gone, self._admin = self._admin, None
                await gone.__aexit__()
