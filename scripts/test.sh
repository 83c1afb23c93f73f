#!/usr/bin/env bash
# All checks and tests, with the minutes that each step took. Installs what they need.
#   scripts/test.sh            everything
#   scripts/test.sh STEP ...   only these steps: format arrows clippy unit loom cost conformance
set -euo pipefail
cd "$(dirname "$0")/.."

steps=("$@")
[ "${#steps[@]}" -gt 0 ] || steps=(format arrows clippy unit loom cost conformance)
passed=0 failed=0 skipped=0
summary=()

# Adds the counts of a runner's closing line to the totals.
count() { passed=$((passed + $1)); failed=$((failed + $2)); skipped=$((skipped + $3)); }

step_format() { cargo fmt --all --check; }
step_arrows() { python3 scripts/check_arrows.py; }
step_clippy() { cargo clippy --locked --workspace --all-targets -- -D warnings; }

step_unit() {
  if ! cargo nextest --version >/dev/null 2>&1; then
    echo "Installing cargo-nextest"
    cargo install --locked cargo-nextest
  fi
  cargo build --locked --workspace --bins
  local log status=0
  log="$(mktemp)"
  cargo nextest run --locked --workspace --profile "${NEXTEST_PROFILE:-default}" 2>&1 | tee "$log" || status=$?
  read -r p f s < <(python3 - "$log" <<'PY'
import re, sys
text = re.sub(r"\x1b\[[0-9;]*m", "", open(sys.argv[1], errors="replace").read())
line = ([l for l in text.splitlines() if "Summary [" in l] or [""])[-1]
number = lambda word: sum(int(n) for n in re.findall(rf"(\d+) {word}", line))
print(number("passed"), number("failed") + number("timed out"), number("skipped"))
PY
  )
  rm -f "$log"
  count "$p" "$f" "$s"
  return "$status"
}

# What threads share without a lock, in every order, under loom; in a folder of its own, since all is compiled anew.
step_loom() {
  local log status=0
  log="$(mktemp)"
  RUSTFLAGS="--cfg loom" CARGO_PROFILE_RELEASE_LTO=off LOOM_MAX_PREEMPTIONS=3 \
    cargo test --locked -p dynamo-kv-router --release --lib --target-dir "${CARGO_TARGET_DIR:-target}/loom" loom 2>&1 |
    tee "$log" || status=$?
  read -r p f s < <(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed; \([0-9]*\) ignored.*/\1 \2 \3/p' "$log") || true
  rm -f "$log"
  count "${p:-0}" "${f:-0}" "${s:-0}"
  return "$status"
}

# Instructions of the prefix index, under callgrind.
step_cost() { scripts/index_cost.sh; }

step_conformance() {
  scripts/ensure_packages.sh python3-venv=/usr/lib/python3*/ensurepip nodejs=node npm=npm
  tests/conformance/run.sh
}

for step in "${steps[@]}"; do
  began=$SECONDS
  echo "== $step"
  if "step_$step"; then result=ok; else result=FAILED; fi
  minutes="$(awk "BEGIN { printf \"%.1f\", ($SECONDS - $began) / 60 }")"
  summary+=("$(printf '%-12s %-7s %5s min' "$step" "$result" "$minutes")")
  [ "$result" = ok ] || { printf '%s\n' "${summary[@]}"; exit 1; }
done
printf '%s\n' "${summary[@]}"
echo "$passed passed, $failed failed, $skipped skipped"
