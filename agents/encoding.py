"""Texts to unit vectors and requests to surface features: offline, deterministic, without anything fitted.

`read` hashes the words, pairs of neighbouring words, and runs of three and four bytes of a text into two signed
histograms of 256 places (words in one, bytes in the other), makes each a unit vector, and adds them. A hashed n-gram
goes to one place with a random sign: a sparse random projection of the huge n-gram space, so the dot product of two
texts estimates how much they share. The histograms are integers; only the last rounding to half floats could differ
between processors' vector units. A text is encoded by itself: which others stand in the batch changes nothing.

cost: about 18 us for a text of 1,000 characters with its features, in batches of 512; no import beyond numpy and
pyarrow.
source: Weinberger et al. 2009, Feature Hashing (arXiv:0902.2206); Li, Hastie, Church 2006, Very Sparse Random
Projections.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aos.codecs.columns import lengths, offsets, valid
from aos.codecs.fields import EMBEDDING_SIZE, SURFACE_SIZE

CHUNK_BYTES = 65_536  # texts encoded at once: the intermediate arrays then stay in the processor's cache
SAMPLE_BYTES = 1_024  # of a payload, for its entropy: four blocks spread over it

SURFACE_NAMES: Final = (
    "intercept",  # 1
    "text_log",  # log of the text's bytes
    "digit_share",  # of the text's bytes, as all shares here
    "code_share",  # {}[]()<>;=_#`\|&@
    "maths_share",  # +-*/^%=$~
    "options",  # marks of a multiple choice ("A)", "2."), eight or more are 1
    "lines_log",  # log of the number of line breaks
    "question",  # question marks, two or more are 1
    "foreign_share",  # bytes outside ASCII
    "word_share",  # words a byte, times four, at most 1
    "payload_log",  # log of the payload's bytes
    "payload_entropy",  # bits a byte of a sample of the payload, divided by 8
    "budget_cpu_log",  # log of the CPU budget in us; 0 when there is none
    "budget_cpu_byte_log",  # log of the CPU budget in ns a byte of the payload; 0 when there is none
    "has_payload",  # 0 or 1
    "priority",  # divided by 3
)
assert len(SURFACE_NAMES) == SURFACE_SIZE

_PLACES = 2 * EMBEDDING_SIZE  # a place and a sign
_SHIFT32, _SHIFT64 = np.uint32(32 - 9), np.uint64(64 - 9)
assert _PLACES == 1 << 9
# odd constants of multiplicative hashing, any will do; changing one changes every stored vector
_RUN3, _RUN4 = np.uint32(0x9E3779B1), np.uint32(0x85EBCA6B)
_WORD, _PAIR, _FOLD = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xC2B2AE3D27D4EB4F),
    np.uint64(0xD6E8FEB86659FD93),
)
_BASE = 0x100000001B3

# what a byte counts as: a place in _COUNTED, 0 for nothing
_COUNTED: Final = (b"", b"0123456789", b"{}[]()<>;_#`\\|&@", b"+-*/^%$~", b"=", b"\n", b"?")
_DIGIT, _CODE, _MATHS, _CODE_AND_MATHS, _LINE, _QUESTION, _WORD_START, _OPTION = range(1, 9)
_COUNTS = _OPTION + 1
_CLASS = np.zeros(256, np.int64)
for _place, _bytes in enumerate(_COUNTED):
    _CLASS[list(_bytes)] = _place
_A, _ZERO, _SPACE = np.uint8(ord("a")), np.uint8(ord("0")), np.uint8(ord(" "))


class Reading(NamedTuple):
    """What texts are: one pass over their bytes gives both."""

    vectors: np.ndarray  # float16 [n, 256]: unit vectors; zeros for a null, empty or blank text
    features: np.ndarray  # float32 [n, 9]: text_log to word_share of SURFACE_NAMES

    def take(self, places: np.ndarray) -> Reading:
        """Those at `places`."""
        return Reading(self.vectors[places], self.features[places])


def read(texts: pa.Array) -> Reading:
    """Vectors and features of a string column, which may hold nulls."""
    count = len(texts)
    vectors = np.zeros((count, EMBEDDING_SIZE), np.float16)
    counts = np.zeros((count, _COUNTS), np.int64)
    sizes, foreign = _sizes(texts)
    # where all is ASCII the quick kernel gives the same
    lower = pc.utf8_lower(texts) if foreign.any() else pc.ascii_lower(texts)
    # one space before and three behind: a run of four that begins in a text never reaches into the next
    padded = pc.binary_join_element_wise(" ", lower, "   ", "", null_handling="replace", null_replacement="")
    for first, last, data, padded_sizes in _chunks(padded):
        vectors[first:last] = _vectors(data, padded_sizes, counts[first:last])
    if foreign.any() or not counts[:, _WORD_START].all():  # an ASCII text with a word is not blank
        vectors[lengths(pc.utf8_trim_whitespace(texts)) == 0] = 0
    return Reading(vectors, _features(sizes, foreign, counts))


def _sizes(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n] twice: bytes of each text, and how many of them are no ASCII."""
    sizes = lengths(texts)
    if not sizes.any():
        return sizes, sizes
    data, ends = _bytes_of(texts)
    part = data[ends[0] : ends[-1]]
    if part.max() < 128:
        return sizes, np.zeros(len(sizes), np.int64)
    before = np.zeros(len(part) + 1, np.int64)
    np.cumsum(part >= 128, out=before[1:])
    found = before[ends[1:] - ends[0]] - before[ends[:-1] - ends[0]]
    return sizes, np.where(valid(texts), found, 0)


