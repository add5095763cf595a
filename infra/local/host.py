"""What the local stack knows about the machine: environment, user, ports, disk.

Everything that depends on the machine is asked of a `Host`, so that tests can hand in another one
(an empty PATH, another user, a full disk). `Host.current()` is the only reader of the environment here.
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aos.codecs.errors import StackError

__all__ = ["Host", "StackError", "User"]

LOOPBACK = "127.0.0.1"
# Ports of the stack are chosen from here up to the first port of outgoing connections.
FIRST_PORT = 20_000


@dataclass(frozen=True)
class User:
    """An account that a child process is started under."""

    uid: int
    gid: int
    name: str


def say_on_stderr(text: str) -> None:
    """Show one line of progress; stdout belongs to data."""
    print(f"aos: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Host:
    """The machine as the local stack sees it."""

    environ: Mapping[str, str]
    uid: int
    say: Callable[[str], None] = say_on_stderr
    etc: Path = Path("/etc")
    free_bytes: Callable[[Path], int] = field(default=lambda path: shutil.disk_usage(path).free)

    @classmethod
    def current(cls) -> Host:
        """The machine and the user that this process runs as."""
        return cls(environ=dict(os.environ), uid=os.geteuid())

    def which(self, name: str) -> Path | None:
        """The program `name` on this host's PATH (an empty PATH has none)."""
        found = shutil.which(name, path=self.environ.get("PATH", ""))
        return Path(found) if found else None

    @property
    def is_root(self) -> bool:
        return self.uid == 0

    def database_user(self) -> User | None:
        """The account PostgreSQL runs under: `nobody` for root, whom it refuses; None is the caller's own."""
        if not self.is_root:
            return None
        try:
            entry = pwd.getpwnam("nobody")
        except KeyError:
            raise StackError(
                "PostgreSQL refuses to run as root and this machine has no user `nobody`.",
                "Run AOS as an ordinary user.",
            ) from None
        return User(entry.pw_uid, entry.pw_gid, entry.pw_name)

    def home(self) -> Path:
        return Path(self.environ.get("HOME") or pwd.getpwuid(self.uid).pw_dir)

    def temporary_folder(self) -> Path:
        """A new private folder. As root it is traversable, so that the database's user reaches its part."""
        parent = Path(self.environ.get("TMPDIR") or "/tmp")
        if self.is_root and not reachable_by_others(parent):
            parent = Path("/tmp")
        path = Path(tempfile.mkdtemp(prefix="aos-", dir=parent))
        if self.is_root:
            path.chmod(0o711)
        return path


def reachable_by_others(path: Path) -> bool:
    """Whether another user can go into `path`: every folder on the way that exists lets others through."""
    resolved = path.resolve()
    for folder in (resolved, *resolved.parents):
        try:
            if not folder.stat().st_mode & 0o001:
                return False
        except FileNotFoundError:
            continue  # not made yet; it will be made with 0755
        except PermissionError:
            return False
    return True


def free_port() -> int:
    """A port of loopback that nobody listens on now, below the range that outgoing connections get theirs from.

    In that range a port is not ours while its server is down: another connection may get it, even the client's own
    attempt to reconnect (on loopback it then talks to itself), and a killed server could not come back.
    """
    candidates = range(FIRST_PORT, ephemeral_ports_from())
    for port in random.sample(candidates, k=min(100, len(candidates))):
        if is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        found: int = probe.getsockname()[1]
        return found


def ephemeral_ports_from() -> int:
    """Where the kernel's range of ports for outgoing connections begins."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32768


def is_free(port: int) -> bool:
    """Whether a server could listen on the port of loopback now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def check_port(port: int, purpose: str) -> None:
    """Refuse a port that another program holds, before a server fails on it with a page of text."""
    if not is_free(port):
        raise StackError(
            f"Port {port} for {purpose} is taken by another program.",
            f"Stop that program (`ss -ltnp 'sport = :{port}'` names it) or choose another port.",
        )


def check_disk(host: Host, path: Path, need_bytes: int, purpose: str) -> None:
    """Refuse to begin what the disk cannot hold."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    free = host.free_bytes(existing)
    if free < need_bytes:
        raise StackError(
            f"The disk is too full for {purpose}:"
            f" {existing} has {free >> 20} MB free, {need_bytes >> 20} MB are needed.",
            "Make room there, or set AOS_CACHE (downloads) or TMPDIR (data) to a folder on another disk.",
        )
