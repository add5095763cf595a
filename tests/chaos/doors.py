"""The stand's broker: more doors than one of its own, for links that a proxy spoils and for a judge without a user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from aos.infra.local.host import LOOPBACK, free_port
from aos.infra.local.kafka import Broker, answers

OPEN, SECURE = "PLAINTEXT", "SASL_SSL"
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


class Door(NamedTuple):
    """A further listener; clients are told to come to `shown`."""

    protocol: str
    port: int
    shown: int


class LinkedBroker(Broker):
    """A broker with one more listener for each link, advertised at the link's proxy.

    A secure one lets the stand, the load and the judge in without a user, by a door of their own; they may everything.
    """

    links: Mapping[str, tuple[int, int]] = {}  # link -> (port of its listener, port of its proxy)
    plain: int | None = None  # of a secure broker: the door in the clear

    @property
    def open_bootstrap(self) -> str:
        """Where the stand and the judge come in."""
        return self.bootstrap if self.plain is None else f"{LOOPBACK}:{self.plain}"

    def answers(self) -> bool:
        """Asked in the clear: its certificate may be what a fault spoils."""
        return answers(self.port if self.plain is None else self.plain)

    def arrange(self) -> None:
        doors = {}
        if self.ca is not None:
            self.plain = free_port()
            doors["PLAINTEXT"] = Door(OPEN, self.plain, self.plain)
        for number, (link, (port, proxy)) in enumerate(self.links.items()):
            named = self.ca is not None and not link.startswith("load")
            doors[f"LINK{number}"] = Door(SECURE if named else OPEN, port, proxy)
        super().arrange()
        if doors:
            path = self.folder / "broker.properties"
            write(path, with_doors(read(path), doors))

    def certify(self, keystore: str) -> None:
        """What it shows to clients from its next start on; it and its controller go on speaking to each other."""
        store, path = self.folder / "clients.pem", self.folder / "broker.properties"
        store.touch(mode=0o600)
        store.write_text(keystore)
        found = read(path)
        for pair in found["listener.security.protocol.map"].split(","):
            name, _, protocol = pair.partition(":")
            if protocol == SECURE:
                own = f"listener.name.{name.lower()}.ssl.keystore"
                found |= {f"{own}.type": "PEM", f"{own}.location": str(store)}
        write(path, found)


def with_doors(properties: Mapping[str, str], doors: Mapping[str, Door]) -> dict[str, str]:
    """The broker's properties with these listeners too."""
    found = {"inter.broker.listener.name": "PLAINTEXT", **properties}
    for name, door in doors.items():
        found["listeners"] += f",{name}://{LOOPBACK}:{door.port}"
        found["advertised.listeners"] += f",{name}://{LOOPBACK}:{door.shown}"
        found["listener.security.protocol.map"] += f",{name}:{door.protocol}"
        if door.protocol == SECURE:
            found[f"listener.name.{name.lower()}.scram-sha-512.sasl.jaas.config"] = SCRAM
    if "super.users" in found:
        found["super.users"] += ";User:ANONYMOUS"
    return found


def read(path: Path) -> dict[str, str]:
    """A file of properties; a name that stands twice counts as it stands last."""
    lines = [line for line in path.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return {line.partition("=")[0]: line.partition("=")[2] for line in lines}


def write(path: Path, properties: Mapping[str, str]) -> None:
    path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
