"""Quarantine and sampling as functions; what they do to rows is in test_collect.py."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from aos.analytics.sampling import draws, share_of


def ids(count: int) -> pa.Array:
    return pa.array(
        [hashlib.blake2b(str(n).encode(), digest_size=16).digest() for n in range(count)], pa.binary(16)
    )


def test_draws_are_uniform_and_do_not_follow_the_attempt() -> None:
    count = 20_000
    zeros = np.zeros(count, np.int16)
    first, second = draws(ids(count), zeros, zeros), draws(ids(count), zeros, zeros + 1)
    for found in (first, second):
        counts, _ = np.histogram(found, bins=20, range=(0, 1))
        assert ((counts - 1000) ** 2 / 1000).sum() < 50  # chi squared, 19 degrees: 50 is p = .0001
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


@pytest.mark.parametrize(
    ("count", "span_us", "rows_per_s", "share"),
    [(0, 0, 1, 1.0), (50, 0, 2000, 1.0), (100, 0, 2000, 0.5), (100, 100_000, 500, 0.5), (10, 10**9, 1, 1.0)],
)
def test_share_keeps_the_rate(count: int, span_us: int, rows_per_s: int, share: float) -> None:
    assert share_of(count, span_us, rows_per_s) == share
