"""How a client proves who it is and knows who it speaks to, the same for every Kafka client of AOS.

A password is never shown: not in a repr, not in an error. Nothing goes in the clear to a server off loopback.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aos.codecs.errors import SettingsError

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN")


@dataclass(frozen=True, slots=True)
class Security:
    """One client's. `users`: folder with a file for each user, its password; `named` takes another user out of it."""

    protocol: str = "PLAINTEXT"
    mechanism: str = "SCRAM-SHA-512"
    username: str = ""
    password: str = field(default="", repr=False)
    users: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    allow_plaintext: bool = False

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise SettingsError(
                "AOS5010", f"security_protocol={self.protocol}", f"choose from {', '.join(PROTOCOLS)}"
            )
        if self.mechanism not in MECHANISMS:
            raise SettingsError(
                "AOS5010", f"sasl_mechanism={self.mechanism}", f"choose from {', '.join(MECHANISMS)}"
            )
        if not self.sasl and (self.username or self.password or self.users):
            raise SettingsError("AOS5010", f"a user is named, and {self.protocol} asks for none",
                                "set AOS_SECURITY_PROTOCOL=SASL_SSL")  # fmt: skip
        if bool(self.cert_file) != bool(self.key_file):
            raise SettingsError("AOS5010", "a client certificate and its key go together",
                                "set both AOS_KAFKA_CERT_FILE and AOS_KAFKA_KEY_FILE")  # fmt: skip
        if not self.tls and (self.ca_file or self.cert_file):
            raise SettingsError("AOS5010", f"certificates are named, and {self.protocol} uses none",
                                "set AOS_SECURITY_PROTOCOL=SASL_SSL or SSL")  # fmt: skip

    @property
    def tls(self) -> bool:
        return self.protocol.endswith("SSL")

    @property
    def sasl(self) -> bool:
        return self.protocol.startswith("SASL")

    def named(self, username: str) -> Security:
        """The same for another user, if there is a folder of users; else this one, whoever it is."""
        if not self.users or username == self.username:
            return self
        return replace(self, username=username, password=_password(Path(self.users) / username, username))

    def clients(self, bootstrap: str) -> dict[str, Any]:
        """The arguments that an aiokafka client gets, its servers among them."""
        self.check(bootstrap)
        found: dict[str, Any] = {"bootstrap_servers": bootstrap}
        if self.protocol == "PLAINTEXT":
            return found
        found["security_protocol"] = self.protocol
        if self.tls:
            found["ssl_context"] = self.context()
        if self.sasl:
            found |= {"sasl_mechanism": self.mechanism, "sasl_plain_username": self.username}
            found["sasl_plain_password"] = self.password
        return found

    def librdkafka(self, bootstrap: str) -> dict[str, str]:
        """The same for clients that are built on librdkafka (confluent-kafka)."""
        self.check(bootstrap)
        found = {"bootstrap.servers": bootstrap, "security.protocol": self.protocol}
        if self.sasl:
            found |= {"sasl.mechanism": self.mechanism, "sasl.username": self.username}
            found["sasl.password"] = self.password
        files = {"ssl.ca.location": self.ca_file, "ssl.certificate.location": self.cert_file}
        files["ssl.key.location"] = self.key_file
        return found | {name: path for name, path in files.items() if path}

    def check(self, bootstrap: str) -> None:
        """SettingsError unless this may be used for these servers."""
        if self.sasl and not (self.username and self.password):
            missing = "password" if self.username else "user"
            raise SettingsError("AOS5010", f"{self.protocol} needs a {missing}",
                                "set AOS_KAFKA_USERNAME and AOS_KAFKA_PASSWORD_FILE")  # fmt: skip
        if not self.tls and not self.allow_plaintext:
            far = [server for server in bootstrap.split(",") if server.strip() and not on_loopback(server)]
            if far:
                raise SettingsError("AOS5009", ", ".join(far))

    def context(self) -> ssl.SSLContext:
        """TLS as a client: the server's chain, dates and host name are checked."""
        try:
            made = ssl.create_default_context(cafile=self.ca_file or None)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError("AOS5010", f"{self.ca_file} is no PEM file of authorities: {error}",
                                "correct AOS_KAFKA_CA_FILE") from error  # fmt: skip
        if self.cert_file:
            try:
                made.load_cert_chain(self.cert_file, self.key_file)
            except (OSError, ssl.SSLError) as error:
                raise SettingsError("AOS5010", f"{self.cert_file} and {self.key_file} are no certificate with its key",
                                    "correct AOS_KAFKA_CERT_FILE and AOS_KAFKA_KEY_FILE") from error  # fmt: skip
        return made


def security_of(found: Mapping[str, Any]) -> Security:
    """From settings by name (`security_protocol`, `kafka_username` …); what is not there is as by default.

    A password that is named twice is refused: nobody could say which counts.
    """
    password, file = str(found.get("kafka_password") or ""), str(found.get("kafka_password_file") or "")
    username, users = str(found.get("kafka_username") or ""), str(found.get("kafka_users_dir") or "")
    if password and file:
        raise SettingsError(
            "AOS5010", "kafka_password and kafka_password_file are both set", "set one of them"
        )
    if file:
        password = _password(Path(file), username)
    elif users and username and not password:
        password = _password(Path(users) / username, username)
    return Security(
        protocol=str(found.get("security_protocol") or "PLAINTEXT").upper(),
        mechanism=str(found.get("sasl_mechanism") or "SCRAM-SHA-512").upper(),
        username=username,
        password=password,
        users=users,
        ca_file=str(found.get("kafka_ca_file") or ""),
        cert_file=str(found.get("kafka_cert_file") or ""),
        key_file=str(found.get("kafka_key_file") or ""),
        allow_plaintext=bool(found.get("allow_plaintext")),
    )


NAMES = ("security_protocol", "sasl_mechanism", "kafka_username", "kafka_password", "kafka_password_file",
         "kafka_users_dir", "kafka_ca_file", "kafka_cert_file", "kafka_key_file", "allow_plaintext")  # fmt: skip


def _password(path: Path, username: str) -> str:
    try:
        found = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        hint = "a secure local stack makes users for the tenants and services that AOS_TENANTS and AOS_SERVICES name"
        raise SettingsError(
            "AOS5010", f"no password for the user {username!r}: {path}: {why}", hint
        ) from error
    if not found:
        raise SettingsError("AOS5010", f"the password file {path} is empty")
    return found


def on_loopback(server: str) -> bool:
    """Whether a host (with or without port) is this machine, by its name alone: nobody is asked."""
    server = server.strip()
    bare = server.startswith("[") or server.count(":") < 2  # else an IPv6 address without port
    host = (
        (server.partition("]")[0] if server.startswith("[") else server.partition(":")[0]) if bare else server
    )
    host = host.strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