def project(tensor: np.ndarray) -> np.ndarray:
    """A unit vector float16 [256] of a tensor of any size: itself, or a signed hash projection of its values."""
    values: np.ndarray = tensor.astype(np.float64)
    if len(values) != EMBEDDING_SIZE:
        hashes = np.arange(1, len(values) + 1, dtype=np.uint64) * _WORD * _FOLD >> _SHIFT64
        signed = np.where(hashes < EMBEDDING_SIZE, values, -values)
        values = np.bincount(hashes.astype(np.int64) % EMBEDDING_SIZE, signed, EMBEDDING_SIZE)
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0:
        return np.zeros(EMBEDDING_SIZE, np.float16)
    return np.asarray(_unit((values / largest)[None])[0].astype(np.float16))


def _bytes_of(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a string or binary column without nulls, and the offsets [n + 1] of its elements in them."""
    return np.frombuffer(texts.buffers()[2] or b"", np.uint8), offsets(texts)


def _chunks(texts: pa.Array) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Cut a column into pieces of about CHUNK_BYTES: (first row, row after the last, bytes, sizes)."""
    if len(texts) == 0:
        return
    data, ends = _bytes_of(texts)
    first = 0
    while first < len(texts):
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + CHUNK_BYTES, "right")) - 1)
        yield first, last, data[ends[first] : ends[last]], np.diff(ends[first : last + 1])
        first = last


