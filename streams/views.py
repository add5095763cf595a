"""How each view topic becomes something a step can ask: the one table of `processor.View`s.

Each view is an object with `apply(key, rows or None)`; the view service of a process calls it, nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from hashlib import blake2b
from typing import Protocol

import pyarrow as pa

from aos.agents.fleet import Fleet
from aos.analytics.beliefs import Beliefs
from aos.analytics.patterns import Patterns
from aos.analytics.strategies import Strategies
from aos.codecs.settings import Settings, fingerprint
from aos.streams.live import RuntimeSettings
from aos.streams.orders import Orders
from aos.streams.processor import View, Views

# keys that one view remembers as refused, 16 bytes each; beyond that every key counts as refused
REFUSED_MAX = 4_096


class Refused(Collection[bytes]):
    """Keys whose newest record a view could not take in: what it says of them is older, or nothing.

    A good record of the key, or its tombstone, mends it.
    """

    def __init__(self) -> None:
        self._digests: set[bytes] = set()
        self._lost = False  # more than could be remembered were refused

    def add(self, key: bytes) -> None:
        """The newest record of this key was refused."""
        if len(self._digests) < REFUSED_MAX:
            self._digests.add(_digest(key))
        else:
            self._lost = True

    def mend(self, key: bytes) -> None:
        """A record of this key was taken in."""
        if self._digests:
            self._digests.discard(_digest(key))

    def __contains__(self, key: object) -> bool:
        return self._lost or (isinstance(key, bytes) and _digest(key) in self._digests)

    def __iter__(self) -> Iterator[bytes]:
        """What is remembered: the digests."""
        return iter(self._digests)

    def __len__(self) -> int:
        return len(self._digests)


def _digest(key: bytes) -> bytes:
    return blake2b(key, digest_size=16).digest()


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
        _view("aos.processors", Orders),
    )
}
