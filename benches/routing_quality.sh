#!/usr/bin/env bash
# What KV routing gains over round-robin, at rising loads, here and on another server's own stack, in turn.
#   benches/routing_quality.sh TRACE.jsonl [path/to/run_peer.sh]
# The conversation trace shrunk by eight, at 40 times its speed; the workers' speed sets the load (the lower, the more).
# The peer's script starts it and runs a command with FRONTEND_PID and WORKER_PID set, on PORT, and follows ROUTER,
# NUM_WORKERS, SPEEDUP, BLOCK and NUM_BLOCKS (blocks of a worker).
# Environment: SPEEDS (40 10 5), WORKERS (8), BLOCKS (2048), ROUNDS (1)
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
dynamo="${CARGO_TARGET_DIR:-$root/target}/release/dynamo"
if [ "${1:-}" = "measure" ]; then # inside a stack: trace, where the JSON goes
  "$dynamo" bench --url "${URL:-http://127.0.0.1:$PORT}" --model tiny --trace "$2" --shrink 8 --speedup 40 --workers "$WORKERS" \
    --blocks-per-worker "$BLOCKS" --worker-ids --warmup 0 --progress never --json "$3" \
    --server-pid "frontend=$FRONTEND_PID" --server-pid "worker=$WORKER_PID" >/dev/null || true
  exit
fi
trace="${1:?usage: routing_quality.sh TRACE.jsonl [run_peer.sh]}" peer="${2:-}"
export WORKERS="${WORKERS:-8}" BLOCKS="${BLOCKS:-2048}" PORT=8900
run="$(mktemp -d)"; trap 'rm -rf "$run"' EXIT
for round in $(seq "${ROUNDS:-1}"); do
  for speed in ${SPEEDS:-40 10 5}; do
    for router in kv round-robin; do
      echo "round $round, workers at ${speed}x, $router" >&2
      ROUTER="$router" BLOCK=64 SPEEDUP="$speed" "$root/benches/with_stack.sh" --num-gpu-blocks-override "$BLOCKS" \
        --model-context-length 32768 -- "$0" measure "$trace" "$run/here.$speed.$router.$round.json"
      [ -z "$peer" ] || NUM_WORKERS="$WORKERS" NUM_BLOCKS="$BLOCKS" ROUTER="$router" BLOCK=64 SPEEDUP="$speed" \
        "$peer" -- "$0" measure "$trace" "$run/peer.$speed.$router.$round.json"
    done
  done
done
python3 "$root/benches/routing_quality.py" "$run"