def _vectors(data: np.ndarray, sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Vectors of padded lower-case texts `data` (uint8), whose padded sizes are `sizes`; fills `counts`."""
    count = len(sizes)
    ends = np.cumsum(sizes)
    letters = (data - _A) < np.uint8(26)
    wordy = letters | ((data - _ZERO) < np.uint8(10)) | (data >= np.uint8(128))
    _count_marks(data, letters, ends, counts)
    runs = _signed(_run_places(data, sizes), count)
    words = _signed(_word_places(data, wordy, ends, counts), count)
    found: np.ndarray = _unit(_unit(runs) + _unit(words)).astype(np.float16)
    return found


def _count_marks(data: np.ndarray, letters: np.ndarray, ends: np.ndarray, counts: np.ndarray) -> None:
    """Count digits, marks and marked choices of each text; most bytes are letters or spaces, and not looked at."""
    places = np.flatnonzero(~(letters | (data == _SPACE)))
    marks = data[places]
    rows = np.repeat(np.arange(len(ends)) * _COUNTS, _within(places, ends))
    counts += np.bincount(rows + _CLASS[marks], minlength=counts.size).reshape(counts.shape)
    # a choice is marked: a digit or a letter A to H alone, with `)`, `.` or `:` behind it
    closes = places[_CLOSES[marks]]
    options = closes[_NAMES[data[closes - 1]] & _OPENS[data[closes - 2]]]
    counts[:, _OPTION] = _within(options, ends)


def _within(places: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """How many of the ascending `places` lie in each text."""
    return np.diff(np.searchsorted(places, ends), prepend=0)


def _signed(places: np.ndarray, count: int) -> np.ndarray:
    """Sums of signs [count, 256] from places: row * 512 + sign * 256 + column."""
    counts = np.bincount(places, minlength=count * _PLACES)[: count * _PLACES]
    halves = counts.reshape(count, 2, EMBEDDING_SIZE)
    found: np.ndarray = (halves[:, 0] - halves[:, 1]).astype(np.float64)
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
    norms[norms == 0] = 1  # a vector of zeros stays one
    return np.asarray(vectors / norms)


def _run_places(data: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Places of all runs of three and of four bytes."""
    count, size = len(sizes), len(data) - 3
    four = np.ndarray((size,), "<u4", data, strides=(1,)).astype(np.uint32)
    # a run belongs to the text its first byte stands in; those of the last three bytes, to a row that nobody reads
    owners = np.full((count, 2), count * _PLACES, np.uint32)
    owners[:, 0] = np.arange(count) * _PLACES
    lengths = np.full((count, 2), 3)
    lengths[:, 0] = sizes - 3
    rows = np.repeat(owners.reshape(-1), lengths.reshape(-1))[:size]
    places = np.empty((2, size), np.uint32)
    np.multiply(four, _RUN4, out=places[0])
    four &= np.uint32(0xFFFFFF)
    np.multiply(four, _RUN3, out=places[1])
    places >>= _SHIFT32
    places += rows
    return places.reshape(-1)


def _word_places(data: np.ndarray, wordy: np.ndarray, ends: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Places of all words and of all pairs of neighbouring words of one text."""
    edges = np.flatnonzero(wordy[1:] != wordy[:-1]) + 1  # padded with spaces: starts and ends in turn
    starts, stops = edges[0::2], edges[1::2]
    # polynomial hash of each word from sums over all bytes: (S[stop] - S[start]) / base^start modulo 2^64
    power, inverse = _powers(1 << (len(data) - 1).bit_length())
    sums = np.zeros(len(data) + 1, np.uint64)
    terms = data.astype(np.uint64)
    terms *= power[: len(data)]
    np.cumsum(terms, out=sums[1:])
    words = (sums[stops] - sums[starts]) * inverse[starts] * _WORD
    words ^= words >> np.uint64(29)
    of_text = _within(starts, ends)
    counts[:, _WORD_START] = of_text
    rows = np.repeat(np.arange(len(ends)) * _PLACES, of_text)
    together = rows[:-1] == rows[1:]
    pairs = (words[:-1] * _PAIR + words[1:])[together]
    hashes = np.concatenate([words, pairs]) * _FOLD >> _SHIFT64
    return np.concatenate([rows, rows[1:][together]]) + hashes.astype(np.int64)


@cache
def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `size` powers of the hash's base and of its inverse, modulo 2^64."""
    found = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        factors = np.full(size, base, np.uint64)
        factors[0] = 1
        found.append(np.cumprod(factors, dtype=np.uint64))
    return found[0], found[1]


def surface(
    features: np.ndarray, payloads: pa.Array, priority: np.ndarray, budget_cpu_us: np.ndarray
) -> np.ndarray:
    """The features SURFACE_NAMES, float32 [n, 16], each about 0 to 1.

    `features` are those of a `Reading`, `payloads` (binary) may hold nulls; `budget_cpu_us` is 0 where there is none.
    """
    has, sizes = valid(payloads), lengths(payloads)
    found = np.zeros((len(features), SURFACE_SIZE), np.float32)
    found[:, 0] = 1
    found[:, 1:10] = features
    if has.any():
        found[:, 10] = np.log1p(sizes) / _LOG_BYTES
        found[has, 11] = _entropy(payloads.filter(pa.array(has)))
        found[:, 14] = has
    if budget_cpu_us.any():
        found[:, 12] = np.log1p(budget_cpu_us) / _LOG_CPU
        found[:, 13] = np.where(has, np.log1p(budget_cpu_us * 1000.0 / np.maximum(sizes, 1)) / _LOG_CPU, 0)
    found[:, 15] = priority / 3
    return found


_LOG_BYTES = float(np.log1p(32_768))
_LOG_CPU = float(np.log1p(1e9))  # 1,000 s of CPU, or a second a byte


def _features(sizes: np.ndarray, foreign: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """float32 [n, 9] from bytes, foreign bytes and `counts` of each text."""
    found = np.empty((len(sizes), 9), np.float32)
    found[:, 0] = np.log1p(sizes) / _LOG_BYTES
    size = np.maximum(sizes, 1)
    found[:, 1] = counts[:, _DIGIT] / size
    found[:, 2] = (counts[:, _CODE] + counts[:, _CODE_AND_MATHS]) / size
    found[:, 3] = (counts[:, _MATHS] + counts[:, _CODE_AND_MATHS]) / size
    found[:, 4] = np.minimum(counts[:, _OPTION] / 8, 1)
    found[:, 5] = np.log1p(counts[:, _LINE]) / _LOG_LINES
    found[:, 6] = np.minimum(counts[:, _QUESTION] / 2, 1)
    found[:, 7] = foreign / size
    found[:, 8] = np.minimum(counts[:, _WORD_START] / size * 4, 1)
    return found


def _entropy(payloads: pa.Array) -> np.ndarray:
    """Bits a byte, divided by 8, of a sample of each payload (a binary column without nulls)."""
    data, ends = _bytes_of(payloads)
    sizes = np.diff(ends)
    block = SAMPLE_BYTES // 4
    # up to SAMPLE_BYTES all of it, else four blocks at equal distances, the first at its start, the last at its end
    large = sizes > SAMPLE_BYTES
    steps = np.where(large, (sizes - block) // 3, np.minimum(sizes, SAMPLE_BYTES))
    starts = ends[:-1, None] + np.arange(4) * steps[:, None]
    lengths = np.zeros((len(sizes), 4), np.int64)
    lengths[large] = block
    lengths[:, 0] = np.where(large, block, sizes)
    flat = lengths.reshape(-1)
    firsts = np.cumsum(flat) - flat
    places = np.repeat(starts.reshape(-1) - firsts, flat) + np.arange(flat.sum())
    rows = np.repeat(np.arange(len(sizes) * 4) >> 2, flat)
    counts = np.bincount(rows * 256 + data[places], minlength=len(sizes) * 256).reshape(len(sizes), 256)
    total = np.maximum(counts.sum(axis=1), 1)
    bits = np.log2(total) - _COUNT_BITS[counts].sum(axis=1) / total
    return np.asarray(np.maximum(bits, 0) / 8)


_LOG_LINES = float(np.log1p(1_024))
_CLOSES, _NAMES, _OPENS = (
    np.isin(np.arange(256), list(marks)) for marks in (b").:", b"abcdefgh0123456789", b" \n\t(")
)
_COUNT_BITS = np.concatenate(
    [[0.0], np.arange(1, SAMPLE_BYTES + 1) * np.log2(np.arange(1, SAMPLE_BYTES + 1))]
)
