"""What agents, callers and operators may say: range checks of registrations, heartbeats, outcomes, calls, feedback,
controls and observations, by columns. What fails is named by row; nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aos.codecs.columns import floats, ints, lengths, offsets, valid
from aos.codecs.errors import RecordError

NAME_BYTES_MAX = 128
ID_BYTES_MAX = 256
WORDS_BYTES_MAX = 4_096  # of a message, reason, comment or description
NAMES_MAX = 64  # capabilities or tenants of an agent: match compares them as bits
AGENTS_MAX = 10_000  # that one heartbeat may name
CAPACITY_MAX = 100_000
TIMEOUT_MS_MIN, TIMEOUT_MS_MAX = 10, 7 * 86_400_000
COST_MAX = 10**15
CPU_US_MAX = 10**12
TOKENS_MAX = 10**12
FUTURE_US = 86_400_000_000  # clocks ahead by less are clamped
SERVICE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"  # it names a topic

CALL_BYTES_MAX = 64  # the name of a call is a part of its child's id
CALLS = ("delegate", "share")
OUTCOMES = ("ok", "failed", "progress")
REQUEST_ACTIONS = ("cancel", "redrive")
FLEET_ACTIONS = ("pause", "drain", "resume", "remove")
STRATEGY_ACTIONS = ("approve", "reject")

Refused = dict[int, RecordError]
Check = Callable[[pa.RecordBatch, np.ndarray], Refused]


class _Checks:
    """Collects what is wrong with the rows of one batch; the first thing of a row counts."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        self.columns: dict[str, pa.Array] = dict(zip(rows.schema.names, rows.columns, strict=True))
        self.count = rows.num_rows
        self.refused: Refused = {}

    def refuse(self, where: np.ndarray, detail: str, code: str = "AOS1014") -> None:
        if where.any():
            for row in np.flatnonzero(where):
                self.refused.setdefault(int(row), RecordError(code, detail))

    def number(self, low: int, high: int, *names: str) -> None:
        for name in names:
            column = self.columns[name]
            if column.null_count < self.count:
                values = ints(column, low)
                if int(values.min()) < low or int(values.max()) > high:
                    self.refuse((values < low) | (values > high), f"{name} must be from {low} to {high}")

    def share(self, *names: str) -> None:
        for name in names:
            column = self.columns[name]
            if column.null_count == self.count:
                continue
            values = floats(column, 0)
            self.refuse((values < 0) | (values > 1), f"{name} must be from 0 to 1")

    def text(self, most: int, *names: str, filled: bool = False) -> None:
        for name in names:
            column = self.columns[name]
            if column.null_count == self.count:
                continue
            sizes = lengths(column)
            self.refuse(sizes > most, f"{name} is longer than {most} bytes")
            if filled:
                self.refuse((sizes == 0) & valid(column), f"{name} is empty")

    def texts(self, many: int, *names: str) -> None:
        for name in names:
            column = self.columns[name]
            if column.null_count == len(column):
                continue
            counts = lengths(column)
            self.refuse(counts > many, f"{name} has more than {many} names")
            sizes = lengths(column.flatten())
            wrong = np.concatenate([[0], np.cumsum((sizes > NAME_BYTES_MAX) | (sizes == 0))])
            ends = np.cumsum(counts)
            self.refuse(
                wrong[ends] > wrong[ends - counts], f"{name}: a name is empty or over {NAME_BYTES_MAX} bytes"
            )

    def like(self, pattern: str, name: str) -> None:
        matched = pc.match_substring_regex(self.columns[name], pattern).fill_null(True)
        self.refuse(~matched.to_numpy(zero_copy_only=False), f"{name} must match {pattern}")

    def one_of(self, known: tuple[str, ...], name: str) -> None:
        column = self.columns[name]
        if _all_are(column, known[0]):
            return
        inside = pc.is_in(column, pa.array(known))
        self.refuse(~inside.to_numpy(zero_copy_only=False), f"{name} must be one of {', '.join(known)}")

    def either(self, *names: str) -> None:
        """At least one of the columns must be filled, and not with an empty text."""
        filled = np.zeros(self.count, bool)
        for name in names:
            column = self.columns[name]
            filled |= lengths(column) > 0 if pa.types.is_string(column.type) else valid(column)
        self.refuse(~filled, f"{' or '.join(names)} must be given", "AOS1004")


def _all_are(column: pa.Array, word: str) -> bool:
    """Whether a text column holds one word in every row: the usual case, for a tenth of a kernel's price."""
    data, ends = word.encode(), offsets(column) if len(column) else np.zeros(1, np.int32)
    if column.null_count or not (ends[1:] - ends[:-1] == len(data)).all():
        return False
    held = column.buffers()[2]
    return held is not None and bytes(held)[int(ends[0]) : int(ends[-1])] == data * len(column)


