"""Why a server would not have us: each certificate that is wrong, and what is no matter of security."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiokafka.errors import (
    KafkaConnectionError,
    RequestTimedOutError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
)

from aos.agents.sdk.refusals import refusal
from aos.agents.sdk.security import Security
from aos.infra.security.certificates import ensure_ca

NOW = datetime.now(UTC)
NOBODY = KafkaConnectionError("Unable to bootstrap")


@contextmanager
def server(cert: Path | None, key: Path | None) -> Iterator[str]:
    """Address of somebody with this certificate; without one it answers in the clear."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(10)

    def serve() -> None:
        link, _ = listening.accept()
        with link:
            if cert is None or key is None:
                link.recv(1)
                link.sendall(b"no TLS here, and no intention to")
                return
            made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            made.load_cert_chain(cert, key)
            try:
                with made.wrap_socket(link, server_side=True) as secure:
                    secure.recv(1)
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"127.0.0.1:{listening.getsockname()[1]}"
    thread.join()
    listening.close()


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("good", None),
        ("expired", "has expired"),
        ("early", "not valid yet"),
        ("other host", "for another host"),
        ("other authority", "not trusted here"),
        ("rotated authority", "not trusted here"),
        ("no TLS", "does not speak TLS"),
    ],
)
def test_each_certificate_that_is_wrong_is_told_in_a_sentence(
    tmp_path: Path, what: str, says: str | None
) -> None:
    ca = ensure_ca(tmp_path)
    bundle = tmp_path / "client.pem"
    bundle.write_bytes(ca.bundle.read_bytes())
    cert: Path | None
    cert, key = {
        "expired": lambda: ca.issue("s", now=NOW - timedelta(days=40), days=30),
        "early": lambda: ca.issue("s", now=NOW + timedelta(days=3)),
        "other host": lambda: ca.issue("s", ["db.example"]),
        "other authority": lambda: ensure_ca(tmp_path / "other").issue("s"),
        "rotated authority": lambda: ensure_ca(tmp_path, NOW + timedelta(days=3600)).issue("s"),
    }.get(what, lambda: ca.issue("s"))()
    with server(None if what == "no TLS" else cert, key) as address:
        client = Security("SSL", ca_file=str(bundle)).clients(address)
        found = refusal(NOBODY, client)
    if says is None:
        assert found is None
        return
    assert found is not None
    assert found.code == "AOS5011"
    assert says in found.detail
    assert address in found.detail
    assert found.hint


def test_a_wrong_password_and_a_missing_right_are_told_without_the_password() -> None:
    client = {
        "bootstrap_servers": "b:1",
        "sasl_plain_username": "aos.encode",
        "sasl_plain_password": "horse-battery",
    }
    for error, code in (
        (SaslAuthenticationFailed("bad"), "AOS5011"),
        (TopicAuthorizationFailedError("t"), "AOS5015"),
    ):
        found = refusal(error, client)
        assert found is not None
        assert found.code == code
        assert "aos.encode" in found.detail
        assert "horse" not in f"{found} {found.hint}"


def test_what_is_no_matter_of_security_stays_what_it_was(tmp_path: Path) -> None:
    plain = Security().clients("127.0.0.1:1")
    assert refusal(NOBODY, plain) is None
    secure = Security("SSL", ca_file=str(ensure_ca(tmp_path).bundle)).clients("127.0.0.1:1")
    assert refusal(NOBODY, secure) is None, "nobody answers there"
    assert refusal(RequestTimedOutError(), secure) is None
