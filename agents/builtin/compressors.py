"""The demo's fleet: inspect a piece of a file, make it smaller within a CPU budget, prove that it can be restored.

Run as ``python -m aos.agents.builtin.compressors SERVICE``. The judge is the verifier: a compression scores the
fraction of bytes it saved if it restores exactly and took no more CPU than the budget, else 0. A compressor measures
its own CPU time; nothing else it says about itself is used.
"""

from __future__ import annotations

import asyncio
import bz2
import hashlib
import json
import lzma
import os
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from math import log2
from pathlib import Path
from typing import Any

from aos.agents import Answer, Refuse, Service, Work

FAULTS = "AOS_DEMO_FAULTS"  # a JSON file {agent: "slow" or "faulty"}: what goes wrong inside an agent
SLOWED = 1.25  # share of its CPU budget that a slowed agent uses up, doing its work over and over
FAULTY_EVERY = 2  # which of its outputs a faulty agent damages
HEAD = 4  # bytes of the length of the header in a compressed piece

Bytes = Callable[[bytes], bytes]
Codec = tuple[Bytes, Bytes]  # compress, restore


def _optional(name: str) -> Any:
    try:
        return __import__(name, fromlist=["_"])
    except ImportError as error:
        raise SystemExit(f"aos: the demo needs {name}: pip install 'aos-pipeline[demo]'") from error


def stdlib() -> dict[str, Codec]:
    """Compressors of the standard library: name -> (compress, restore)."""
    found: dict[str, Codec] = {}
    for level in (1, 6, 9):
        found[f"zlib-{level}"] = (partial(zlib.compress, level=level), zlib.decompress)
    found["bz2-9"] = (partial(bz2.compress, compresslevel=9), bz2.decompress)
    for preset in (1, 6):
        found[f"lzma-{preset}"] = (partial(lzma.compress, preset=preset), lzma.decompress)
    return found


def modern() -> dict[str, Codec]:
    """Compressors of the demo extra."""
    zstandard, lz4, brotli = _optional("zstandard"), _optional("lz4.frame"), _optional("brotli")
    found: dict[str, Codec] = {}
    for level in (1, 9, 19):
        found[f"zstd-{level}"] = (partial(zstandard.compress, level=level), zstandard.decompress)
    found["lz4"] = (lz4.compress, lz4.decompress)
    for quality in (4, 11):
        found[f"brotli-{quality}"] = (partial(brotli.compress, quality=quality), brotli.decompress)
    return found


