"""How clients prove who they are: what fits together, what is refused, and that nobody sees a password."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aos.agents.sdk.security import NAMES, Security, on_loopback, security_of
from aos.codecs.errors import SettingsError
from aos.codecs.settings import Settings
from aos.infra.security.certificates import ensure_ca
from aos.infra.settings import load

PASSWORD = "correct-horse-battery"
FAR = "broker.example:9092"


def refused(found: dict[str, Any], bootstrap: str = "127.0.0.1:9092") -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        security_of(found).clients(bootstrap)
    assert PASSWORD not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("server", "here"),
    [
        ("127.0.0.1:9092", True), ("localhost:9092", True), ("[::1]:9092", True), ("127.8.8.8:1", True), ("::1", True),
        ("broker:9092", False), ("10.0.0.1:9092", False), ("[2001:db8::1]:9092", False), ("2001:db8::1", False),
        ("localhost.evil.example:9092", False), ("0.0.0.0:9092", False), ("127.0.0.1.evil.example:9092", False),
    ],
)  # fmt: skip
def test_loopback_is_told_by_the_address_alone(server: str, here: bool) -> None:
    assert on_loopback(server) is here


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SASL_PLAINTEXT"])
def test_nothing_goes_in_the_clear_to_another_machine_unless_somebody_said_so(protocol: str) -> None:
    found = {"security_protocol": protocol}
    if protocol != "PLAINTEXT":
        found |= {"kafka_username": "u", "kafka_password": PASSWORD}
    error = refused(found, f"127.0.0.1:9092,{FAR}")
    assert error.code == "AOS5009"
    assert FAR in error.detail
    assert "SASL_SSL" in error.hint
    security_of(found).clients("127.0.0.1:9092")
    security_of({**found, "allow_plaintext": True}).clients(FAR)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"security_protocol": "TLS"}, "TLS"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "GSSAPI"}, "GSSAPI"),
        ({"security_protocol": "SASL_SSL"}, "needs a user"),
        ({"security_protocol": "SASL_SSL", "kafka_username": "u"}, "needs a password"),
        ({"kafka_username": "u", "kafka_password": PASSWORD}, "asks for none"),
        ({"security_protocol": "SSL", "kafka_cert_file": "c.pem"}, "go together"),
        ({"kafka_ca_file": "ca.pem"}, "uses none"),
        ({"security_protocol": "SSL", "kafka_ca_file": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
        ({"security_protocol": "SASL_SSL", "kafka_username": "u", "kafka_password": PASSWORD,
          "kafka_password_file": "/f"}, "both set"),
        ({"security_protocol": "SASL_SSL", "kafka_username": "u", "kafka_password_file": "/nowhere/p"}, "/nowhere/p"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused_with_its_reason(found: dict[str, Any], says: str) -> None:
    error = refused(found)
    assert error.code == "AOS5010"
    assert says in error.detail


def test_a_password_comes_from_the_environment_or_a_file_or_the_folder_of_users(tmp_path: Path) -> None:
    (tmp_path / "u").write_text(PASSWORD + "\n")
    base = {"security_protocol": "SASL_SSL", "kafka_username": "u"}
    for more in (
        {"kafka_password": PASSWORD}, {"kafka_password_file": str(tmp_path / "u")}, {"kafka_users_dir": str(tmp_path)},
    ):  # fmt: skip
        given = security_of({**base, **more}).clients(FAR)
        assert given["sasl_plain_password"] == PASSWORD
        assert (given["security_protocol"], given["sasl_mechanism"]) == ("SASL_SSL", "SCRAM-SHA-512")
        assert given["ssl_context"].check_hostname


def test_each_user_of_the_folder_is_somebody_else_and_a_missing_one_is_told(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"of-{name}")
    base = security_of(
        {"security_protocol": "SASL_SSL", "kafka_users_dir": str(tmp_path), "kafka_username": "one"}
    )
    assert base.named("two").clients(FAR)["sasl_plain_password"] == "of-two"
    with pytest.raises(SettingsError) as caught:
        base.named("three")
    assert "three" in caught.value.detail
    assert "AOS_SERVICES" in caught.value.hint


def test_without_a_folder_everybody_is_the_one_user_that_is_named() -> None:
    base = Security("SASL_SSL", username="all", password=PASSWORD)
    assert base.named("aos.encode") is base


def test_librdkafka_is_told_the_same(tmp_path: Path) -> None:
    ca = ensure_ca(tmp_path)
    found = Security("SASL_SSL", username="u", password=PASSWORD, ca_file=str(ca.bundle)).librdkafka(FAR)
    assert found == {
        "bootstrap.servers": FAR, "security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "u", "sasl.password": PASSWORD, "ssl.ca.location": str(ca.bundle),
    }  # fmt: skip


def test_no_repr_shows_a_secret() -> None:
    settings = Settings(
        secret=PASSWORD, kafka_password=PASSWORD, database_url=f"postgresql://u:{PASSWORD}@localhost/aos"
    )
    assert PASSWORD not in repr(settings)
    assert PASSWORD not in repr(Security("SASL_SSL", username="u", password=PASSWORD))


def test_the_settings_have_every_name_a_connection_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    found = load(
        {}, {"AOS_SECURITY_PROTOCOL": "SASL_SSL", "AOS_KAFKA_USERNAME": "u", "AOS_KAFKA_PASSWORD": PASSWORD}
    )
    security = security_of({name: getattr(found, name) for name in NAMES})
    assert security == Security("SASL_SSL", username="u", password=PASSWORD)
