"""Forked workers: each journals an input before it decodes it, so that what kills it is counted, kept and passed over.

A worker has a bound on its address space, a bound on the CPU time of an input, and its memory is looked at after each.
The parent only waits: it kills a worker whose journal stands still and starts one behind the input that ended the last.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from tests.fuzz.targets import Corpus, Target

FOUND = Path(__file__).parent / "found"
HANG_CPU_S = 1.0  # of CPU: the clock of a busy machine says nothing of the input
HANG_WALL_S = 30.0
ROOM_BYTES = 2 << 30  # address space beyond what a worker has at its start
RISE_KIB = 256 * 1024
KEPT_MAX = 20  # files a run; more of the same kind teach nothing
KINDS = ("refused", "accepted", "found")


class Hang(BaseException):
    """The time of an input is over; no `except Exception` of the product may eat it."""


@dataclass
class Tally:
    """What a run found."""

    inputs: int = 0
    crashes: int = 0
    hangs: int = 0
    silent_accepts: int = 0
    by_target: dict[str, Counter[str]] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def add(self, target: str, what: str, number: int = 1) -> None:
        self.by_target.setdefault(target, Counter())[what] += number

    def found(self, target: str, what: str, index: int, why: str) -> None:
        """One crash, hang or silent accept."""
        setattr(self, what, getattr(self, what) + 1)
        self.add(target, what)
        if len(self.examples) < KEPT_MAX:
            self.examples.append(f"{what} {target} input {index}: {why}")


def made(seed: int, index: int, targets: list[Target], corpus: Corpus) -> tuple[Target, list[Any]]:
    """Input `index` of a seed: the same for ever while corpus and targets are."""
    rng = Random(f"{seed}:{index}")
    target = rng.choices(targets, [one.share for one in targets])[0]
    return target, target.make(rng, corpus)


def run(
    seed: int,
    inputs: int,
    targets: list[Target],
    corpus: Corpus,
    jobs: int,
    folder: Path,
    found: Path = FOUND,
) -> Tally:
    """All inputs of a seed, dealt to `jobs` workers in turn; `found`: where what goes wrong is kept."""
    tally = Tally()
    folder.mkdir(parents=True, exist_ok=True)
    shares = [_Share(seed, inputs, number, jobs, targets, corpus, folder, found) for number in range(jobs)]
    while any(not share.done for share in shares):
        time.sleep(0.05)
        for share in shares:
            share.look(tally)
    for share in shares:
        share.collect(tally)
    return tally


class _Share:
    """One worker's inputs: `number`, `number` + jobs, …"""

    def __init__(
        self,
        seed: int,
        inputs: int,
        number: int,
        jobs: int,
        targets: list[Target],
        corpus: Corpus,
        folder: Path,
        found: Path,
    ) -> None:
        self.seed, self.inputs, self.jobs, self.targets, self.corpus = seed, inputs, jobs, targets, corpus
        self.journal = folder / f"journal-{os.getpid()}-{number}"
        self.results = folder / f"results-{os.getpid()}-{number}"
        self.results.write_bytes(b"")
        # shared with the worker, so that a crash takes no count with it
        self.counts = np.frombuffer(mmap.mmap(-1, 8 * len(targets) * len(KINDS)), np.int64)
        self.found, self.done = found, False
        self._start(number)

    def _start(self, index: int) -> None:
        self.seen, self.moved = b"", time.monotonic()
        self.journal.write_bytes(b"")
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                code = _work(self, index)
            finally:
                os._exit(code)

    def look(self, tally: Tally) -> None:
        """See whether the worker lives and moves."""
        if self.done:
            return
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            with self.journal.open("rb") as file:
                head = file.read(16)
            if head != self.seen:
                self.seen, self.moved = head, time.monotonic()
            elif time.monotonic() - self.moved > HANG_WALL_S:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self._after(tally, "hangs", f"stood still for {HANG_WALL_S:.0f} s")
            return
        if os.waitstatus_to_exitcode(status) == 0:
            self.done = True
            return
        code = os.waitstatus_to_exitcode(status)
        self._after(tally, "crashes", signal.Signals(-code).name if code < 0 else f"exit {code}")

    def _after(self, tally: Tally, what: str, why: str) -> None:
        """Keep what ended the worker, and go on behind it."""
        entry = self.journal.read_bytes()
        if len(entry) < 16:
            raise RuntimeError(f"a worker ended before its first input: {why}")
        index = int.from_bytes(entry[:8], "little")
        size = int.from_bytes(entry[8:16], "little")
        target, _ = msgspec.msgpack.decode(entry[16 : 16 + size], type=tuple[str, Any])
        tally.found(target, what, index, why)
        tally.inputs += 1
        self.keep(f"{what}-{target}-{self.seed}-{index}", entry[16 : 16 + size])
        self._start(index + self.jobs)

    def keep(self, name: str, entry: bytes) -> None:
        """Keep an input for a reader: (target, [(topic, value, headers)]) as msgpack."""
        self.found.mkdir(exist_ok=True)
        if len(list(self.found.glob("*.msgpack"))) < KEPT_MAX:
            (self.found / f"{name}.msgpack").write_bytes(entry)

    def collect(self, tally: Tally) -> None:
        """Add what the workers of this share wrote down."""
        for line in self.results.read_bytes().splitlines():
            kind, target, index, why = msgspec.json.decode(line)
            tally.found(target, kind, index, why)
        tally.inputs += int(self.counts.sum())
        for place, number in enumerate(self.counts.tolist()):
            target, kind = self.targets[place // len(KINDS)].name, KINDS[place % len(KINDS)]
            if kind != "found" and number:
                tally.add(target, kind, number)
        self.journal.unlink()
        self.results.unlink()


def _work(share: _Share, index: int) -> int:
    logging.disable(logging.CRITICAL)
    pa.set_cpu_count(1)
    signal.signal(signal.SIGPROF, _over)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * os.sysconf("SC_PAGE_SIZE") + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    places = {target.name: place * len(KINDS) for place, target in enumerate(share.targets)}
    journal = os.open(share.journal, os.O_WRONLY)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with share.results.open("ab", buffering=0) as results:
        while index < share.inputs:
            target, messages = made(share.seed, index, share.targets, share.corpus)
            entry = msgspec.msgpack.encode((target.name, messages))
            os.pwrite(journal, index.to_bytes(8, "little") + len(entry).to_bytes(8, "little") + entry, 0)
            before = max(peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # making is no decoding
            kind, why = _one(target, messages)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if peak - before > RISE_KIB:
                kind, why = "crashes", f"memory rose by {(peak - before) // 1024} MiB"
            if kind not in KINDS:
                results.write(msgspec.json.encode([kind, target.name, index, why]) + b"\n")
                share.keep(f"{kind}-{target.name}-{share.seed}-{index}", entry)
                kind = "found"
            share.counts[places[target.name] + KINDS.index(kind)] += 1
            index += share.jobs
    return 0


def _one(target: Target, messages: list[Any]) -> tuple[str, str]:
    """Run one input: ("refused" or "accepted", "") or what is wrong."""
    try:
        signal.setitimer(signal.ITIMER_PROF, HANG_CPU_S)
        try:
            wrong = target.run(messages)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except Hang:
        return "hangs", f"over {HANG_CPU_S} s of CPU"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "crashes", f"{error!r:.200} at {Path(where.filename).name}:{where.lineno}"
    if wrong is None:
        return "refused", ""
    return ("silent_accepts", "; ".join(wrong)[:300]) if wrong else ("accepted", "")


def _over(number: int, frame: FrameType | None) -> None:
    raise Hang


@contextlib.contextmanager
def planted(name: str) -> Any:
    """A product that is broken on purpose, to see whether the oracle says so; see tests/fuzz/test_fuzz.py."""
    from tests.fuzz import plants

    undo = plants.PLANTS[name]()
    try:
        yield
    finally:
        undo()