def squeeze(agent: str, name: str, compress: Bytes, data: bytes, budget_us: int = 0) -> Answer:
    """Compress; the answer is a header (codec, CPU time, size of the original) and the compressed bytes."""
    fault = fault_of(agent)
    begun = time.thread_time_ns()
    body = compress(data)
    if fault == "slow":
        compress(data)
        while time.thread_time_ns() - begun < SLOWED * budget_us * 1000:
            compress(data)
    cpu_us = (time.thread_time_ns() - begun) // 1000
    if fault == "faulty" and zlib.crc32(data) % FAULTY_EVERY == 0:
        body = body[: len(body) // 2] + body[len(body) // 2 + 1 :]
    head = json.dumps({"codec": name, "cpu_us": cpu_us, "size": len(data)}).encode()
    return Answer(len(head).to_bytes(HEAD, "big") + head + body, "application/x-aos-squeezed", cpu_us=cpu_us)


def open_squeezed(payload: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body of a compressor's answer."""
    size = int.from_bytes(payload[:HEAD], "big")
    head: dict[str, Any] = json.loads(payload[HEAD : HEAD + size])
    return head, payload[HEAD + size :]


def verify(original: bytes, squeezed: bytes, budget_us: int, restore: dict[str, Bytes]) -> Answer:
    """The judge: restore, compare, look at the CPU time; score as this module says."""
    head, body = open_squeezed(squeezed)
    try:
        exact = restore[head["codec"]](body) == original
    except Exception:  # whatever a codec says to damaged bytes: it did not restore
        exact = False
    saved = max(0.0, 1 - len(body) / max(len(original), 1))
    within = head["cpu_us"] <= budget_us
    verdict = {
        "codec": head["codec"],
        "restored": exact,
        "within_budget": within,
        "bytes": len(original),
        "bytes_after": len(body),
        "cpu_us": head["cpu_us"],
        "budget_us": budget_us,
        "sha256": hashlib.sha256(original).hexdigest(),
    }
    score = saved if exact and within else 0.0
    return Answer(json.dumps(verdict).encode(), "application/json", score=score)


def inspect(data: bytes) -> dict[str, Any]:
    """What a piece looks like: bytes, entropy, whether it is text."""
    counts = Counter(data)
    total = max(len(data), 1)
    entropy = -sum(n / total * log2(n / total) for n in counts.values())
    text = not data or sum(counts[b] for b in range(32) if b not in (9, 10, 13)) == 0
    return {"bytes": len(data), "entropy": round(entropy, 3), "text": text, "distinct": len(counts)}


def fault_of(agent: str) -> str | None:
    """What is wrong inside this agent now, by the faults file."""
    path = os.environ.get(FAULTS)
    if not path:
        return None
    try:
        found: dict[str, str] = json.loads(Path(path).read_text())
    except FileNotFoundError:
        return None
    return found.get(agent)


def compressors(service: Service, codecs: dict[str, Codec], rename: Callable[[str], str]) -> None:
    """Declare an agent for each compressor."""
    for name, (compress, _) in codecs.items():
        agent = rename(name)

        def handler(work: Work, agent: str = agent, name: str = name, compress: Bytes = compress) -> Any:
            if work.payload is None:
                raise Refuse("there is nothing to compress", retryable=False)
            return asyncio.to_thread(squeeze, agent, name, compress, work.payload, work.budget_cpu_us or 0)

        service.agent(agent, capabilities=["compress"], capacity=8, description=f"compresses with {name}")(
            handler
        )


def inspectors(service: Service, rename: Callable[[str], str]) -> None:
    """Declare the inspectors: one reads all, one a sample."""
    for name, step in (("inspect-all", 1), ("inspect-sample", 7)):

        def handler(work: Work, step: int = step) -> Any:
            return asyncio.to_thread(inspect, (work.payload or b"")[::step])

        service.agent(rename(name), capabilities=["inspect"], capacity=8, description="looks at a piece")(
            handler
        )


def verifiers(service: Service, rename: Callable[[str], str]) -> None:
    """Declare the verifiers."""
    restore = {name: pair[1] for name, pair in {**stdlib(), **modern()}.items()}
    for name in ("verify-1", "verify-2"):

        def handler(work: Work) -> Any:
            squeezed = work.input("compress").payload
            if work.payload is None or squeezed is None:
                raise Refuse("there is nothing to verify", retryable=False)
            return asyncio.to_thread(verify, work.payload, squeezed, work.budget_cpu_us or 0, restore)

        service.agent(rename(name), capabilities=["verify"], capacity=8, description="restores and compares")(
            handler
        )


SERVICES: dict[str, Callable[[Service, Callable[[str], str]], None]] = {
    "squeezers": lambda service, rename: compressors(service, stdlib(), rename),
    "pressers": lambda service, rename: compressors(service, modern(), rename),
    "inspectors": inspectors,
    "verifiers": verifiers,
}


def build(name: str, rename: Callable[[str], str] = lambda name: name) -> Service:
    """The service of that name, its agents declared; `rename` is for tests that must not know the names."""
    service = Service(name)
    SERVICES[name](service, rename)
    return service


if __name__ == "__main__":
    salt = sys.argv[2] if len(sys.argv) > 2 else ""
    build(
        sys.argv[1], lambda name: hashlib.sha256((salt + name).encode()).hexdigest()[:8] if salt else name
    ).run()
