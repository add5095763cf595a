"""The demo's pure parts: which pieces, what agents do to them, how a verdict is made."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from aos.agents.builtin.compressors import FAULTS, build, modern, open_squeezed, squeeze, stdlib, verify
from aos.codecs.errors import StackError
from aos.infra.demo.files import BUDGET_US, PIECE_BYTES_MAX, pieces

CODECS = {**stdlib(), **modern()}
RESTORE = {name: pair[1] for name, pair in CODECS.items()}
TEXT = b"a line of text that repeats itself\n" * 200


def test_pieces_are_drawn_by_the_seed_and_spread_over_the_strata() -> None:
    found = pieces(400, 7)
    assert found == pieces(400, 7)
    assert found != pieces(400, 8)
    kinds = Counter(piece.kind for piece in found)
    assert len(kinds) >= 4
    assert max(kinds.values()) < 200
    assert all(BUDGET_US[0] <= piece.budget_us <= BUDGET_US[1] for piece in found)
    assert all(len(piece.read()) == piece.size <= PIECE_BYTES_MAX for piece in found[:50])


def test_another_folder_can_be_named_and_an_empty_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="no file"):
        pieces(10, 1, tmp_path)
    (tmp_path / "one.txt").write_bytes(TEXT)
    assert {piece.path.name for piece in pieces(10, 1, tmp_path)} == {"one.txt"}


@pytest.mark.parametrize("name", sorted(CODECS))
def test_every_compressor_restores_exactly_and_is_scored_by_what_it_saved(name: str) -> None:
    answer = squeeze(name, name, CODECS[name][0], TEXT)
    assert answer.payload is not None
    _, body = open_squeezed(answer.payload)
    verdict = verify(TEXT, answer.payload, 10_000_000, RESTORE)
    assert verdict.score == pytest.approx(1 - len(body) / len(TEXT))
    assert verify(TEXT, answer.payload, 0, RESTORE).score == 0, "over its budget"
    assert verify(TEXT + b"x", answer.payload, 10_000_000, RESTORE).score == 0, "not restored exactly"


def test_damaged_bytes_score_nothing_whatever_the_codec_says() -> None:
    for name, (compress, _) in CODECS.items():
        payload = squeeze(name, name, compress, TEXT).payload
        assert payload is not None
        assert verify(TEXT, payload[:-3], 10_000_000, RESTORE).score == 0


def test_a_fault_is_inside_the_agent_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "faults.json"
    file.write_text(json.dumps({"slow-one": "slow", "bad-one": "faulty"}))
    monkeypatch.setenv(FAULTS, str(file))
    compress = CODECS["zlib-9"][0]
    big = bytes(range(256)) * 100
    budget = 30_000
    healthy, slow = (squeeze(agent, "zlib-9", compress, big, budget) for agent in ("healthy", "slow-one"))
    assert healthy.cpu_us is not None
    assert slow.cpu_us is not None
    assert healthy.payload is not None
    assert slow.payload is not None
    assert verify(big, healthy.payload, budget, RESTORE).score > 0  # type: ignore[operator]
    assert verify(big, slow.payload, budget, RESTORE).score == 0, "it used up more than its budget"
    assert verify(big, slow.payload, 10_000_000, RESTORE).score > 0, "but restores exactly"  # type: ignore[operator]
    damaged = [squeeze("bad-one", "zlib-9", compress, TEXT + bytes([n])).payload or b"" for n in range(40)]
    good = [
        verify(TEXT + bytes([n]), payload, 10_000_000, RESTORE).score for n, payload in enumerate(damaged)
    ]
    assert 5 < good.count(0.0) < 35


def test_agents_can_be_renamed() -> None:
    service = build("squeezers", lambda name: f"x-{name}")
    assert [agent for group in service.groups for agent in group.agents] == [f"x-{name}" for name in stdlib()]
