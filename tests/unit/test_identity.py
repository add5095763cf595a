"""Ids, homes and tokens: the laws that let every processor compute them alone."""

from __future__ import annotations

import hmac
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aos.agents import identity

IDS = st.binary(min_size=16, max_size=16)


@given(st.text(), st.text(), st.text(), st.text())
def test_two_requests_share_an_id_only_when_tenant_and_client_id_are_the_same(
    tenant: str, client: str, other_tenant: str, other_client: str
) -> None:
    same = (tenant, client) == (other_tenant, other_client)
    assert (identity.request_id(tenant, client) == identity.request_id(other_tenant, other_client)) is same


def test_moving_a_letter_from_tenant_to_id_gives_another_request() -> None:
    assert identity.request_id("a", "bc") != identity.request_id("ab", "c")


def test_ids_never_change_between_releases() -> None:
    assert identity.request_id("default", "order-1").hex() == "368070298abd5477f07b47dbb184bc1f"
    assert identity.request_id_at("aos.requests", 0, 7, 2).hex() == "dd0198fd260de6e2a987d2a37e648b62"
    assert identity.token(b"key", bytes(16), 0, 1, 2, "zip", 3).hex() == "a1c2d06f642738eb1dc555ec1e2ae8cf"


@given(st.integers(0, 255), st.integers(0, 2**60), st.integers(0, 65535))
def test_a_row_without_client_id_is_known_by_its_place(partition: int, offset: int, row: int) -> None:
    here = identity.request_id_at("aos.requests", partition, offset, row)
    assert here == identity.request_id_at("aos.requests", partition, offset, row)
    assert here != identity.request_id_at("aos.requests", partition, offset, row + 1)
    assert here != identity.request_id_at("aos.requests", partition, offset + 1, row)
    assert here != identity.request_id_at("aos.requests.acme", partition, offset, row)


@given(IDS, st.integers(1, 256))
def test_home_is_one_of_the_partitions(request_id: bytes, partitions: int) -> None:
    assert 0 <= identity.home(request_id, partitions) < partitions


def test_homes_spread_evenly() -> None:
    homes = [identity.home(identity.request_id("t", str(n)), 4) for n in range(4000)]
    assert all(900 < homes.count(p) < 1100 for p in range(4))


@pytest.mark.parametrize(
    "change",
    [
        {"secret": b"another"},
        {"request_id": bytes(15) + b"\1"},
        {"round": 1},
        {"step": 1},
        {"attempt": 2},
        {"agent": "b"},
        {"epoch": 8},
    ],
)
def test_a_token_is_good_for_one_attempt_of_one_agent(change: dict[str, object]) -> None:
    attempt: dict[str, object] = {
        "secret": b"key", "request_id": bytes(16), "round": 0, "step": 0, "attempt": 1,
        "agent": "a", "epoch": 7,
    }  # fmt: skip
    good = identity.token(**attempt)  # type: ignore[arg-type]
    other = identity.token(**(attempt | change))  # type: ignore[arg-type]
    assert len(good) == 16
    assert identity.token_is(good, identity.token(**attempt))  # type: ignore[arg-type]
    assert not identity.token_is(good, other)
    assert not identity.token_is(good, None)


def test_a_tenant_cannot_name_anothers_domain() -> None:
    assert identity.domain("acme", None) == "acme"
    assert identity.domain("acme", "") == "acme"
    assert identity.domain("acme", "globex") == "acme/globex"


@pytest.mark.parametrize("size", [0, 1, 64, 65, 200])
def test_a_token_is_the_hmac_sha256_of_the_standard_library(size: int) -> None:
    secret, agent = bytes(range(size)), "agent"
    data = bytes(16) + struct.pack(">hhhq", 1, 2, 3, 4) + agent.encode()
    made = identity.token(secret, bytes(16), 1, 2, 3, agent, 4)
    assert made == hmac.digest(secret, data, "sha256")[:16]
