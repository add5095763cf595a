"""CPU by process from /proc: what a process and all below it used, and its busiest thread."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
FULL = 0.9  # a Python process (one interpreter lock) or a machine this busy has nothing left to give
OTHERS = 0.1  # cores; below that the machine was ours


@dataclass(frozen=True)
class Used:
    """CPU seconds so far: of a process with its children, and of each thread."""

    total_s: float
    threads_s: Mapping[tuple[int, str], float]


@dataclass(frozen=True)
class Sample:
    """All watched processes at one moment; `machine_s`: CPU time that the whole machine was busy."""

    at: float
    processes: Mapping[str, Used]
    machine_s: float


@dataclass(frozen=True)
class Cores:
    """Cores in use between two samples. `thread`: by name of the process, its busiest thread.

    `others` is what everything else on the machine used: above a few hundredths the figures are not ours alone.
    """

    process: Mapping[str, float]
    thread: Mapping[str, float]
    others: float
    machine: int

    @property
    def total(self) -> float:
        return sum(self.process.values())

    def says(self) -> str:
        """Where it saturates, in a sentence."""
        parts = [
            f"{name} uses {used:.2f} cores (its busiest thread {self.thread[name]:.2f})"
            for name, used in sorted(self.process.items(), key=lambda item: -item[1])
            if used >= FULL
        ]
        if self.total + self.others >= FULL * self.machine:
            parts.append(f"the machine's {self.machine} cores are full ({self.total + self.others:.2f})")
        if self.others >= OTHERS:
            parts.append(f"other programs took {self.others:.2f} cores")
        if parts:
            return "; ".join(parts)
        busiest = max(self.process, key=lambda name: self.process[name], default="nothing")
        share = self.process.get(busiest, 0.0)
        return f"nothing: {self.total:.2f} of {self.machine} cores, most in {busiest} ({share:.2f})"

    def detail(self) -> dict[str, object]:
        """For the history."""
        return {
            "cores": {name: round(used, 3) for name, used in self.process.items()},
            "cores_busiest_thread": {name: round(used, 3) for name, used in self.thread.items()},
            "cores_others": round(self.others, 3),
            "saturates": self.says(),
        }


def sample(pids: Mapping[str, int]) -> Sample:
    """What the processes named have used by now."""
    return Sample(time.monotonic(), {name: _used(pid) for name, pid in pids.items()}, _machine())


def between(before: Sample, after: Sample) -> Cores:
    """Cores in use between two samples of the same processes."""
    seconds = after.at - before.at
    process, thread = {}, {}
    for name, used in after.processes.items():
        old = before.processes.get(name, Used(0.0, {}))
        process[name] = max(0.0, used.total_s - old.total_s) / seconds
        grown = [value - old.threads_s.get(key, 0.0) for key, value in used.threads_s.items()]
        thread[name] = max([0.0, *grown]) / seconds
    busy = (after.machine_s - before.machine_s) / seconds
    return Cores(process, thread, max(0.0, busy - sum(process.values())), len(os.sched_getaffinity(0)))


def _used(pid: int) -> Used:
    """A process, what it has reaped, and all that lives below it."""
    total, threads = 0.0, {}
    with suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked: it uses nothing more
        own = _times(Path(f"/proc/{pid}/stat"))
        total += sum(own[:4]) * TICK_S
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                threads[(pid, task.name)] = sum(_times(task / "stat")[:2]) * TICK_S
                for child in (task / "children").read_text().split():
                    below = _used(int(child))
                    total += below.total_s
                    threads.update(below.threads_s)
    return Used(total, threads)


def _times(path: Path) -> list[int]:
    """utime, stime, and those of children that ended and were waited for."""
    return [int(word) for word in path.read_text().rpartition(")")[2].split()[11:15]]


def _machine() -> float:
    """Seconds of CPU time that were not idle since the machine started."""
    words = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _, _, irq, softirq, _ = words
    return (user + nice + system + irq + softirq) * TICK_S
