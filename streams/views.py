"""How each view topic becomes something a step can ask: the one table of `processor.View`s.

Each view is an object with `apply(key, rows or None)`; the view service of a process calls it, nobody else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pyarrow as pa

from aos.agents.fleet import Fleet
from aos.analytics.beliefs import Beliefs
from aos.analytics.patterns import Patterns
from aos.analytics.strategies import Strategies
from aos.codecs.settings import Settings, fingerprint
from aos.streams.live import RuntimeSettings
from aos.streams.processor import View, Views


class _Applies(Protocol):
    def apply(self, key: bytes, rows: pa.RecordBatch | None) -> object: ...


RUNTIME_VERSIONS = 2**20  # the part of a settings version that counts changes at run time


def settings_version(views: Views) -> int:
    """Which settings decide: fingerprint of those in force times 2^20, plus the version of the run-time ones.

    Equal numbers mean equal settings, in any process and run; 0 only where a step was given no settings. Below
    2^52, so that readers that know only doubles (JSON) see it exactly.
    """
    runtime = views.views.get("aos.settings")
    changes = runtime.version % RUNTIME_VERSIONS if runtime is not None else 0
    return _static(views.settings) * RUNTIME_VERSIONS + changes if views.settings is not None else changes


_known: list[tuple[Settings, int]] = []  # settings are frozen and few; a step asks for each message


def _static(settings: Settings) -> int:
    for one, number in _known:
        if one is settings:
            return number
    number = fingerprint(settings)
    _known[:] = [(settings, number), *_known[:7]]
    return number


def _view(topic: str, make: Callable[[], _Applies]) -> View:
    def apply(view: _Applies, key: bytes, rows: pa.RecordBatch | None) -> _Applies:
        view.apply(key, rows)
        return view

    return View(topic, make, apply)


VIEWS: dict[str, View] = {
    view.topic: view
    for view in (
        _view("aos.agent-states", Fleet),
        _view("aos.beliefs", Beliefs),
        _view("aos.patterns", Patterns),
        _view("aos.strategies", Strategies),
        _view("aos.settings", RuntimeSettings),
    )
}