def registrations(rows: pa.RecordBatch) -> Refused:
    """Agents a service offers."""
    checks = _Checks(rows)
    checks.like(SERVICE, "service")
    checks.text(NAME_BYTES_MAX, "agent", "cell", filled=True)
    checks.texts(NAMES_MAX, "capabilities", "tenants")
    checks.text(WORDS_BYTES_MAX, "description")
    checks.number(1, CAPACITY_MAX, "capacity")
    checks.number(0, COST_MAX, "price_usd_micros")
    checks.number(TIMEOUT_MS_MIN, TIMEOUT_MS_MAX, "timeout_ms")
    return checks.refused


def heartbeats(rows: pa.RecordBatch) -> Refused:
    """Signs of life of replicas."""
    checks = _Checks(rows)
    checks.like(SERVICE, "service")
    checks.text(NAME_BYTES_MAX, "replica", filled=True)
    checks.texts(AGENTS_MAX, "agents")
    checks.number(0, CAPACITY_MAX * AGENTS_MAX, "busy")
    return checks.refused


def outcomes(rows: pa.RecordBatch, partitions: int) -> Refused:
    """Answers of agents; `partitions` of the ledger. A payload that is too large is no reason to refuse."""
    checks = _Checks(rows)
    checks.number(0, partitions - 1, "home")
    checks.number(0, 2**15 - 1, "step")
    checks.number(1, 2**15 - 1, "attempt")
    checks.number(0, 2**63 - 1, "epoch")
    checks.text(NAME_BYTES_MAX, "agent", filled=True)
    checks.one_of(OUTCOMES, "status")
    checks.text(NAME_BYTES_MAX, "replica", "content_type", "code")
    checks.share("score", "progress")
    checks.number(0, COST_MAX, "cost_usd_micros")
    checks.number(0, CPU_US_MAX, "cpu_us")
    checks.number(0, TOKENS_MAX, "tokens_in", "tokens_out")
    return checks.refused


def ranges_of_calls(rows: pa.RecordBatch, partitions: int) -> Refused:
    """What agents at work ask for; `partitions` of the ledger. What a child may be is `agents.requests`'."""
    checks = _Checks(rows)
    checks.one_of(CALLS, "action")
    checks.text(CALL_BYTES_MAX, "call", filled=True)
    checks.number(0, partitions - 1, "home")
    checks.number(0, 2**15 - 1, "step")
    checks.number(1, 2**15 - 1, "attempt")
    checks.number(0, 2**63 - 1, "epoch")
    checks.text(NAME_BYTES_MAX, "agent", filled=True)
    checks.number(0, 2**63 - 1, "context_version")
    return checks.refused


def feedback(rows: pa.RecordBatch) -> Refused:
    """Verdicts of callers."""
    checks = _Checks(rows)
    checks.either("id", "request_id")
    checks.text(ID_BYTES_MAX, "id")
    checks.text(NAME_BYTES_MAX, "domain", "step")
    checks.text(WORDS_BYTES_MAX, "comment")
    checks.share("score")
    return checks.refused


def controls(rows: pa.RecordBatch, partitions: int, tenants: tuple[str, ...]) -> Refused:
    """Orders of operators; `partitions` of the ledger."""
    checks = _Checks(rows)
    checks.one_of((*REQUEST_ACTIONS, *FLEET_ACTIONS, *STRATEGY_ACTIONS), "action")
    checks.text(ID_BYTES_MAX, "id")
    checks.text(NAME_BYTES_MAX, "agent", "service", "strategy")
    checks.text(WORDS_BYTES_MAX, "reason")
    checks.number(0, partitions - 1, "home")
    known = pc.is_in(rows["tenant"], pa.array([*tenants, None], pa.string())).to_numpy(zero_copy_only=False)
    checks.refuse(~known, "tenant is not named in the settings")
    for actions, names in ((REQUEST_ACTIONS, ("id", "request_id")), (FLEET_ACTIONS, ("agent", "service"))):
        part = _Checks(rows)
        part.either(*names)
        concerned = pc.is_in(rows["action"], pa.array(actions)).to_numpy(zero_copy_only=False)
        for row, error in part.refused.items():
            if concerned[row]:
                checks.refused.setdefault(row, error)
    unread = pc.is_in(rows["action"], pa.array(STRATEGY_ACTIONS)).to_numpy(zero_copy_only=False)
    checks.refuse(unread, "approving and rejecting strategies has no reader in this release")
    return checks.refused


def observations(rows: pa.RecordBatch, appended_at: np.ndarray) -> Refused:
    """Events of foreign logs: any time since 1970, for old logs are mined too."""
    checks = _Checks(rows)
    checks.text(ID_BYTES_MAX, "case", filled=True)
    checks.text(NAME_BYTES_MAX, "activity", filled=True)
    checks.text(NAME_BYTES_MAX, "resource")
    checks.share("score")
    times = ints(rows["time"], 0)
    checks.refuse(times < 0, "time is before 1970", "AOS1012")
    checks.refuse(
        times > appended_at + FUTURE_US, "time is more than a day after the broker's clock", "AOS1012"
    )
    return checks.refused
