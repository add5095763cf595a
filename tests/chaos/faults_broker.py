"""Faults of the broker: killed, restarted, its disk full, topics deleted and made anew, logs cut short."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from random import Random

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.structs import TopicPartition

from aos.codecs.topics import TOPICS
from aos.infra.runtime import options
from aos.streams.shell.topics import Admin, provision, spec_of
from tests.chaos.faults import Injected, inject_by
from tests.chaos.looks import lines, log_size, send_plain, written
from tests.chaos.machine import SmallDisk, cpu_seconds, no_tmpfs
from tests.chaos.stand import Stand

SHORT_S, LONG_S = 3.0, 40.0
SPIN_MAX = 0.2  # of a core, while there is nothing to do but to try again
SPARE_BYTES = 64 << 20
HALT_S = 40.0
ALARM_S = 30.0
NOT_OURS = "not found in cluster metadata"  # aiokafka says so while the topic is away, to nobody's alarm
VICTIM = "aos.feedback"  # read by admit; no request and no outcome is in it, so nothing acknowledged is lost with it


def killed(stand: Stand, random: Random) -> Injected:
    """Fault 4: SIGKILL, away for a moment, then for longer than a session; nobody spins meanwhile."""
    began, failed, said = time.time(), [], []
    for away_s in (SHORT_S, LONG_S):
        stand.kill_broker()
        time.sleep(1.0)
        used = {name: cpu_seconds(pid) for name, pid in stand.pids().items() if name in stand.processes()}
        time.sleep(away_s - 1.0)
        if away_s == LONG_S:
            for name, before in used.items():
                share = (cpu_seconds(stand.pids().get(name, 0)) - before) / (away_s - 1.0)
                said.append(f"{name} {share:.0%}")
                if share > SPIN_MAX:
                    failed.append(("I10", f"{name} used {share:.0%} of a core without a broker"))
        stand.start_broker()
        healed = time.time()
        time.sleep(random.uniform(4.0, 8.0))
    detail = f"away {SHORT_S:.0f} s and {LONG_S:.0f} s; CPU meanwhile: {', '.join(said)}"
    return Injected(began, healed, "kafka", outage=SHORT_S + LONG_S, failed=tuple(failed), detail=detail)


def restarted(stand: Stand, random: Random) -> Injected:
    """Fault 5: SIGTERM and up again, as in an upgrade."""
    began = time.time()
    stand.stop_broker()
    stand.start_broker()
    healed = time.time()
    return Injected(
        began, healed, "kafka", outage=healed - began, detail="one node: leader and controller at once"
    )


def full(stand: Stand, random: Random) -> Injected:
    """Fault 9: the log's disk is full to the last byte; the broker halts, and starts again once there is room.

    Its data lies on a small disk for that; the broker is stopped in good order to move it there and back.
    """
    began, failed = time.time(), []
    disk = SmallDisk(stand.broker.folder / "data", SPARE_BYTES)
    try:
        stand.stop_broker()
        disk.move_in()
        stand.start_broker()
        time.sleep(8.0)  # those who wait for it find it again
        disk.fill()
        filled = time.time()
        code = stand.children.wait(stand.broker.name, HALT_S)
        halted = time.time() - filled
        if code is None:
            failed.append(("I10", f"the broker did not halt {HALT_S:.0f} s after its disk was full"))
            stand.kill_broker()
        time.sleep(2.0)
        disk.free()
        stand.start_broker()
        time.sleep(8.0)
        stand.stop_broker()
        disk.move_out()
        stand.start_broker()
    finally:
        disk.give_up()
    healed = time.time()
    detail = f"halted {halted:.1f} s after the last byte was taken, with code {code}"
    return Injected(began, healed, "kafka", outage=healed - began, failed=tuple(failed), detail=detail)


def topics_changed(stand: Stand, random: Random) -> Injected:
    """Fault 34: a topic that is read is deleted and made anew, then cut short beyond the reader's lag.

    Each must be told within 30 s, in the reader's log or on aos.alerts; silence is a violation of I6. The reader stands
    still, so the operator starts it anew, and names the topic whose loss is accepted.
    """
    began = time.time()
    failed = []
    for name, change in (("made anew", _made_anew), ("cut short", _cut_short)):
        before, alerts = log_size(stand, "worker-edge-0"), written(stand, "aos.alerts")
        change(stand)
        if not _alarm(stand, before, alerts):
            failed.append(("I6", f"{VICTIM} was {name}: no alarm within {ALARM_S:.0f} s"))
        if change is _cut_short:
            stand.settings = replace(stand.settings, accept_loss=(VICTIM,))
        stand.up.stack.children.stop("worker-edge-0", 30)
        healed = time.time()
        stand.up.start_worker("edge")
        stand.wait_ready()
    return Injected(began, healed, "worker-edge-0", failed=tuple(failed), detail=f"{VICTIM}, read by admit")


def _cut_short(stand: Stand) -> None:
    """Records that the reader has not seen are removed while it rests."""
    send_plain(stand, VICTIM, {"id": "nobody", "score": 0.5})
    time.sleep(3.0)  # it is read and its offset committed: from now on the group knows where it was
    stand.up.stack.children.stop("worker-edge-0", 30)
    for number in range(20):
        send_plain(stand, VICTIM, {"id": f"nobody-{number}", "score": 0.5})
    asyncio.run(_delete_records(stand))
    stand.up.start_worker("edge")
    stand.wait_ready()


async def _delete_records(stand: Stand) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=stand.settings.bootstrap)
    await admin.start()
    try:
        places = [
            TopicPartition(stand.settings.prefix + VICTIM, number)
            for number in range(stand.settings.partitions if TOPICS[VICTIM].spread else 1)
        ]
        await admin.delete_records({place: RecordsToDelete(before_offset=-1) for place in places})
    finally:
        await admin.close()


def _made_anew(stand: Stand) -> None:
    async def change() -> None:
        async with Admin(options(stand.settings)) as admin:
            await admin.delete([VICTIM])
        await asyncio.sleep(1.0)
        await provision(options(stand.settings), [spec_of(TOPICS[VICTIM], stand.settings.partitions)])

    asyncio.run(change())


def _alarm(stand: Stand, after: int, alerts: int) -> bool:
    """Whether the reader names the topic in its log, of its own accord, or anybody writes an alert."""
    ends = time.monotonic() + ALARM_S
    while time.monotonic() < ends:
        said = lines(stand, "worker-edge-0", VICTIM, after)
        if any(NOT_OURS not in line for line in said) or written(stand, "aos.alerts") > alerts:
            return True
        time.sleep(0.5)
    return False


inject_by(4, killed)
inject_by(5, restarted)
inject_by(9, full, missing=no_tmpfs)
inject_by(34, topics_changed)
