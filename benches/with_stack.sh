#!/usr/bin/env bash
# Starts a frontend and one worker process (release build), runs a command with URL, FRONTEND_PID and WORKER_PID set, stops.
#   benches/with_stack.sh [worker flags] -- COMMAND …
# Environment: ROUTER (kv), WORKERS (4), BLOCK (16), SPEEDUP (0), FRONTEND_FLAGS, MODEL (tests/data/tiny-llama)
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bin="${CARGO_TARGET_DIR:-$root/target}/release"
flags=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do flags+=("$1"); shift; done
[ "${1:-}" = "--" ] && shift || { echo "usage: with_stack.sh [worker flags] -- COMMAND" >&2; exit 2; }
run="$(mktemp -d)"; pids=()
stop() {
  trap - EXIT INT TERM
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$run"
}
trap stop EXIT; trap 'exit 130' INT; trap 'exit 143' TERM
export DYN_FILE_KV="$run/discovery" DYN_SYSTEM_HOST=127.0.0.1 DYN_SYSTEM_PORT=0
# shellcheck disable=SC2086
"$bin/dynamo-frontend" --http-host 127.0.0.1 --http-port 0 --router-mode "${ROUTER:-kv}" ${FRONTEND_FLAGS:-} >"$run/frontend.out" 2>"$run/frontend.log" & pids+=($!)
"$bin/dynamo" worker --model-path "${MODEL:-$root/tests/data/tiny-llama}" --model-name tiny --num-workers "${WORKERS:-4}" \
  --block-size "${BLOCK:-16}" --speedup-ratio "${SPEEDUP:-0}" "${flags[@]}" >"$run/worker.out" 2>"$run/worker.log" & pids+=($!)
unset DYN_FILE_KV DYN_SYSTEM_HOST DYN_SYSTEM_PORT
FRONTEND_PID="${pids[0]}" WORKER_PID="${pids[1]}" URL="" ready=0
for _ in $(seq 300); do
  URL="$(grep -o 'http://[0-9.:]*/v1' "$run/frontend.out" 2>/dev/null | head -1)" || true
  URL="${URL%/v1}"
  if [ -n "$URL" ] && [ "$(curl -s -m 2 "$URL/health" | grep -o '"endpoint":"generate"' | wc -l)" = "${WORKERS:-4}" ] \
    && curl -sf -m 2 "$URL/v1/models/tiny" >/dev/null; then ready=1; break; fi
  sleep 0.1
done
[ "$ready" = 1 ] || { echo "the stack did not start" >&2; cat "$run"/*.log >&2; exit 1; }
WORKER_SYSTEM="$(grep -o 'http://[0-9.:]*' "$run/worker.out" | head -1)"
export FRONTEND_PID WORKER_PID URL WORKER_SYSTEM
"$@"
