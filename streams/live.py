"""Settings that change at run time: which of the changes on `aos.settings` count, and what is in force then.

in: aos.settings, one message a change, by the view service of each process; whoever changes them appends to the same
    partition (infra/live.py).
key: <version>/<change>: no change ever replaces another, so the compacted topic keeps every version.
state: the version, and what was set by name and tenant.
order: the partition's. A change counts when its version is one more than the last that counted, so of two that were
    made from the same version the first in the log counts and the other nowhere: no lock, no clock, and every reader
    comes to the same verdict. A change that comes twice counts once.
errors: none. A change that this release does not accept (unknown name, out of range) takes its version, so that all
    releases count alike, and changes nothing; `refused` says why.

Only row and journal processors see the changes (`in_force`): what they decide is written to a log before it acts, and
is read, not decided again, when that log is read again. A fold's state must come out of its log alone: it gets
the settings of the start, whatever was set since.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from aos.codecs.errors import SettingsError
from aos.codecs.settings import NUMBERS, Settings, accepted
from aos.streams.processor import Law, Processor, Views

TOPIC = "aos.settings"
LAWS = (Law.ROW, Law.JOURNAL)  # of the processors that see changes


class RuntimeSettings:
    """What was set at run time. `version` counts the changes that count; 0 when nothing was ever set.

    `values`: by name and tenant (empty: for all), without those that are as at the start again.
    """

    def __init__(self) -> None:
        self.version = 0
        self.values: dict[tuple[str, str], Any] = {}
        self.refused: dict[int, str] = {}  # version -> why this release does not accept it
        self._made: tuple[Settings, Settings] | None = None

    def apply(self, key: bytes, rows: pa.RecordBatch | None) -> bool:
        """Take in one change; whether it counts."""
        changes = rows.to_pylist() if rows is not None else []
        if {change["version"] for change in changes} != {self.version + 1}:
            return False
        self.version += 1
        try:
            self._take([(c["name"], c["tenant"], json.loads(c["value"])) for c in changes])
        except (SettingsError, ValueError) as error:
            self.refused[self.version] = str(error)
        return True

    def _take(self, changes: Sequence[tuple[str, str, Any]]) -> None:
        """All of a change or nothing of it."""
        checked = {(name, tenant): accepted(name, value, tenant) for name, tenant, value in changes}
        values = self.values | checked
        self.values = {place: value for place, value in values.items() if value is not None}
        self._made = None

    def over(self, settings: Settings) -> Settings:
        """The settings of the start with what was set for all; the same object until something changes."""
        if self._made is None or self._made[0] is not settings:
            named = {name: value for (name, tenant), value in self.values.items() if not tenant}
            for name in NUMBERS:
                own = self.of_tenants(name)
                if own:
                    named[name] = named.get(name, getattr(settings, name)) | own
            self._made = settings, replace(settings, **named) if named else settings
        return self._made[1]

    def of_tenants(self, name: str) -> dict[str, Any]:
        """What was set for single tenants, by tenant."""
        return {tenant: value for (known, tenant), value in self.values.items() if tenant and known == name}


def in_force(processor: Processor, views: Views) -> Views:
    """What a step of this processor may look at, with the settings that are in force for it."""
    runtime = views.views.get(TOPIC)
    if runtime is None or views.settings is None or not sees_changes(processor):
        return views
    settings = runtime.over(views.settings)
    return views if settings is views.settings else replace(views, settings=settings)


def sees_changes(processor: Processor) -> bool:
    """Whether settings change under this processor."""
    return TOPIC in processor.views and processor.law in LAWS


def by_tenant(views: Views, name: str, tenants: Sequence[str]) -> np.ndarray:
    """A number setting for rows of these tenants: float64, one a row."""
    value = getattr(views.settings, name)
    runtime = views.views.get(TOPIC)
    own = runtime.of_tenants(name) if runtime is not None and runtime.values else {}
    if not own:
        return np.full(len(tenants), value, np.float64)
    return np.array([own.get(tenant, value) for tenant in tenants], np.float64)


def ordered(views: Views, name: str, tenant: str) -> Any:
    """What somebody set at run time for this tenant, else for all; None when nobody did."""
    runtime = views.views.get(TOPIC)
    if runtime is None or not runtime.values:
        return None
    return runtime.values.get((name, tenant), runtime.values.get((name, "")))
