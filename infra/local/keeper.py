"""The keeper: a tiny process that is the parent of every child of AOS and ends them when their owner is gone.

Run as a script (`python -I -S keeper.py <socket fd> <owner pid>`), so it imports the standard library only.
A SIGKILL gives its victim no chance to clean up; so the owner does not hold the children, this process does:
  * it is their parent and a *child subreaper*: whatever they fork, even into a new session, stays below it;
  * when the owner's socket closes or its process ends, it kills that whole tree and removes private folders;
  * each child asks the kernel to be killed when the keeper itself dies (PR_SET_PDEATHSIG).

It talks JSON lines: requests {"id", "do": "spawn" | "signal" | "kill" | "remove", …} get {"reply": id, …};
the end of a child is {"exit": pid, "code": returncode}.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import time
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
# How long a child with a gentler last signal (PostgreSQL: SIGQUIT frees shared memory) has before SIGKILL.
LAST_WORDS_S = 2.0
# The bound on the final kill; processes in uninterruptible sleep may outlive it, nothing else can.
KILL_LIMIT_S = 20.0


def parents() -> dict[int, int]:
    """pid -> parent's pid of every process of the machine."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as stat:
                    found[int(entry)] = int(stat.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError):
                continue  # it ended while we looked
    return found


def descendants(root: int) -> list[int]:
    """Every process below `root`, nearest first."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found, frontier = [], [root]
    while frontier:
        frontier = [child for pid in frontier for child in children.get(pid, [])]
        found.extend(frontier)
    return found


def send_signal(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signum)


class Keeper:
    """Starts, signals and reaps children; knows nothing of what they are."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.last_signals: dict[int, int] = {}  # pid -> the signal that ends it when the owner is gone
        self.folders: list[str] = []

    def tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the owner may be gone; the loop learns it by itself
            self.link.sendall(json.dumps(message).encode() + b"\n")

    def handle(self, request: dict[str, Any]) -> None:
        reply: dict[str, Any] = {"reply": request["id"]}
        try:
            match request["do"]:
                case "spawn":
                    reply["pid"] = self.spawn(request)
                case "signal":
                    if request["pid"] in self.last_signals:
                        send_signal(-request["pid"], request["signum"])
                case "kill":
                    if request["pid"] in self.last_signals:
                        kill_tree(request["pid"])
                case "remove":
                    self.folders.append(request["path"])
        except OSError as error:
            reply["error"] = str(error)
        self.tell(reply)

    def spawn(self, request: dict[str, Any]) -> int:
        """Fork and exec; an exec that fails is reported through a pipe that a good exec closes."""
        failed_read, failed_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                self.become(request)
            except BaseException as error:
                os.write(failed_write, str(error).encode()[:500])
            os._exit(127)
        os.close(failed_write)
        self.last_signals[pid] = request["last_signal"]
        with os.fdopen(failed_read, "rb") as pipe:
            failure = pipe.read()
        if failure:
            raise OSError(failure.decode(errors="replace"))
        return pid

    def become(self, request: dict[str, Any]) -> None:
        """In the forked child: own session, own output, own user, then the program."""
        os.setsid()
        for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(signum, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        log = os.open(request["log"] or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if request["user"]:
            uid, gid = request["user"]
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        os.chdir(request["cwd"] or "/")
        self.libc.prctl(PR_SET_PDEATHSIG, request["last_signal"], 0, 0, 0)  # after setuid, which clears it
        os.execvpe(request["argv"][0], request["argv"], request["env"])

    def reap(self) -> bool:
        """Collect what ended and report the children of it; False when nothing is left to wait for."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if self.last_signals.pop(pid, None) is not None:
                self.tell({"exit": pid, "code": os.waitstatus_to_exitcode(status)})

    def end(self) -> None:
        """Leave nothing: last signals, SIGKILL to the whole tree until it is empty, the private folders."""
        gentle = [pid for pid, signum in self.last_signals.items() if signum != signal.SIGKILL]
        for pid, signum in list(self.last_signals.items()):
            if signum == signal.SIGKILL:
                kill_tree(pid)
            else:
                send_signal(pid, signum)
        deadline = time.monotonic() + LAST_WORDS_S
        while any(pid in self.last_signals for pid in gentle) and time.monotonic() < deadline:
            self.reap()
            time.sleep(0.01)
        deadline = time.monotonic() + KILL_LIMIT_S
        while self.reap() and time.monotonic() < deadline:
            for pid in descendants(os.getpid()):
                send_signal(pid, signal.SIGKILL)
            time.sleep(0.01)
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)

    def run(self, owner: int) -> None:
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self.link.shutdown(socket.SHUT_RD))
        for signum in (signal.SIGHUP, signal.SIGINT):
            signal.signal(signum, signal.SIG_IGN)
        selector = selectors.DefaultSelector()
        selector.register(self.link, selectors.EVENT_READ, "link")
        selector.register(wake_read, selectors.EVENT_READ, "wake")
        # a fork of the owner may hold the socket open: the process is the better witness, where allowed
        with contextlib.suppress(OSError, AttributeError):
            selector.register(os.pidfd_open(owner), selectors.EVENT_READ, "owner")
        pending = b""
        while True:
            events = {key.data for key, _ in selector.select()}
            if "wake" in events:
                os.read(wake_read, 4096)
            self.reap()
            if "owner" in events:
                return
            if "link" in events:
                received = self.link.recv(1 << 20)
                if not received:
                    return
                *lines, pending = (pending + received).split(b"\n")
                for line in lines:
                    self.handle(json.loads(line))


def kill_tree(pid: int) -> None:
    """SIGKILL a child and all below it: stopped first, so that it cannot fork away while we look."""
    send_signal(pid, signal.SIGSTOP)
    for victim in (pid, *descendants(pid)):
        send_signal(victim, signal.SIGKILL)


def main() -> None:
    link = socket.socket(fileno=int(sys.argv[1]))
    link.set_inheritable(False)  # a child that held it open would keep the owner from seeing our end
    keeper = Keeper(link)
    try:
        keeper.run(owner=int(sys.argv[2]))
    finally:
        keeper.end()


if __name__ == "__main__":
    main()
