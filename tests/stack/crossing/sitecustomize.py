"""Each Python program that tests of the stack start imports this: where it is a worker, it notes what it crosses.

A line of the file CROSSINGS_TO is one crossing: ["input topic", "processor", "output topic"], written once a process,
when the broker has acknowledged the output (SQL: when the transaction is committed). The product knows nothing of it.
An edge processor takes messages of several topics at once; which of them an output came of is told by the output: a
dead letter names its topic, the rows of the ledger and of the fleet have a kind, all others have one source.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.abc
import importlib.machinery
import json
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

Crossing = tuple[str, str, str]
SQL = "sql"
DEAD = "aos.dead-letters"
NOBODY = "nobody"
OF_KIND = {
    "aos.ledger": {
        "outcome": "aos.outcomes", "delegated": "aos.calls", "shared": "aos.calls", "cancel": "aos.controls",
        "redrive": "aos.controls",
    },
    "aos.fleet": {"registered": "aos.agents", "beat": "aos.heartbeats", "control": "aos.controls"},
}  # fmt: skip


def _task() -> Any:
    """Who steps or delivers; None for a test that plays a log by hand, of which nothing goes to a broker."""
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs
        return None


class _Notes:
    """What was stepped by which task and waits for its acknowledgement; what was written down."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.waiting: dict[Any, set[Crossing]] = {}
        self.written: set[Crossing] = set()

    def stepped(self, crossings: set[Crossing]) -> None:
        new = crossings - self.written
        if new and (task := _task()) is not None:
            self.waiting.setdefault(task, set()).update(new)

    def delivered(self, topics: set[str]) -> None:
        waiting = self.waiting.get(_task(), set())
        done = {one for one in waiting if one[2] in topics}
        waiting -= done
        self.write(done)

    def write(self, crossings: set[Crossing]) -> None:
        new = sorted(crossings - self.written)
        if new:
            self.written.update(new)
            text = "".join(json.dumps(one) + "\n" for one in new)
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(file, text.encode())  # one call: lines of several processes stay whole
            os.close(file)


def _base(topic: str) -> str:
    from aos.codecs.topics import base_of

    return base_of(topic)


def _inputs_of_edge(batch: Any, output: Any, may: Callable[[str, str], bool]) -> set[str]:
    """Of which of a fetch's topics an output is made."""
    if output.topic == DEAD:
        return {_base(topic) for topic in output.rows.column("topic").to_pylist()}
    there = {_base(raw.topic) for raw in batch.raws}
    able = {topic for topic in there if may(topic, output.topic)}
    if len(able) > 1:
        kinds = OF_KIND[output.topic]
        able = {kinds.get(kind, NOBODY) for kind in output.rows.column("kind").to_pylist()}
    return able if able <= there else {NOBODY}  # no edge of the topology: the test of the whole run tells


def _inputs(processor: Any, batch: Any, output: Any, may: Callable[[str, str], bool]) -> set[str]:
    """Which inputs made an output. What a view says by a tick is about what it read before, on its only topic."""
    if batch.tick:
        return {_base(topic) for topic in processor.reads} if len(processor.reads) == 1 else set()
    return _inputs_of_edge(batch, output, may) if processor.edge else {_base(batch.topic)}


def _noting(processor: Any, notes: _Notes, may: Callable[[str, str], bool]) -> Any:
    step = processor.step
    every = {(s, processor.name, t) for s in processor.reads for t in processor.writes if may(s, t)}

    def noted(state: Any, batch: Any, now: int, views: Any, seed: int) -> Any:
        result = step(state, batch, now, views, seed)
        if every <= notes.written:
            return result  # the tests of speed run with this, too
        notes.stepped({
            (source, processor.name, _base(output.topic))
            for output in (*result.first, *result.outputs)
            for source in _inputs(processor, batch, output, may)
        })  # fmt: skip
        return result

    return dataclasses.replace(processor, step=noted)


def _topology(module: ModuleType, notes: _Notes) -> None:
    from aos.codecs.topics import TOPICS  # noqa: F401  - imported before the topology in any case

    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    try:
        from edges import may
    finally:
        sys.path.pop()
    for name, processor in module.PROCESSORS.items():
        module.PROCESSORS[name] = _noting(
            processor, notes, lambda source, target, name=name: may(name, source, target)
        )


def _producer(module: ModuleType, notes: _Notes) -> None:
    deliver = module.Producer.deliver

    async def delivered(self: Any, messages: Sequence[Any]) -> list[int]:
        offsets: list[int] = await deliver(self, messages)
        notes.delivered({_base(message.topic) for message in messages})
        return offsets

    module.Producer.deliver = delivered


def _sinks(module: ModuleType, notes: _Notes) -> None:
    write = module.SinkRunner._write

    async def written(self: Any, portions: Sequence[Any]) -> bool:
        good: bool = await write(self, portions)
        if good:
            notes.write({(_base(portion.topic), self.kit.processor.name, SQL) for portion in portions})
        return good

    module.SinkRunner._write = written


PATCHES = {
    "aos.streams.topology": _topology,
    "aos.streams.shell.producer": _producer,
    "aos.streams.shell.sinks": _sinks,
}


class _Loader(importlib.abc.Loader):
    def __init__(self, real: Any, patch: Callable[[ModuleType, _Notes], None], notes: _Notes) -> None:
        self.real, self.patch, self.notes = real, patch, notes

    def create_module(self, spec: Any) -> ModuleType | None:
        made: ModuleType | None = self.real.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self.real.exec_module(module)
        self.patch(module, self.notes)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, notes: _Notes) -> None:
        self.notes = notes

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        patch = PATCHES.get(name)
        if patch is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = _Loader(spec.loader, patch, self.notes)
        return spec


if "CROSSINGS_TO" in os.environ:
    sys.meta_path.insert(0, _Finder(_Notes(os.environ["CROSSINGS_TO"])))
