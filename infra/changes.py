"""Changing settings at run time: reads `aos.settings` whole, checks, appends one message, and sees whether it counted.

Who writes is whoever changes a setting, to the topic itself and not through a processor: the rule of `streams.live`
(of two changes made from one version the first in the log counts) needs no lock and no owner, works while every worker
is down, and tells the writer what became of the change. A change that came second is made anew from what is in force
by then, so both of two people get their say, in the order of the log, each once. `change` is its random id: a copy of
a message that the producer sent twice has a version that is already taken.
"""

from __future__ import annotations

import difflib
import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from aos.codecs.errors import SettingsError
from aos.codecs.rows import from_dicts
from aos.codecs.settings import LIVE, NUMBERS, QUOTAS, Settings, accepted, check_quota
from aos.infra.logs import append, whole
from aos.infra.settings import convert
from aos.streams.live import TOPIC, RuntimeSettings
from aos.streams.shell.codec import WireCodec

TRIES_MAX = 16  # changes that may come second before it is given up; each time somebody else's counted
Place = tuple[str, str]  # name, tenant (empty: for all)


class Wanted(NamedTuple):
    """One setting of a change; `value` None: that of the start again."""

    name: str
    tenant: str
    value: Any


@dataclass(slots=True)
class History:
    """All changes that count, by version (the first is 1), and what is in force after them."""

    state: RuntimeSettings = field(default_factory=RuntimeSettings)
    counted: list[list[dict[str, Any]]] = field(default_factory=list)

    def add(self, key: bytes, rows: Any) -> None:
        """Take in one message of the log."""
        if self.state.apply(key, rows):
            self.counted.append(rows.to_pylist())

    @property
    def version(self) -> int:
        return self.state.version

    def at(self, version: int) -> RuntimeSettings:
        """What was in force at a version; 0 is the start. SettingsError AOS5007 when there is none such."""
        if not 0 <= version <= self.version:
            raise SettingsError("AOS5007", f"{version}, from 0 to {self.version}")
        state = RuntimeSettings()
        for rows in self.counted[:version]:
            state.apply(b"", from_dicts("setting", rows))
        return state

    def changes(self, name: str | None = None) -> list[dict[str, Any]]:
        """One row a setting and change, oldest first, with what a release that does not accept it says."""
        return [
            {**row, "value": json.loads(row["value"]), "refused": self.state.refused.get(row["version"])}
            for rows in self.counted
            for row in rows
            if name is None or row["name"] == name
        ]

    def version_of(self, change: bytes) -> int | None:
        """The version that a change made; None when it does not count."""
        found = (rows[0]["version"] for rows in self.counted if rows[0]["change"] == change)
        return next(found, None)

    def diff(self, before: int, after: int) -> list[tuple[Place, Any, Any]]:
        """Settings that differ between two versions, with both values; None is the value of the start."""
        old, new = self.at(before).values, self.at(after).values
        places = sorted({*old, *new})
        return [(p, old.get(p), new.get(p)) for p in places if old.get(p) != new.get(p)]


def parsed(settings: Settings, name: str, text: str | None, tenant: str = "") -> Wanted:
    """What somebody typed, checked: type, range, tenant; None is the value of the start. An unknown name is refused
    with the nearest one."""
    if name not in {item.name for item in fields(Settings)}:
        near = difflib.get_close_matches(name, [item.name for item in fields(Settings)], 1, 0.5)
        raise SettingsError("AOS5001", name, f"did you mean {near[0]}?" if near else "")
    if tenant and tenant not in settings.tenants:
        near = difflib.get_close_matches(tenant, settings.tenants, 1, 0.5)
        known = f"did you mean {near[0]}?" if near else f"tenants are {', '.join(settings.tenants)}"
        raise SettingsError("AOS5002", f"no tenant {tenant}", known)
    if name not in LIVE:
        accepted(name, None, tenant)  # says why not, whatever the value
    if text is None:
        return Wanted(name, tenant, accepted(name, None, tenant))
    value = accepted(name, _number(name, text) if tenant and name in NUMBERS else convert(name, text), tenant)
    if name in QUOTAS:
        check_quota(settings, name, {tenant: value} if tenant else value)
    return Wanted(name, tenant, value)


def _number(name: str, text: str) -> float:
    try:
        found: float = NUMBERS[name](text)
        return found
    except ValueError as error:
        raise SettingsError("AOS5002", f"{name}={text!r}: a tenant's share is a number") from error


def setting(wanted: Wanted) -> Callable[[History], list[Wanted]]:
    """A change of one setting; none when it is so already."""

    def make(history: History) -> list[Wanted]:
        now = history.state.values.get((wanted.name, wanted.tenant))
        return [] if now == wanted.value else [wanted]

    return make


def going_back(version: int) -> Callable[[History], list[Wanted]]:
    """A change that puts everything as it was at a version: a new version, nothing is taken out of the history."""

    def make(history: History) -> list[Wanted]:
        differ = history.diff(history.version, version)
        return [Wanted(name, tenant, accepted(name, then, tenant)) for (name, tenant), _, then in differ]

    return make


async def read(settings: Settings) -> History:
    """The whole history. StackError when the broker does not answer."""
    history, codec = History(), WireCodec()
    for record in await whole(settings, TOPIC):
        if record.value is not None:
            history.add(record.key or b"", codec.decode(TOPIC, record.value, dict(record.headers)))
    return history


async def change(
    settings: Settings, make: Callable[[History], Sequence[Wanted]], by: str | None = None, reason: str = ""
) -> tuple[int, list[Wanted]]:
    """Make a change from what is in force; its version and what it changed (nothing: the version that is there).

    SettingsError AOS5008 when others were first `TRIES_MAX` times; then nothing was changed.
    """
    for _ in range(TRIES_MAX):
        history = await read(settings)
        wanted = list(make(history))
        if not wanted:
            return history.version, []
        id = uuid.uuid4().bytes
        await _append(settings, _rows(wanted, history.version + 1, id, by, reason or None))
        version = (await read(settings)).version_of(id)
        if version is not None:
            return version, wanted
    raise SettingsError("AOS5008")


def _rows(wanted: Sequence[Wanted], version: int, id: bytes, by: str | None, reason: str | None) -> Any:
    same = {"version": version, "change": id, "changed_by": by, "reason": reason}
    same["changed_at"] = time.time_ns() // 1000
    rows = [{"name": w.name, "tenant": w.tenant, "value": json.dumps(w.value), **same} for w in wanted]
    return from_dicts("setting", rows)


async def _append(settings: Settings, rows: Any) -> None:
    first = rows.slice(0, 1).to_pylist()[0]
    key = f"{first['version']}/{first['change'].hex()}".encode()
    await append(settings, TOPIC, rows, key, "`aos config history` says whether the change counts")
