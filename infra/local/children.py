"""Child processes that cannot outlive their owner: the owner's side of `keeper.py`.

Children are started by the keeper, each in a session of its own, so a Ctrl-C at the terminal reaches the
owner alone and the owner decides the order of stopping. If the owner is killed, even with SIGKILL, the keeper
ends them all.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aos.infra.local.host import Host, StackError, User

KEEPER = Path(__file__).with_name("keeper.py")
# A child that keeps dying is started again ever more slowly; one that lived this long starts afresh.
RESTART_DELAY_FIRST_S = 0.1
RESTART_DELAY_MAX_S = 10.0
RESTART_FORGIVEN_S = 30.0
# How long the keeper may take to answer; it only forks, so this is about an overloaded machine.
REPLY_LIMIT_S = 30.0

OnExit = Callable[[str, int], None]


@dataclass
class Child:
    """One named child: how to start it, and how it is now."""

    name: str
    request: dict[str, Any]
    restart: bool
    stop_signal: int
    on_exit: OnExit | None
    pid: int | None = None
    code: int | None = None
    started_at: float = 0.0
    restart_count: int = 0
    quick_deaths: int = 0
    stopping: bool = False
    timer: threading.Timer | None = field(default=None, repr=False)


class Children:
    """Starts, restarts and stops named child processes. Thread-safe; `stop_all` may be called again."""

    def __init__(self) -> None:
        self._children: dict[str, Child] = {}
        self._by_pid: dict[int, Child] = {}
        self._early_exits: dict[int, int] = {}  # exits that were reported before their spawn's reply was read
        self._changed = threading.Condition()
        self._replies: dict[int, dict[str, Any]] = {}
        self._ids = itertools.count(1)
        self._closed = False
        self._link, theirs = socket.socketpair()
        argv = [sys.executable, "-I", "-S", str(KEEPER), str(theirs.fileno()), str(os.getpid())]
        self._keeper = subprocess.Popen(
            argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True, cwd="/"
        )
        theirs.close()
        self._reader = threading.Thread(target=self._read, name="aos-children", daemon=True)
        self._reader.start()

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()

    # ── starting ──────────────────────────────────────────────────────────────────────────────────

    def spawn(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log_path: Path | None = None,
        restart: bool = False,
        stop_signal: int = signal.SIGTERM,
        last_signal: int = signal.SIGKILL,
        user: User | None = None,
        on_exit: OnExit | None = None,
    ) -> int:
        """Start a child and return its pid; its output goes to the end of `log_path` (else nowhere).

        `restart` starts it again whenever it ends without `stop`, after 0.1 s, then ever later up to 10 s.
        `stop_signal` is what `stop` sends, `last_signal` what it gets when the owner is gone.
        `on_exit(name, returncode)` is called at each end, in a thread of its own.
        A name can be used again once its child has ended.
        """
        request = {
            "argv": [str(part) for part in argv],
            "env": dict(Host.current().environ if env is None else env),
            "cwd": str(cwd) if cwd else None,
            "log": str(log_path) if log_path else None,
            "last_signal": int(last_signal),
            "user": [user.uid, user.gid] if user else None,
        }
        child = Child(name, request, restart, int(stop_signal), on_exit)
        with self._changed:
            old = self._children.get(name)
            if old is not None and old.pid is not None:
                raise StackError(f"The child process {name} is running already.", "Stop it first.")
            if old is not None and old.timer is not None:
                old.timer.cancel()
            self._children[name] = child
        return self._start(child)

    def _start(self, child: Child) -> int:
        reply = self._ask("spawn", **child.request)
        if "error" in reply:
            child.code = 127
            raise StackError(
                f"The program {child.request['argv'][0]} ({child.name}) did not start: {reply['error']}.",
                "Check that it is installed and may be run by this user.",
            )
        pid: int = reply["pid"]
        with self._changed:
            child.pid, child.code, child.started_at = pid, None, time.monotonic()
            self._by_pid[pid] = child
            code = self._early_exits.pop(pid, None)
        if code is not None:
            self._ended(pid, code)
        return pid

    def run(self, name: str, argv: Sequence[str | Path], *, timeout: float, **how: Any) -> int:
        """Start a child and wait for its end; its return code, 124 if killed after `timeout` seconds."""
        self.spawn(name, argv, **how)
        code = self.wait(name, timeout)
        if code is None:
            self.kill(name)
            return 124
        return code

    def remove_when_gone(self, folder: Path) -> None:
        """Have the keeper remove a private folder at the very end, after the last child."""
        self._ask("remove", path=str(folder))

    # ── looking ───────────────────────────────────────────────────────────────────────────────────

    def pid(self, name: str) -> int | None:
        """The child's process id, None while it does not run."""
        child = self._children.get(name)
        return child.pid if child else None

    def restarts(self, name: str) -> int:
        """How often the child has been started again."""
        child = self._children.get(name)
        return child.restart_count if child else 0

    def wait(self, name: str, timeout: float) -> int | None:
        """The child's return code (negative: the signal), None if it still runs after `timeout` seconds."""
        with self._changed:
            child = self._children[name]
            self._changed.wait_for(lambda: child.code is not None or self._closed, timeout)
            return -signal.SIGKILL if child.code is None and self._closed else child.code

    # ── ending ────────────────────────────────────────────────────────────────────────────────────

    def signal(self, name: str, signum: int) -> None:
        """Send a signal to the child's process group."""
        pid = self.pid(name)
        if pid is not None:
            self._ask("signal", pid=pid, signum=int(signum))

    def kill(self, name: str) -> None:
        """SIGKILL the child and all below it, and wait until it is gone; with `restart` it comes again."""
        with self._changed:
            child = self._children.get(name)
            pid = child.pid if child else None
        if child is None or pid is None:
            return
        self._ask("kill", pid=pid)
        with self._changed:
            self._changed.wait_for(lambda: child.pid != pid or self._closed, REPLY_LIMIT_S)

    def stop(self, name: str, timeout: float = 10.0) -> None:
        """End the child for good: its stop signal, SIGKILL after `timeout` seconds."""
        self._stop([name], timeout)

    def stop_all(self, timeout: float = 10.0, servers: Collection[str] = ()) -> None:
        """End every child, the last started first to be asked, and the keeper with them.

        `servers` are asked when all others have ended: those may still need them to end well. Each of the two groups
        has `timeout` seconds.
        """
        if not self._closed:
            names = list(reversed(self._children))
            self._stop([name for name in names if name not in servers], timeout)
            self._stop([name for name in names if name in servers], timeout)
        self.close()

    def close(self) -> None:
        """End everything at once, without asking: what SIGKILL of the owner does, on purpose."""
        with self._changed:
            self._closed = True
            for child in self._children.values():
                child.stopping = True
                if child.timer is not None:
                    child.timer.cancel()
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_WR)  # the keeper reads the end of the stream and ends all it has
        self._keeper.wait()
        if threading.current_thread() is not self._reader:
            self._reader.join()
        self._link.close()

    def _stop(self, names: list[str], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        children = [self._children[name] for name in names if name in self._children]
        for child in children:
            with self._changed:
                child.stopping = True
                if child.timer is not None:
                    child.timer.cancel()
            if child.pid is not None:
                self.signal(child.name, child.stop_signal)
                self.signal(child.name, signal.SIGCONT)  # who was stopped in its tracks would not hear it
        for child in children:
            while child.pid is not None and not self._closed and time.monotonic() < deadline:
                with self._changed:
                    self._changed.wait(max(0.0, deadline - time.monotonic()))
            self.kill(child.name)

    # ── the keeper's messages ─────────────────────────────────────────────────────────────────────

    def _ask(self, do: str, **request: Any) -> dict[str, Any]:
        with self._changed:
            if self._closed:
                return {"error": "the stack is being stopped"}
            number = next(self._ids)
            try:
                self._link.sendall(json.dumps({"id": number, "do": do, **request}).encode() + b"\n")
            except OSError:  # it died a moment ago, and with it every child; `_read` is about to notice
                return {"error": "the process that keeps the children is gone"}
            self._changed.wait_for(lambda: number in self._replies or self._closed, REPLY_LIMIT_S)
            return self._replies.pop(number, {"error": "the process that keeps the children does not answer"})

    def _read(self) -> None:
        with self._link.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if "reply" in message:
                    with self._changed:
                        self._replies[message["reply"]] = message
                        self._changed.notify_all()
                else:
                    self._exit(message["exit"], message["code"])
        with self._changed:
            self._closed = True  # the keeper is gone, and with it every child
            self._changed.notify_all()

    def _exit(self, pid: int, code: int) -> None:
        with self._changed:
            if pid not in self._by_pid:
                self._early_exits[pid] = code
                return
        self._ended(pid, code)

    def _ended(self, pid: int, code: int) -> None:
        with self._changed:
            child = self._by_pid.pop(pid)
            child.pid, child.code = None, code
            again = child.restart and not child.stopping and not self._closed
            if again:
                self._schedule_restart(child)
            self._changed.notify_all()
        if child.on_exit is not None:  # in a thread of its own: it may well call back into this object
            threading.Thread(target=child.on_exit, args=(child.name, code), daemon=True).start()

    def _schedule_restart(self, child: Child) -> None:
        if time.monotonic() - child.started_at > RESTART_FORGIVEN_S:
            child.quick_deaths = 0
        delay = min(RESTART_DELAY_FIRST_S * 2**child.quick_deaths, RESTART_DELAY_MAX_S)
        child.quick_deaths += 1
        child.timer = threading.Timer(delay, self._restart, [child])
        child.timer.daemon = True
        child.timer.start()

    def _restart(self, child: Child) -> None:
        with self._changed:
            if child.stopping or self._closed:
                return
            child.restart_count += 1
        try:
            self._start(child)
        except StackError:
            with self._changed:
                if not self._closed and not child.stopping:
                    self._schedule_restart(child)
        if child.stopping:  # `stop` came between the check and the start
            self.kill(child.name)
