#!/usr/bin/env bash
# What `make test` runs, with coverage. Arguments go to pytest. Without any, the tests that need no broker go first,
# half of them beside the other half; those on the real stack have the machine for themselves, because they measure it.
set -uo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
covered() { ${GUARD:-} "$python" -m coverage run -m pytest -m 'not long' "$@"; }

"$python" -m coverage erase
failed=0 enough=()
if (($#)); then
  enough=(--fail-under=0)  # of some tests nothing follows
  covered "$@" || failed=$?
else
  said=$(mktemp)
  trap 'rm -f "$said"' EXIT
  covered tests/unit >"$said" 2>&1 &
  unit=$!
  covered tests --ignore=tests/unit --ignore=tests/stack || failed=$?
  wait "$unit" || failed=$?
  cat "$said"
  covered tests/stack --durations=40 || failed=$?
fi
"$python" -m coverage combine -q || failed=$?
"$python" -m coverage report "${enough[@]}" || failed=$?
exit "$failed"
