"""The local authority: what it issued is trusted, and nothing that is expired, damaged or for another host."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aos.infra.security.certificates import CA_DAYS, LEAF_DAYS, context, ensure_ca

NOW = datetime.now(UTC)


def handshake(bundle: Path, cert: Path, key: Path, host: str = "127.0.0.1") -> str:
    """What a client says of a server with this certificate: its TLS version, or why it refuses."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(10)

    def serve() -> None:
        link, _ = listening.accept()
        try:
            with server.wrap_socket(link, server_side=True) as secure:
                secure.recv(1)
        except OSError:
            link.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with (
            socket.create_connection(listening.getsockname(), timeout=10) as link,
            context(bundle).wrap_socket(link, server_hostname=host) as secure,
        ):
            return str(secure.version())
    except ssl.SSLCertVerificationError as error:
        return str(error.verify_message)
    finally:
        thread.join()
        listening.close()


def test_a_client_that_trusts_the_authority_trusts_what_it_issued_for_the_names_of_loopback(
    tmp_path: Path,
) -> None:
    ca = ensure_ca(tmp_path)
    cert, key = ca.issue("broker")
    for host in ("127.0.0.1", "localhost", "::1"):
        assert handshake(ca.bundle, cert, key, host) == "TLSv1.3"


def test_keys_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    _, key = ensure_ca(tmp_path).issue("broker")
    for path in (key, tmp_path / "ca-key.pem"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_another_host_an_expired_and_a_foreign_certificate_are_refused_each_with_its_reason(
    tmp_path: Path,
) -> None:
    ca = ensure_ca(tmp_path / "ours")
    other = ensure_ca(tmp_path / "theirs")
    assert "IP address mismatch" in handshake(ca.bundle, *ca.issue("elsewhere", ["db.example"]))
    past = NOW - timedelta(days=400)
    assert "expired" in handshake(ca.bundle, *ca.issue("old", now=past, days=30))
    assert "self-signed" in handshake(ca.bundle, *other.issue("broker")) or "local issuer" in handshake(
        ca.bundle, *other.issue("broker")
    )


def test_a_start_keeps_what_is_good(tmp_path: Path) -> None:
    paths = ensure_ca(tmp_path).issue("broker")
    before = [path.read_bytes() for path in (*paths, tmp_path / "ca.pem")]
    assert ensure_ca(tmp_path).issue("broker") == paths
    assert [path.read_bytes() for path in (*paths, tmp_path / "ca.pem")] == before


@pytest.mark.parametrize("left_days", [1, 29])
def test_a_certificate_near_its_end_is_rotated_and_old_clients_trust_the_new_one(
    tmp_path: Path, left_days: int
) -> None:
    ca = ensure_ca(tmp_path)
    cert, key = ca.issue("broker", now=NOW - timedelta(days=LEAF_DAYS - left_days))
    bundle, before = ca.bundle.read_bytes(), cert.read_bytes()
    ensure_ca(tmp_path).issue("broker")
    assert cert.read_bytes() != before
    assert ca.bundle.read_bytes() == bundle
    assert handshake(ca.bundle, cert, key) == "TLSv1.3"


@pytest.mark.parametrize("spoil", ["cert", "key", "hosts", "use"])
def test_a_certificate_that_is_damaged_or_for_something_else_is_issued_anew(
    tmp_path: Path, spoil: str
) -> None:
    ca = ensure_ca(tmp_path)
    cert, key = ca.issue(
        "broker", ["db.example"] if spoil == "hosts" else ["127.0.0.1"], client=spoil == "use"
    )
    if spoil in ("cert", "key"):
        {"cert": cert, "key": key}[spoil].write_text("no PEM")
    assert handshake(ca.bundle, *ca.issue("broker", ["127.0.0.1"])) == "TLSv1.3"


def test_an_authority_near_its_end_is_replaced_and_its_last_certificates_are_trusted_until_they_end(
    tmp_path: Path,
) -> None:
    old = ensure_ca(tmp_path, NOW - timedelta(days=CA_DAYS - 100))
    cert, key = old.issue("broker")
    old_bundle = tmp_path / "kept-by-a-client.pem"
    old_bundle.write_bytes(old.bundle.read_bytes())
    new = ensure_ca(tmp_path)
    assert new.certificate != old.certificate
    assert handshake(new.bundle, cert, key) == "TLSv1.3"
    rotated = new.issue("broker")
    assert handshake(new.bundle, *rotated) == "TLSv1.3"
    assert "local issuer" in handshake(old_bundle, *rotated)


def test_an_authority_without_its_key_is_replaced(tmp_path: Path) -> None:
    old = ensure_ca(tmp_path)
    (tmp_path / "ca-key.pem").unlink()
    new = ensure_ca(tmp_path)
    assert new.certificate != old.certificate
    assert handshake(new.bundle, *new.issue("broker")) == "TLSv1.3"
