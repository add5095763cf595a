"""Unit vectors and surface features: deterministic, independent of the batch, and useful."""

from __future__ import annotations

import zlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aos.agents import encoding

TEXTS = st.lists(st.none() | st.text(max_size=60), max_size=6)


def embed(texts: pa.Array) -> np.ndarray:
    return encoding.read(texts).vectors


def norms(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(vectors.astype(np.float64), axis=1))


@settings(deadline=None)
@given(TEXTS)
def test_a_text_is_encoded_by_itself_whatever_stands_beside_it(texts: list[str | None]) -> None:
    column = pa.array(texts, pa.string())
    vectors = embed(column)
    assert vectors.shape == (len(texts), 256)
    assert vectors.dtype == np.float16
    for index in range(len(texts)):
        assert (embed(column.slice(index, 1))[0] == vectors[index]).all()


@settings(deadline=None)
@given(TEXTS)
def test_vectors_are_unit_or_zero_and_zero_only_for_blank_texts(texts: list[str | None]) -> None:
    found = norms(embed(pa.array(texts, pa.string())))
    for text, norm in zip(texts, found, strict=True):
        if not (text or "").strip():
            assert norm == 0 or norm == pytest.approx(1, abs=0.01)
        else:
            assert norm == pytest.approx(1, abs=0.01)


def test_null_and_empty_texts_are_zero() -> None:
    assert not embed(pa.array([None, "", "  ", "\n"], pa.string())).any()


def test_vectors_never_change_between_releases() -> None:
    vector = embed(pa.array(["Summarise this page, please."]))
    assert zlib.crc32(vector.tobytes()) == 0x4546C0B9


def test_case_does_not_matter_and_words_do() -> None:
    a, b, c, d = embed(
        pa.array(
            [
                "Translate the letter into French",
                "translate the LETTER into french",
                "Please translate a letter into French for me",
                "compress seventeen log files with zstd",
            ]
        )
    ).astype(np.float32)
    assert a @ b == pytest.approx(1, abs=0.01)
    assert a @ c > 0.5
    assert abs(a @ d) < 0.3


def test_texts_of_one_kind_are_closer_than_texts_of_two() -> None:
    sums = [f"What is {n} plus {n * 7 % 13}? Give the number." for n in range(20)]
    code = [f"Write a python function that sorts list number {n} by its key" for n in range(20)]
    vectors = embed(pa.array(sums + code)).astype(np.float32)
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -1)
    nearest = likeness.argmax(axis=1)
    assert all((nearest[n] < 20) == (n < 20) for n in range(40))


def test_a_long_text_and_a_long_batch_are_cut_into_pieces_without_trace() -> None:
    texts = [f"number {n} " * (n % 90) for n in range(300)] + ["word " * 20_000]
    whole = embed(pa.array(texts))
    assert all((embed(pa.array([texts[n]]))[0] == whole[n]).all() for n in (0, 89, 150, 299, 300))


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=300))
def test_a_tensor_becomes_a_unit_vector(values: list[float]) -> None:
    vector = encoding.project(np.array(values, np.float32))
    assert np.isfinite(vector).all()
    assert norms(vector[None])[0] == pytest.approx(1, abs=0.02) or not vector.any()


def test_a_tensor_of_256_values_is_only_normalised() -> None:
    values = np.arange(256, dtype=np.float32)
    assert np.allclose(encoding.project(values), values / np.linalg.norm(values), atol=1e-3)


def test_projections_keep_what_is_alike_alike() -> None:
    generator = np.random.default_rng(1)
    a = generator.normal(size=1000)
    b = a + generator.normal(size=1000) * 0.3
    near = encoding.project(a).astype(float) @ encoding.project(b).astype(float)
    far = encoding.project(a).astype(float) @ encoding.project(generator.normal(size=1000)).astype(float)
    assert near > 0.8
    assert abs(far) < 0.4


def features(
    text: str | None = None, payload: bytes | None = None, priority: int = 0, cpu: int = 0
) -> dict[str, float]:
    read = encoding.read(pa.array([text], pa.string())).features
    found = encoding.surface(read, pa.array([payload], pa.binary()), np.array([priority]), np.array([cpu]))
    assert found.shape == (1, 16)
    assert found.dtype == np.float32
    return dict(zip(encoding.SURFACE_NAMES, found[0].tolist(), strict=True))


def test_surface_features_say_what_their_names_say() -> None:
    nothing = features()
    assert nothing == dict.fromkeys(encoding.SURFACE_NAMES, 0.0) | {"intercept": 1.0}
    assert features("12ab")["digit_share"] == 0.5
    assert features("f(x)")["code_share"] == 0.5
    assert features("1+1=")["maths_share"] == 0.5
    assert features("A) one B) two")["options"] == 0.25
    assert features("a\nb\nc")["lines_log"] > features("a\nb c")["lines_log"] > 0
    assert features("why? how? what?")["question"] == 1
    assert features("é")["foreign_share"] == 1
    assert features("a b c d")["word_share"] == 1
    assert features(priority=3)["priority"] == 1
    assert features(payload=b"")["has_payload"] == 1
    assert features(payload=b"x", cpu=1000)["budget_cpu_log"] == pytest.approx(np.log1p(1000) / np.log1p(1e9))
    long, short = features(payload=bytes(10_000), cpu=1000), features(payload=bytes(10), cpu=1000)
    assert long["payload_log"] > short["payload_log"]
    assert long["budget_cpu_byte_log"] < short["budget_cpu_byte_log"]


@pytest.mark.parametrize("size", [10, 1024, 1025, 32_768])
def test_entropy_tells_noise_from_text_from_zeros(size: int) -> None:
    noise = np.random.default_rng(2).bytes(size)
    text = (b"the quick brown fox jumps over the lazy dog. " * 1000)[:size]
    zeros, middle, most = (features(payload=p)["payload_entropy"] for p in (bytes(size), text, noise))
    assert zeros == 0 < middle < most <= 1


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.none() | st.text(max_size=40), st.none() | st.binary(max_size=3000)),
        min_size=1,
        max_size=5,
    )
)
def test_surface_features_are_finite_small_and_of_their_row_alone(
    rows: list[tuple[str | None, bytes | None]],
) -> None:
    texts, payloads = pa.array([t for t, _ in rows], pa.string()), pa.array([p for _, p in rows], pa.binary())
    priority, cpu = np.arange(len(rows)) % 4, np.arange(len(rows)) * 10**9
    whole = encoding.surface(encoding.read(texts).features, payloads, priority, cpu)
    assert np.isfinite(whole).all()
    assert (whole >= 0).all()
    assert (whole < 2).all()
    for n in range(len(rows)):
        one = slice(n, n + 1)
        read = encoding.read(texts.slice(n, 1)).features
        alone = encoding.surface(read, payloads.slice(n, 1), priority[one], cpu[one])
        assert (alone[0] == whole[n]).all()
