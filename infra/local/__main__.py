"""`python -m aos.infra.local`: the local stack alone in the foreground, its addresses as one JSON line."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from pathlib import Path

from aos.infra.local.host import StackError
from aos.infra.local.stack import LocalStack


def main() -> int:
    """Start, print the addresses, wait for Ctrl-C or SIGTERM, stop."""
    parser = argparse.ArgumentParser(prog="python -m aos.infra.local", description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="keep the data here (default: a private folder)")
    parser.add_argument("--broker-port", type=int, help="default: a free one")
    parser.add_argument("--database-port", type=int, help="default: a free one")
    parser.add_argument("--write", type=Path, help="also write the addresses to this file")
    chosen = parser.parse_args()
    ended = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: _interrupt(ended))
    stack = LocalStack(chosen.data_dir, broker_port=chosen.broker_port, database_port=chosen.database_port)
    try:
        with stack:
            line = json.dumps({"bootstrap": stack.bootstrap, "database_url": stack.database_url})
            print(line, flush=True)
            if chosen.write:
                chosen.write.write_text(line + "\n")
            took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stack.start_s.items())
            stack.host.say(f"up ({took}); Ctrl-C stops it")
            ended.wait()
    except StackError as error:
        stack.host.say(f"{error.detail} {error.hint}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _interrupt(ended: threading.Event) -> None:
    """The first signal ends the wait; during the start it interrupts."""
    ended.set()
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
