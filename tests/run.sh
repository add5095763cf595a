#!/usr/bin/env bash
# What `make test` runs, with coverage. Arguments go to pytest. Without any: first what needs no broker, half of it beside
# the other half; then the tests of the stack that mostly wait, again two halves, each with a broker and a database of
# its own; last, with the machine for themselves, those that measure or kill.
set -uo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
covered() { ${GUARD:-} "$python" -m coverage run -m pytest -m 'not long' "$@"; }
slowest=(--durations=15 --durations-min=10)
failed=0 enough=()

beside() { # two lists of files, a semicolon between them: one beside the other; the second's words come last
  local said first=()
  said=$(mktemp)
  while [[ $1 != ';' ]]; do first+=("$1") && shift; done
  covered "${first[@]}" "${slowest[@]}" >"$said" 2>&1 &
  local other=$!
  covered "${@:2}" "${slowest[@]}" || failed=$?
  wait "$other" || failed=$?
  cat "$said" && rm -f "$said"
}

alone=(budget chaos demo kills shell_faults shell_fold shell_journal)
"$python" -m coverage erase
if (($#)); then
  enough=(--fail-under=0) # of some tests nothing follows
  covered "$@" || failed=$?
else
  alone=("${alone[@]/#/tests/stack/test_}") && alone=("${alone[@]/%/.py}")
  patient=() && for file in tests/stack/test_*.py; do
    [[ " ${alone[*]} tests/stack/test_edges.py " == *" $file "* ]] || patient+=("$file")
  done
  odd=() even=() && for at in "${!patient[@]}"; do
    ((at % 2)) && odd+=("${patient[at]}") || even+=("${patient[at]}")
  done
  AOS_TEST_CROSSINGS=$(mktemp) && export AOS_TEST_CROSSINGS # of all of them: test_edges.py counts
  trap 'rm -f "$AOS_TEST_CROSSINGS"' EXIT
  beside tests/unit ';' tests --ignore=tests/unit --ignore=tests/stack
  beside "${odd[@]}" ';' "${even[@]}"
  covered "${alone[@]}" tests/stack/test_edges.py "${slowest[@]}" || failed=$?
fi
"$python" -m coverage combine -q || failed=$?
"$python" -m coverage report "${enough[@]}" || failed=$?
exit "$failed"
