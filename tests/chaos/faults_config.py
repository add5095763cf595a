"""Suite config: settings that are set, set badly and rolled back while work goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from random import Random
from typing import Any

from confluent_kafka import Producer

from aos.codecs import wire
from aos.codecs.rows import from_dicts
from aos.codecs.schemas import RECORDS
from tests.chaos.faults import Injected, inject_by
from tests.chaos.looks import restores
from tests.chaos.shelf import end_of, log_of
from tests.chaos.stand import ROOT, Stand

IN_FORCE_S = 10.0  # from when the command said that it was done
GRACE_S = 5.0  # for reading what was written in time
VERSIONS = 1 << 20  # a decision's number modulo this is the version of the settings it was made under
DECISIONS = "aos.decisions"
# what the command must refuse, with its code
BAD = (("quality_mim", "0.5", "AOS5001"), ("quality_min", "1.5", "AOS5002"), ("candidates_max", "many", "AOS5002"),
       ("attempts_max", "2", "AOS5006"), ("partitions", "4", "AOS5006"))  # fmt: skip


def rolled_back(stand: Stand, random: Random) -> Injected:
    """Fault 32: a setting is set, bad ones are refused by the command, one is pushed past it, and all is rolled back.

    Each version must be in force within 10 s, without a restart, and what was pushed badly must never be in force.
    """
    began, failed, said = time.time(), [], []
    before = {worker: (stand.pid(worker), restores(stand, worker)) for worker in stand.workers()}
    start = in_force(stand)
    chosen = str(random.choice((1, 2, 3)))
    steps: list[tuple[str, Callable[[], int]]] = [
        ("set", lambda: changed(stand, "set", "candidates_max", chosen, "--reason", "a trial")),
        ("set too", lambda: changed(stand, "set", "exploration", f"{random.uniform(0.1, 2.0):.2f}")),
        ("pushed badly", lambda: pushed(stand, start + 3, "candidates_max", "-1")),
        ("rolled back", lambda: changed(stand, "rollback", str(start))),
    ]  # fmt: skip
    for name, step in steps:
        if name == "pushed badly":
            failed += [("I10", what) for what in not_refused(stand, start + 2)]
        marks = [end_of(stand, DECISIONS, number) for number in range(stand.settings.partitions)]
        version = step()
        took = decided_under(stand, version, marks, time.time())
        if took is None:
            failed.append(("I8", f"{name}: no decision under version {version} within {IN_FORCE_S:.0f} s"))
        else:
            said.append(f"{name} in {max(took, 0.0):.1f} s")  # often before the command has ended
    healed = time.time()
    failed += [("I10", what) for what in wrong_after(stand, start)]
    after = {worker: (stand.pid(worker), restores(stand, worker)) for worker in stand.workers()}
    if after != before:
        failed.append(("I10", f"somebody was started anew: {before}, {after}"))
    return Injected(began, healed, "aos.settings", failed=tuple(failed), detail=", ".join(said))


def aos(stand: Stand, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of AOS, as an operator types it."""
    settings = stand.settings
    env = {
        "AOS_BOOTSTRAP": settings.bootstrap, "AOS_DATABASE_URL": settings.database_url,
        "AOS_PREFIX": settings.prefix, "AOS_TENANTS": ",".join(settings.tenants), "PATH": "/usr/bin:/bin",
    }  # fmt: skip
    argv = [sys.executable, "-m", "aos", *arguments]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, env=env, timeout=90, check=False)


def changed(stand: Stand, *arguments: str) -> int:
    """The version a `config` command made; OSError when it did not."""
    done = aos(stand, "config", *arguments, "--by", "chaos", "-o", "json")
    if done.returncode != 0:
        raise OSError(f"aos config {' '.join(arguments)}: {done.stderr}")
    return int(json.loads(done.stdout)["version"])


def not_refused(stand: Stand, version: int) -> list[str]:
    """Bad settings that the command took, or refused without saying why; they leave no version."""
    found = []
    for name, value, code in BAD:
        done = aos(stand, "config", "set", name, value)
        if done.returncode != 2 or code not in done.stderr:
            found.append(f"{name}={value}: exit {done.returncode}, {done.stderr.strip()[-200:]}")
    if in_force(stand) != version:
        found.append(f"a refused setting left version {in_force(stand)}, not {version}")
    return found


def in_force(stand: Stand) -> int:
    """The last version, as `aos config history` has it; 0 when nothing was ever set."""
    return max((row["version"] for row in history(stand)), default=0)


def history(stand: Stand) -> list[dict[str, Any]]:
    done = aos(stand, "config", "history", "-o", "json")
    if done.returncode != 0:
        raise OSError(f"aos config history: {done.stderr}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def pushed(stand: Stand, version: int, name: str, value: str) -> int:
    """A change that no command would write, put on the topic by hand; its version."""
    change = bytes([version % 256] * 16)
    row = {"version": version, "change": change, "name": name, "tenant": "", "value": value,
           "changed_at": time.time_ns() // 1000, "changed_by": "chaos", "reason": "bad"}  # fmt: skip
    body, headers = wire.encode(from_dicts("setting", [row]), RECORDS["setting"])
    refused: list[Any] = []
    producer = Producer({"bootstrap.servers": stand.settings.bootstrap, "acks": "all"})
    producer.produce(
        f"{stand.settings.prefix}aos.settings", body, f"{version}/{change.hex()}".encode(), 0,
        headers=dict(headers), on_delivery=lambda error, _: refused.append(error) if error else None,
    )  # fmt: skip
    if producer.flush(30) or refused:
        raise OSError(f"aos.settings did not take it: {refused}")
    return version


def decided_under(stand: Stand, version: int, marks: list[int], asked: float) -> float | None:
    """Seconds from `asked` until a decision of this version was written behind `marks`; None when it took too long."""
    while time.time() < asked + IN_FORCE_S + GRACE_S:
        for partition, first in enumerate(marks):
            for message in log_of(stand, DECISIONS, partition, first):
                marks[partition] = message.offset() + 1
                rows = wire.decode(message.value(), {}, RECORDS["decision"])
                numbers = rows.column("settings_version").to_pylist()
                if any(number % VERSIONS == version for number in numbers if number is not None):
                    took = message.timestamp()[1] / 1000 - asked
                    return took if took <= IN_FORCE_S else None
        time.sleep(0.2)
    return None


def wrong_after(stand: Stand, start: int) -> list[str]:
    """What is not as it was before: values that differ, and what was pushed badly and is not told as refused."""
    found = []
    done = aos(stand, "config", "diff", str(start), str(start + 4), "-o", "json")
    if done.returncode != 0 or json.loads(done.stdout):
        found.append(f"after the rollback this differs: {done.stdout} {done.stderr}")
    bad = [row for row in history(stand) if row["version"] == start + 3]
    if not bad or not bad[0]["refused"]:
        found.append(f"the change that was pushed badly is not told as refused: {bad}")
    return found


inject_by(32, rolled_back)
