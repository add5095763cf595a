"""The whole local stack as one object: a broker and a database, started together, ended together."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

from aos.infra.local.children import Children
from aos.infra.local.host import Host, StackError
from aos.infra.local.kafka import Broker
from aos.infra.local.timescale import Database
from aos.infra.security.certificates import Ca, ensure_ca

STOP_LIMIT_S = 15.0
T = TypeVar("T")


class LocalStack:
    """A broker and a database on loopback, for as long as this object (or its process) lives.

    With `data_dir` the data is kept there, else it is in a private temporary folder that goes with the stack.
    A part whose address is given (`bootstrap`, `database_url`) is used as it is, neither started nor stopped.
    `children` may be used to start further processes; they end with the stack too.
    `secure`: what is started here speaks TLS and asks everybody who they are; `ca` is whom its certificates are from.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        broker_port: int | None = None,
        database_port: int | None = None,
        bootstrap: str | None = None,
        database_url: str | None = None,
        host: Host | None = None,
        secure: bool = False,
    ) -> None:
        self.host = host or Host.current()
        self.secure = secure
        self.kept = data_dir is not None
        self._given_dir = data_dir
        self._ports = (broker_port, database_port)
        self._given = (bootstrap, database_url)
        self._children: Children | None = None
        self._broker: Broker | None = None
        self._database: Database | None = None
        self._data_dir: Path | None = None
        self._lock: IO[str] | None = None
        self.ca: Ca | None = None
        self.start_s: dict[str, float] = {}  # seconds until ready, by part; "stack" is the whole

    @property
    def bootstrap(self) -> str:
        """The broker's address, host:port."""
        return self._given[0] or self._running(self._broker).bootstrap

    @property
    def database_url(self) -> str:
        """The URL of the database `aos`."""
        return self._given[1] or self._running(self._database).url

    @property
    def security_dir(self) -> Path:
        """Where authority, certificates, keys and passwords are."""
        return self.data_dir / "security"

    @property
    def database(self) -> Database | None:
        """The database, if it is started here."""
        return self._database

    @property
    def broker(self) -> Broker | None:
        """The broker, if it is started here."""
        return self._broker

    @property
    def data_dir(self) -> Path:
        return self._running(self._data_dir)

    @property
    def children(self) -> Children:
        return self._running(self._children)

    @staticmethod
    def _running(part: T | None) -> T:
        if part is None:
            raise StackError("The local stack is not running.", "Start it first.")
        return part

    def __enter__(self) -> LocalStack:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Bring up what is not given, the two parts side by side; on any failure nothing is left running."""
        if self._children is not None:
            return
        began = time.monotonic()
        try:
            self._start()
        except BaseException:
            self.stop(graceful=False)
            raise
        self.start_s["stack"] = time.monotonic() - began

    def _start(self) -> None:
        self._children = Children()
        self._data_dir = self._make_data_dir()
        if not self.kept:
            self._children.remove_when_gone(self._data_dir)
        self.ca = ensure_ca(self.security_dir) if self.secure else None
        parts: dict[str, Callable[[], None]] = {}
        if self._given[0] is None:
            folder = self._data_dir / "kafka"
            self._broker = Broker(self.host, self._children, folder, self._ports[0], ca=self.ca)
            parts["broker"] = self._broker_up
        if self._given[1] is None:
            folder = self._data_dir / "postgres"
            self._database = Database(self.host, self._children, folder, self._ports[1], ca=self.ca)
            parts["database"] = self._database_up
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(self._timed, name, part) for name, part in parts.items()]
            try:
                for future in waiting:
                    future.result()
            except BaseException:
                self._children.close()  # Ctrl-C, or one part failed: do not wait for the other
                raise

    def _timed(self, name: str, part: Callable[[], None]) -> None:
        began = time.monotonic()
        part()
        self.start_s[name] = time.monotonic() - began

    def _broker_up(self) -> None:
        broker = self._running(self._broker)
        broker.prepare()
        broker.start()

    def _database_up(self) -> None:
        database = self._running(self._database)
        database.prepare()
        database.start()

    def _make_data_dir(self) -> Path:
        if self._given_dir is None:
            return self.host.temporary_folder()
        folder = self._given_dir.absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("a+")
        except OSError as error:
            raise StackError(
                f"The data folder {folder} cannot be used: {error.strerror}.", "Choose another folder."
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            raise StackError(
                f"The data folder {folder} is in use by another AOS stack (process {holder}).",
                "Stop that one, or choose another folder.",
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        return folder

    def stop(self, *, graceful: bool | None = None) -> None:
        """End everything; idempotent. Where data outlives us (kept here, or on given servers) those who use the broker
        and the database end first, so that they can commit; private data is not worth the wait."""
        if self._children is not None:
            outlives = self.kept or any(self._given)
            if outlives if graceful is None else graceful:
                servers = {part.name for part in (self._broker, self._database) if part is not None}
                self._children.stop_all(STOP_LIMIT_S, servers)
            else:
                self._children.close()
        if self._data_dir is not None and not self.kept:
            shutil.rmtree(self._data_dir, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
        self._children = self._broker = self._database = self._data_dir = self._lock = None

    # ── faults, for tests and the demo ────────────────────────────────────────────────────────────

    def kill_broker(self) -> None:
        """SIGKILL the broker."""
        self._running(self._broker).kill()

    def start_broker(self) -> None:
        """Start the broker again on its port and data."""
        self._running(self._broker).start()

    def kill_database(self) -> None:
        """SIGKILL the database server and all its backends."""
        self._running(self._database).kill()

    def start_database(self) -> None:
        """Start the database again on its port and data."""
        self._running(self._database).start()
