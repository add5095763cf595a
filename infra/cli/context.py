"""Which AOS a command talks to: the servers of the settings, the running local stack, or a private one for the call."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

from aos.agents.sdk.connection import running_stack
from aos.agents.sdk.security import NAMES
from aos.codecs.errors import StackError
from aos.codecs.settings import Settings
from aos.infra.cli.output import note
from aos.infra.settings import load


def found() -> Settings | None:
    """Settings with addresses: given ones, else those of the running local stack; None when there is neither."""
    settings = load()
    if settings.bootstrap and settings.database_url:
        return settings
    stack = running_stack()
    if stack is None:
        return None
    return dataclasses.replace(
        settings,
        bootstrap=settings.bootstrap or stack["bootstrap"],
        database_url=settings.database_url or stack["database_url"],
        prefix=settings.prefix or stack["prefix"],
        partitions=stack["partitions"],
        **({} if settings.bootstrap else {name: stack[name] for name in NAMES if name in stack}),
    )


def required() -> Settings:
    """Settings with addresses, or a StackError that says what to do."""
    settings = found()
    if settings is None:
        raise StackError("no AOS is running here", "run `aos up` in another terminal, or set AOS_BOOTSTRAP and "
                         "AOS_DATABASE_URL", "AOS6002")  # fmt: skip
    return settings


@contextmanager
def at_hand() -> Iterator[Settings]:
    """The AOS at hand; when there is none, a private one for the time of the call (over the kept data, if any is).

    Never with servers that are given by half: that would run workers of ours on somebody's broker.
    """
    settings = found()
    if settings is not None:
        yield settings
        return
    own = load()
    if own.bootstrap or own.database_url:
        required()
    from aos.infra.up import Up

    where = f"over the data in {own.data_dir}" if own.data_dir else "which knows nothing yet"
    note(f"no AOS is running: starting a private one for this call, {where} (some seconds) …")
    with Up(own, say=note) as up:
        yield up.settings
