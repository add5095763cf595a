"""Which of a machine's apt sources are Debian's main archive, and how they are rewritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from aos.infra.local import maven
from aos.infra.local.apt import debian_sources
from aos.infra.local.debian import NEEDLESS

DEB822 = """\
Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
REWRITTEN = """\
Types: deb
URIs: http://mirror.example/debian
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
CASES = [
    ("deb822", "sources.list.d/debian.sources", DEB822, [("sources", REWRITTEN)]),
    ("security is left out", "sources.list.d/a.sources", DEB822.replace("bookworm", "bookworm-security"), []),
    ("disabled is left out", "sources.list.d/a.sources", DEB822 + "Enabled: no\n", []),
    (
        "vendors are left out",
        "sources.list.d/a.sources",
        "Types: deb\nURIs: http://v.example\nSuites: any\nComponents: main\n\n" + DEB822,
        [("sources", REWRITTEN)],
    ),
    ("one line", "sources.list", "deb http://m.example/debian bookworm main contrib # x\n",
     [("list", "deb http://m.example/debian trixie main\n")]),
    ("options are kept", "sources.list.d/a.list",
     "deb [arch=amd64 signed-by=/k.gpg] http://m/d stable main\n",
     [("list", "deb [arch=amd64 signed-by=/k.gpg] http://m/d trixie main\n")]),
    ("sources, comments and discs are left out", "sources.list",
     "deb-src http://m/d bookworm main\n#deb http://m/d bookworm main\ndeb cdrom:[x]/ bookworm main\n", []),
    ("another distribution is left out", "sources.list", "deb http://m/ubuntu noble main universe\n", []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "text", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_sources(path: str, text: str, expected: list[tuple[str, str]], tmp_path: Path) -> None:
    source = tmp_path / "apt" / path
    source.parent.mkdir(parents=True)
    source.write_text(text)
    assert list(debian_sources(tmp_path)) == expected


@pytest.mark.parametrize("name", ["perl-base", "libllvm19", "debconf", "procps", "passwd", "openssl"])
def test_needless_packages(name: str) -> None:
    assert NEEDLESS.match(name)


@pytest.mark.parametrize("name", ["libc6", "libssl3t64", "libpq5", "postgresql-17", "zlib1g", "libicu76"])
def test_needed_packages(name: str) -> None:
    assert not NEEDLESS.match(name)


@pytest.mark.parametrize(
    "name", ["openjdk-21-jre-headless", "libc6", "fonts-dejavu-core", "libatk-wrapper-java"]
)
def test_of_maven_only_maven_and_its_libraries_are_fetched(name: str) -> None:
    assert maven.NEEDLESS.match(name)
    assert not any(map(maven.NEEDLESS.match, ("maven", "libmaven3-core-java", "libguice-java")))


def test_links_to_the_machine_point_inside_what_was_unpacked(tmp_path: Path) -> None:
    (tmp_path / "etc/maven").mkdir(parents=True)
    (tmp_path / "usr/share/maven").mkdir(parents=True)
    (tmp_path / "usr/share/maven/conf").symlink_to("/etc/maven")
    maven.keep_links_inside(tmp_path)
    assert (tmp_path / "usr/share/maven/conf").resolve() == (tmp_path / "etc/maven").resolve()
