"""What the loops of a processor share, one input topic of a partition, and the edges' controller."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from faust.types import TP

from aos.streams.dead_letters import DeadLetters
from aos.streams.processor import Output, Processor, Raw, Views
from aos.streams.shell.codec import Codec
from aos.streams.shell.consumer import SafeConsumer
from aos.streams.shell.crumbs import Crumbs
from aos.streams.shell.halt import Halt
from aos.streams.shell.metrics import Metrics
from aos.streams.shell.options import Options
from aos.streams.shell.pressure import Pressed, Pressure
from aos.streams.shell.producer import Producer
from aos.streams.shell.reader import Reader

PATIENCE_MOST = 4.0  # times the patience of a processor: its fetches while the machine is busy


@dataclass(slots=True)
class Kit:
    """What all loops of a processor share. `given` is what its steps may look at, `staleness_s` how long ago that was
    known to be complete, `outdated` that what decides here has not learned for long, `in_force` puts the settings of
    now into it, `held_back` says that nothing is to be taken in, `crowded` that nothing is of a topic that crowds
    others out, `ordered` under which order to stand still (its mark; empty: none)."""

    processor: Processor
    options: Options
    codec: Codec
    producer: Producer
    reader: Reader
    given: Views
    seed: int
    find_consumer: Callable[[], SafeConsumer]  # Faust makes it when the app starts
    metrics: Metrics
    limit: Callable[[str], int]  # bytes of one message, by topic
    staleness_s: Callable[[], float] = lambda: 0.0
    outdated: Callable[[], bool] = lambda: False
    in_force: Callable[[Processor, Views], Views] = lambda processor, views: views
    held_back: Callable[[], bool] = lambda: False
    crowded: Callable[[], bool] = lambda: False
    ordered: Callable[[], str] = lambda: ""
    crumbs: Crumbs = field(default_factory=lambda: Crumbs(None))
    halt: Halt = field(init=False)
    _patience: Pressed = field(init=False)

    def __post_init__(self) -> None:
        self.halt = Halt(self.processor.name, self.options, self.producer, self.reader)
        self._patience = Pressed(self.processor.patience_s)

    @property
    def patience_s(self) -> float:
        """How long the broker may collect messages for the processor now."""
        return self._patience.wait_s(self.processor.patience_s * PATIENCE_MOST)

    @property
    def consumer(self) -> SafeConsumer:
        return self.find_consumer()

    def wants(self, item: Input | None) -> bool:
        """Whether more of this input may be handed over."""
        if item is None or self.halt.reason is not None:
            return False
        return not item.held and item.waiting_bytes < self.options.waiting_bytes

    def dead_letter(self, raw: Raw, code: str, message: str) -> list[Output]:
        """What keeps a message that a step or a sink gave up on."""
        letters = DeadLetters(self.processor.name, getattr(self.given.settings, "tenants", ()))
        letters.refused(raw, code, message)
        return letters.outputs()

    @property
    def views(self) -> Views:
        """What a step may look at now; it says when that is old."""
        if not self.processor.views or not (self.staleness_s() > self.options.stale_s or self.outdated()):
            return self.in_force(self.processor, self.given)
        return replace(self.in_force(self.processor, self.given), stale=True)


@dataclass(slots=True)
class Input:
    """One topic of the partition. `position`: next offset to step; `committed`: C at the assignment."""

    topic: str
    tp: TP
    position: int
    committed: int
    queue: deque[Any] = field(default_factory=deque)
    waiting_bytes: int = 0
    held: bool = False

    @property
    def replaying(self) -> bool:
        """Whether messages below C are still to come (a gap right below C counts as replayed)."""
        if self.position >= self.committed or self.held:
            return False
        return not self.queue or self.queue[0].offset < self.committed

    def drop(self) -> None:
        self.queue.clear()
        self.waiting_bytes = 0


CROWD_MESSAGES, CROWD_TIMES = 32, 1.5


def uncrowded(inputs: Collection[Input]) -> list[Input]:
    """All but the topics that have so many messages waiting, and so many times their share of all that wait: their
    backlog is to be theirs alone. Topics that have about as much as each other are all taken from."""
    share = sum(len(item.queue) for item in inputs) / max(1, len(inputs))
    most = max(CROWD_MESSAGES, CROWD_TIMES * share)
    return [item for item in inputs if len(item.queue) <= most]


def runnable(inputs: Collection[Input], crowded: bool) -> list[Input]:
    """What may be stepped now; `crowded`: nothing of a topic that crowds others out."""
    return [item for item in (uncrowded(inputs) if crowded else inputs) if item.queue and not item.held]


class Done(NamedTuple):
    """What a round took of one topic: offsets from `first` to before `end`."""

    item: Input
    first: int
    end: int


class Gather:
    """Paces the rounds of a loop: latency while there is time, fewer and larger rounds while there is not.

    What waits goes at once when nothing of this partition is in the air and the last round left at least `wait_s` ago;
    else it waits for that moment, or until there are `full` records, or until nothing came for a quarter of `wait_s`
    (callers with few requests in flight send in bursts: nobody gains by waiting after one). A round costs about the
    same whatever is in it, here and in all later hops, so `wait_s` is, within bounds, at least a multiple of what
    acknowledgements take now (a moving mean); and for the edges, which set the pace of all, it grows while the machine
    is busy (`pressure.Pressed`) and shrinks while it has time. Measured on two cores with 1,000 agents: without this
    the rounds ate both cores at 25 requests/s as at 500. In a flood, when latency is lost anyway, the bound of `wait_s`
    grows with the square of the rows it makes: 1,500 requests/s instead of 800 went through with .6 s.
    """

    WEIGHT = 0.2  # of the newest acknowledgement or round
    QUIET = 0.25  # share of `wait_s` without a record after which nothing more is waited for

    def __init__(
        self,
        options: Options,
        edge: bool = True,
        pressure: Pressure | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._acks = options.gather_acks if edge else options.pace_acks
        self._least_s = options.gather_s if edge else 0.0
        self._most_s = options.gather_max_s if edge else options.pace_max_s
        self._full = options.gather_rows
        self._clock = clock
        self._left_at = self._came_at = float("-inf")
        self._ack_s = 0.0
        self._flood = options.gather_flood if edge else float("inf")
        self._flood_s = options.gather_flood_s
        self._rows_per_s = 0.0  # a moving mean
        self._pressed = Pressed(self._least_s, pressure) if edge and pressure is not None else None
        self.wait_s = self._least_s

    def delay(self, waiting: int) -> float:
        """Seconds until what is waiting may go."""
        if waiting >= self._full:
            return 0.0
        return max(0.0, min(self._left_at + self.wait_s, self._came_at + self.quiet_s) - self._clock())

    @property
    def quiet_s(self) -> float:
        """How long a record waits for the next one."""
        return self.QUIET * self.wait_s

    def came(self) -> None:
        """Records came."""
        self._came_at = self._clock()

    def goes(self, rows: int = 0) -> None:
        """A batch leaves, of which so many rows were made."""
        now = self._clock()
        rate = rows / max(self._least_s, now - self._left_at) if self._least_s else 0.0
        self._rows_per_s += self.WEIGHT * (rate - self._rows_per_s)
        self._left_at = now

    def acked(self) -> None:
        """All of it is acknowledged."""
        self._ack_s += self.WEIGHT * (self._clock() - self._left_at - self._ack_s)
        flood = (self._rows_per_s / self._flood) ** 2
        most_s = max(self._most_s, min(self._flood_s, self._most_s * flood))
        pressed_s = self._least_s if self._pressed is None else self._pressed.wait_s(most_s)
        self.wait_s = min(most_s, max(pressed_s, self._acks * self._ack_s))
