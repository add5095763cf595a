"""Which experiences may teach, and which the costly learners see.

Quarantine keeps a row as evidence but lets it teach nothing. Sampling draws by a hash of the attempt, so that the same
attempt is always in or out, at a share that follows from the message alone; the share is stored with the row, and
whoever sums over sampled rows divides by it (Horvitz and Thompson 1952).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from aos.codecs.columns import floats, ints, valid

MESSAGE_US = (
    25_000  # log time one message stands for at least: 40 a second are a partition's budget (design.md)
)

IGNORED = "ignored-answer"
NO_AGENT = "agent-missing"
NO_SURFACE = "features-missing"
SCORE_RANGE = "score-out-of-range"
SCORE_MISSING = "score-missing"
NEGATIVE = "negative-amount"
REASONS = (
    IGNORED,
    NO_AGENT,
    NO_SURFACE,
    SCORE_RANGE,
    SCORE_MISSING,
    NEGATIVE,
)  # the first that holds is given

AMOUNTS = ("latency_us", "waited_us", "cost_usd_micros", "cpu_us", "tokens")


def share_of(count: int, span_us: int, rows_per_s: int) -> float:
    """Probability of sampling a row of a message of `count` rows that took `span_us`.

    >>> share_of(16, 20_000, 2_000), share_of(500, 50_000, 2_000)
    (1.0, 0.2)
    """
    return min(1.0, rows_per_s * max(span_us, MESSAGE_US) / 1e6 / count) if count else 1.0


def draws(
    ids: pa.Array, steps: npt.NDArray[np.int16], attempts: npt.NDArray[np.int16]
) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each attempt, always the same, uniform over attempts; `ids` are 16 hashed bytes each."""
    whole = np.frombuffer(ids.buffers()[1], np.uint64, 2 * len(ids), ids.offset * 16)
    mixed = whole[::2] ^ (whole[1::2] << np.uint64(1))
    mixed = mixed + steps.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = mixed + attempts.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # splitmix64's finish
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return np.asarray((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53, np.float64)


def quarantine(columns: dict[str, pa.Array]) -> pa.Array:
    """Why each row must not teach (one of `REASONS`), null where it may. Degraded decisions may: they are marked."""
    score = columns["score"]
    scores = floats(score, 0.0)
    attempt, ignored = _equal(columns["kind"], "attempt", IGNORED.partition("-")[0])
    missing = np.zeros(len(score), bool)
    if score.null_count:
        missing = attempt & ~valid(score) & _equal(columns["status"], "ok")[0]
    tests = (
        ignored,
        attempt & ~valid(columns["agent"]),
        attempt & ~valid(columns["surface"]),
        (scores < 0) | (scores > 1) | ~np.isfinite(scores),
        missing,
        np.logical_or.reduce([ints(columns[name], 0) < 0 for name in AMOUNTS]),
    )
    why = np.zeros(len(score), np.int8)
    for place in reversed(range(len(REASONS))):
        why[tests[place]] = place + 1
    return _WHY.take(pa.array(why)) if why.any() else pa.nulls(len(score), pa.string())


_WHY = pa.array([None, *REASONS])


def _equal(column: pa.Array, *words: str) -> list[npt.NDArray[np.bool_]]:
    """Where a text column of few different values, none null, holds each of `words`."""
    known = column.dictionary_encode()
    values, places = known.dictionary.to_pylist(), known.indices.to_numpy()
    return [np.array([value == word for value in values], bool)[places] for word in words]


def settled(score: pa.Array, status: pa.Array) -> pa.Array:
    """Scores, with 0 for what failed or timed out and has none; who was stopped by others keeps null."""
    if score.null_count == 0:
        return score
    lost = pc.and_(pc.is_null(score), pc.is_in(status, pa.array(["failed", "timeout"])))
    return pc.if_else(lost, pa.scalar(0.0, score.type), score)
