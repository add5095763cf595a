"""The whole topology in memory: a virtual clock and a seeded scheduler that kills, repeats, delays and lags.

The processors are the real ones; broker (`simulated_log`) and shell (`simulated_loop`) are played by the rules of the
real ones. The same seed gives the same run; whatever fails names the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from aos.codecs.settings import Settings
from aos.codecs.topics import DEFAULT_TENANT, TOPICS, tenant_topic
from aos.streams.processor import Law, Processor, View
from aos.streams.simulated_log import Chances, World
from aos.streams.simulated_loop import DEATHS, Died, Loop, Place, Process

WEEK_US = 7 * 86_400_000_000
STALLED_ROUNDS_MAX = 5  # of an owner that does not know that it has been replaced
STEPS_MAX = 400_000  # a run that is still busy then goes round in circles


class Actor(Protocol):
    """Somebody outside: an agent's service, a client, an operator."""

    def act(self, world: World) -> bool:
        """Do what is due now; whether anything was done."""

    def alarm(self) -> int | None:
        """When there is something to do although nothing comes; None for never."""


class Simulation:
    """Build it, `run` it until quiet, look at `world`."""

    def __init__(
        self,
        processors: Mapping[str, Processor],
        groups: Mapping[str, Sequence[str]],
        views: Mapping[str, View],
        *,
        seed: int,
        settings: Settings | None = None,
        chances: Chances | None = None,
        actors: Sequence[Actor] = (),
    ) -> None:
        """`groups`: which processors share a process; each group has one process a partition."""
        self.world = World(seed, settings or Settings(), chances or Chances())
        self.actors = tuple(actors)
        self.steps = self.kills = self.moves = self.stalls = 0
        self._undead: list[Loop] = []
        self.processes = []
        for names in groups.values():
            members = [processors[name] for name in names if processors[name].law is not Law.SINK]
            for partition in range(self.world.settings.partitions):
                places = [self._place(p, partition) for p in members if partition < self._partitions(p)]
                if places:
                    self.processes.append(Process(self.world, places, views))

    def _partitions(self, processor: Processor) -> int:
        return max(self.world.count(name) for name in processor.reads)

    def _place(self, processor: Processor, partition: int) -> Place:
        tenants = [t for t in self.world.settings.tenants if t != DEFAULT_TENANT]
        reads: list[str] = []
        for name in processor.reads:
            reads.append(name)
            if TOPICS[name].per_tenant:
                reads += [tenant_topic(name, tenant) for tenant in tenants]
        return Place(processor, partition, {t: 0 for t in reads if partition < self.world.count(t)})

    def loop(self, name: str, partition: int) -> Loop:
        """The owner of a processor's partition now."""
        for process in self.processes:
            for loop in process.loops:
                if (loop.processor.name, loop.partition) == (name, partition):
                    return loop
        raise KeyError(f"{name}/{partition}")

    def run(self, until: Callable[[], bool] | None = None, for_us: int = WEEK_US) -> None:
        """Schedule until `until` holds, or nobody has anything to do for `for_us` of the clock from now on.

        `until` is asked when all messages are read.
        """
        end = self.world.clock + for_us
        try:
            while self.steps < STEPS_MAX:
                if not self._once() and ((until is not None and until()) or not self._jump(end)):
                    return
        except Exception as error:
            error.add_note(f"seed {self.world.seed}, step {self.steps}, clock {self.world.clock}")
            raise
        raise AssertionError(f"seed {self.world.seed}: still busy after {STEPS_MAX} steps")

    def _once(self) -> bool:
        """Let a little time pass and somebody act; False when all is quiet."""
        world = self.world
        self.steps += 1
        world.clock += world.random.randint(1, world.chances.delay_us)
        busy = world.land()
        for actor in self.actors:
            busy = actor.act(world) or busy
        if self._undead and world.chance(0.5):
            world.undead = True
            self._undead.pop(world.random.randrange(len(self._undead))).round()
            world.undead = False
        loops = [(process, loop) for process in self.processes for loop in process.loops]
        world.random.shuffle(loops)
        for process, loop in loops:
            if loop.wants():
                process.follow()
                self._round(process, loop)
                return True
        for process in self.processes:
            busy = process.follow() or busy
        return busy

    def _round(self, process: Process, loop: Loop) -> None:
        world, chances = self.world, self.world.chances
        if world.chance(chances.kill):
            self.kills += 1
            try:
                loop.round(world.random.choice(DEATHS))
            except Died:
                process.start()
            return
        loop.round()
        if world.chance(chances.commit):
            loop.commit()
        if world.chance(chances.snapshot):
            loop.save()
        if world.chance(chances.move):
            self.moves += 1
            process.replace(loop, settled=True)
        elif world.chance(chances.rewind):
            self.moves += 1
            process.replace(loop, settled=False)
        elif world.chance(chances.stall):
            self.stalls += 1
            process.replace(loop, settled=False)
            self._undead += [loop] * world.random.randint(1, STALLED_ROUNDS_MAX)

    def _jump(self, end: int) -> bool:
        """Let the time pass until something is due; False when nothing is before `end`."""
        alarms = [loop.alarm() for process in self.processes for loop in process.loops]
        alarms += [actor.alarm() for actor in self.actors]
        alarms += [at for at, _ in self.world.later]
        due = min((at for at in alarms if at is not None), default=end)
        self.world.clock = max(self.world.clock, min(due, end))
        return due < end
