"""What a worker needs to know beside its processors: where the broker is, bounds and times."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from aos.agents.sdk.security import Security

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Options:
    """Every bound of the shell, by name. `infra` fills it from the settings.

    `ordinal` numbers the workers that run the same processors: it makes the static group instance id, so two
    live workers of one processor must differ in it, and a restarted worker must come back with its own.
    `security` says how the broker is spoken to and as whom.
    """

    bootstrap: str
    prefix: str = ""
    ordinal: int = 0
    security: Security = field(default_factory=Security)
    # group
    session_timeout_s: float = 10.0  # 60 s by default: a killed worker's partitions would wait that long
    heartbeat_s: float = 2.0
    rebalance_timeout_s: float = 60.0
    commit_interval_s: float = 0.5
    leave: bool = False  # at a stop: give the partitions up at once, instead of keeping them for a restart
    # a stop or revocation waits so long for the running step, then leaves without commit (exit 75)
    stop_s: float = 15.0
    leave_s: float = 5.0  # for commits and connections, after the steps and snapshots of a stop
    # reading: what aiokafka prefetches, and what may wait for a step in one partition
    fetch_bytes: int = 16 * MIB
    partition_fetch_bytes: int = 4 * MIB
    fetch_records: int = 512
    waiting_bytes: int = 4 * MIB
    # one round of steps before its outputs are sent: bounds memory, latency and what a kill repeats
    round_s: float = 0.02
    round_bytes: int = 4 * MIB
    # writing: half of the broker's socket.request.max.bytes (16 MiB), because aiokafka does not bound a request
    inflight_bytes: int = 8 * MIB
    message_bytes: int = 8 * MIB
    deliver_s: float = 120.0
    # between two rounds of an edge, and of all others: see `kit.Gather`
    gather_s: float = 0.025
    gather_max_s: float = 0.2
    # an edge that makes more rows/s than the first may wait longer by the square of it, up to the second
    gather_flood: float = 2000.0
    gather_flood_s: float = 0.6
    gather_acks: float = 2.0
    gather_rows: int = 1024
    # an edge that yields to a later processor: how old its undone work may be
    behind_s: float = 5.0
    late_s: float = 1.5  # .. from here on a topic that crowds others out waits alone
    pace_max_s: float = 0.05
    pace_acks: float = 2.0
    # sinks: one bundle
    bundle_s: float = 0.3
    bundle_bytes: int = 16 * MIB
    sink_s: float = 30.0
    # snapshots: not more often than the first, and at the latest after the second if anything changed
    snapshot_min_s: float = 10.0
    snapshot_max_s: float = 30.0
    snapshot_rows: int = 20_000
    snapshot_stop_s: float = 2.0
    # the event loop must turn, and every partition with work must move, within this time
    watchdog_s: float = 60.0
    # views that were last known to be complete longer ago are stale: what is decided by them is marked degraded
    stale_s: float = 5.0
    # .. and so is what is decided by beliefs when experiences wait for longer than this; a restart of learn takes less
    learned_s: float = 15.0
    # topics whose missing messages the operator accepts: see `halt`
    accept_loss: frozenset[str] = frozenset()
    # where a worker leaves what it is at, so that the next one finds what ended it: see `crumbs`; empty: nowhere
    crumbs: str = ""
    # for tests: waits before each sending of what a step made
    ack_delay_s: float = 0.0

    def clients(self) -> dict[str, Any]:
        """The arguments that every aiokafka client gets."""
        return self.security.clients(self.bootstrap)

    def as_processor(self, name: str) -> Options:
        """The same for the clients of one processor, which is a user of its own where there is a folder of users."""
        own = self.security.named(f"{self.prefix}aos.{name}")
        return self if own is self.security else replace(self, security=own)
