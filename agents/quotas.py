"""Quotas of tenants and shedding under overload: who may come in now, counted from the log alone.

in: a requested row with the limits that the edge wrote into it, and what is in flight and waiting in this partition.
out: a typed refusal (AOS2101 requests a second, AOS2102 in flight, AOS2103 bytes a second, AOS2104 overload), or none.
key: tenant, in one partition of the ledger. state: `Accounts`; the time of the log is its only clock, and the limits
stand in the rows, so the same log gives the same refusals whatever the settings are by then.
order: the log's. duplicates: a repeated request never comes here (`ledger` answers it again); a refused one takes
nothing.

**Rates** are token buckets, kept as one number each: the time at which the bucket is full again (the generic cell
rate algorithm, ITU-T I.371). What takes n tokens moves it n / rate ahead of now, and may not move it further than the
burst. What is larger than a whole bucket passes when the bucket is full; the rate over time holds all the same.

**Shares.** Requests are spread over partitions by a hash of their id, and nobody sees all of a tenant's. Each
partition therefore gets an even share of each quota: a rate divided by their number, and of n in flight n // partitions
or one more, so that the shares add up to the quota and it is never exceeded. What that means for small quotas is in
docs/operations.md.

**Overload.** Work waits here from its request until its first agent. Of priority p (1 to 3) a request is shed when
more than `waiting_max` / 2^(p-1) steps wait whose priority is p or goes before it. Whoever of priority p is shed, p + 1
is shed too at that moment; 0 is never shed, it waits until its deadline. What has started is never shed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from aos.codecs.settings import EVERY_OTHER

RETRY_IN_FLIGHT_MS = 1_000
"""Suggested wait when too many are in flight: nobody knows when the first of them ends."""

RETRY_OVERLOAD_MS = 5_000
"""Suggested wait when work is shed."""

FIRST, LAST = 0, 3  # priorities
_SECOND_US = 1_000_000


class Limits(NamedTuple):
    """What a requested row says: columns `quota_…` and `waiting_max`; None is no limit."""

    requests: float | None = None
    bytes: float | None = None
    in_flight: int | None = None
    burst_s: float | None = None
    shares: int | None = None
    waiting: int | None = None


NONE = Limits()


class Refusal(NamedTuple):
    """Why a request does not come in, and when it may be tried again."""

    code: str
    message: str
    retry_after_ms: int


class Incoming(NamedTuple):
    """A request at the door. `size`: bytes of all texts and payloads, `steps`: how many."""

    tenant: str
    priority: int
    steps: int
    size: int


@dataclass(slots=True)
class Account:
    """What a tenant has taken here. `…_full_at`: when that bucket is full again, microseconds; 0 if it always was."""

    in_flight: int = 0
    requests_full_at: int = 0
    bytes_full_at: int = 0


class Accounts:
    """All tenants of one partition. Only buckets are state of their own: the rest follows from what is in flight."""

    __slots__ = ("_accounts", "partition", "waiting")

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.waiting = [0] * (LAST + 1)  # steps by priority
        self._accounts: dict[str, Account] = {}

    def of(self, tenant: str) -> Account:
        """The tenant's account, new if there is none."""
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = Account()
        return account

    def buckets(self) -> Iterator[tuple[str, int, int]]:
        """Tenants that have buckets, by name: (tenant, requests_full_at, bytes_full_at)."""
        for tenant, account in sorted(self._accounts.items()):
            if account.requests_full_at or account.bytes_full_at:
                yield tenant, account.requests_full_at, account.bytes_full_at

    def take(self, asked: Incoming, limits: Limits, now: int) -> Refusal | None:
        """Let a request in and take its tokens, or say why not and take nothing."""
        shed = self._shed(asked, limits)
        if shed is not None or (
            limits.requests is None and limits.bytes is None and limits.in_flight is None
        ):
            return shed
        account, shares = self.of(asked.tenant), max(1, limits.shares or 1)
        if limits.in_flight is not None:
            share = limits.in_flight // shares + (self.partition < limits.in_flight % shares)
            if account.in_flight >= share:
                return _too_many(limits.in_flight, share, shares)
        burst = max(1, round((limits.burst_s or 0.0) * _SECOND_US))
        requests, bytes = account.requests_full_at, account.bytes_full_at
        if limits.requests is not None:
            requests, wait = _taken(requests, now, 1, limits.requests / shares, burst)
            if wait:
                return _too_fast("AOS2101", "requests", limits.requests, shares, wait)
        if limits.bytes is not None:
            bytes, wait = _taken(bytes, now, asked.size, limits.bytes / shares, burst)
            if wait:
                return _too_fast("AOS2103", "bytes", limits.bytes, shares, wait)
        account.requests_full_at, account.bytes_full_at = requests, bytes
        return None

    def enter(self, tenant: str, priority: int, steps: int) -> None:
        """A request is in flight and waits for its first agent."""
        self.of(tenant).in_flight += 1
        self.waiting[_lane(priority)] += steps

    def begin(self, priority: int, steps: int) -> None:
        """Its first agent is at work."""
        self.waiting[_lane(priority)] -= steps

    def leave(self, tenant: str, priority: int, steps: int, started: bool) -> None:
        """It has ended."""
        self.of(tenant).in_flight -= 1
        if not started:
            self.waiting[_lane(priority)] -= steps

    def _shed(self, asked: Incoming, limits: Limits) -> Refusal | None:
        lane = _lane(asked.priority)
        if limits.waiting is None or lane == FIRST:
            return None
        most = limits.waiting >> (lane - 1)
        waiting = sum(self.waiting[: lane + 1])
        if waiting < most:
            return None
        return Refusal(
            "AOS2104",
            f"{waiting} steps of priority {lane} or before it wait in this partition, {most} may: "
            f"try again in {RETRY_OVERLOAD_MS} ms",
            RETRY_OVERLOAD_MS,
        )


def limits_of(tenant: str, quota: dict[str, float]) -> float | None:
    """A tenant's quota among those by tenant; None for no limit."""
    return quota.get(tenant, quota.get(EVERY_OTHER))


def _lane(priority: int) -> int:
    return min(max(priority, FIRST), LAST)


def _taken(full_at: int, now: int, tokens: int, rate: float, burst: int) -> tuple[int, int]:
    """When the bucket is full after `tokens` are taken, and how long to wait (microseconds) if they are not there.

    `burst`: microseconds from empty to full; a bucket holds at least one token.
    """
    price = -int(-tokens * _SECOND_US // rate)  # rounded up: the rate is never exceeded
    burst = max(burst, -int(-_SECOND_US // rate))
    owed = max(0, full_at - now)
    wait = owed + min(price, burst) - burst
    return (full_at, wait) if wait > 0 else (now + owed + price, 0)


def _too_fast(code: str, what: str, limit: float, shares: int, wait_us: int) -> Refusal:
    wait = -(-wait_us // 1000)
    here = f" ({limit / shares:g} in this partition)" if shares > 1 else ""
    return Refusal(code, f"the limit is {limit:g} {what} a second{here}: try again in {wait} ms", wait)


def _too_many(limit: int, share: int, shares: int) -> Refusal:
    here = f" ({share} in this partition)" if shares > 1 else ""
    words = f"the limit is {limit} requests in flight{here}: try again when one has ended"
    return Refusal("AOS2102", words, RETRY_IN_FLIGHT_MS)
