#!/usr/bin/env bash
# Makes .venv from uv.lock: `infra/setup.sh STAMP [arguments of uv sync]`. Needs Python 3.11 and the package index, nothing else.
# uv is taken from PATH, else from PyPI into the project's own folder .uv. GUARD (from make) is a command prefix
# that ends the command behind it when its parent is killed.
set -euo pipefail
stamp=$1
shift
python=${PYTHON:-python3}
uv_version=0.13.9

fail() { # sentence, hint
  echo "aos: $1 $2" >&2
  exit 1
}

# ── what this machine is ──
command -v "$python" >/dev/null 2>&1 || python=python3.11
command -v "$python" >/dev/null 2>&1 ||
  fail "Python 3.11 is not installed." "Install it (on Debian 12: apt-get install python3) and run the command again."
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo unknown)
if [ "$version" != 3.11 ] && command -v python3.11 >/dev/null 2>&1; then
  python=python3.11
  version=3.11
fi
[ "$version" = 3.11 ] ||
  fail "AOS needs Python 3.11 and $python is $version." "Install 3.11, or name it: make PYTHON=/path/to/python3.11 …"
if glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null); then
  [ "$(printf '%s\n2.28\n' "${glibc#* }" | sort -V | head -1)" = 2.28 ] ||
    fail "The C library of this machine (${glibc}) is too old: the wheels AOS is built on need glibc 2.28." \
      "Use a newer system (Debian 10 or later)."
else
  fail "This machine's C library is not glibc, and AOS's wheels are built for glibc 2.28 or later." "Use a Debian-like system."
fi
free_mb=$(df -Pm . | awk 'NR==2 {print $4}')
[ "$free_mb" -ge 2048 ] ||
  fail "The disk is too full for the environment: $PWD has $free_mb MB free, 2048 MB are needed." "Make room there."

# ── uv: on PATH, in .uv, or from PyPI into .uv ──
works() { "$@" --version >/dev/null 2>&1; }
if works uv; then
  uv=(uv)
elif works .uv/bin/uv; then
  uv=(.uv/bin/uv)
else
  echo "aos: fetching uv $uv_version from PyPI into .uv …" >&2
  rm -rf .uv
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  if "$python" -m venv .uv >"$log" 2>&1 && ${GUARD:-} .uv/bin/python -m pip install -q "uv==$uv_version" >>"$log" 2>&1; then
    :
  else # Debian without python3-venv has no ensurepip; pip itself may be there
    rm -rf .uv
    ${GUARD:-} "$python" -m pip install -q --target .uv "uv==$uv_version" >>"$log" 2>&1 ||
      fail "uv could not be installed: $(grep -v '^ *$' "$log" | tail -1)." \
        "Check the network; on Debian install pip for Python (apt-get install python3-venv), or put uv $uv_version on PATH."
  fi
  works .uv/bin/uv || fail "The uv that was installed into .uv does not run here." "Put uv $uv_version on PATH."
  echo '*' >.uv/.gitignore
  uv=(.uv/bin/uv)
fi

# ── the environment ──
export UV_PYTHON_DOWNLOADS=never
if [ ! -x .venv/bin/python ]; then
  echo "aos: making the environment .venv from uv.lock (about 400 MB, once) …" >&2
fi
${GUARD:-} "${uv[@]}" sync --locked --compile-bytecode --extra demo --python "$python" "$@" ||
  fail "The environment could not be made." "The lines above say why; with the network back, run the command again."
touch "$stamp"
