#!/usr/bin/env bash
# Prefix routing on the conversation trace, shrunk by eight, at 40 times its speed: KV mode beside round-robin.
#   benches/prefix_routing.sh TRACE.jsonl ["WORKERS:BLOCKS" …]      default: 8:2048 4:2048 8:512 8:8192
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
dynamo="${CARGO_TARGET_DIR:-$root/target}/release/dynamo"
trace="${1:?usage: prefix_routing.sh TRACE.jsonl [WORKERS:BLOCKS …]}"; shift
[ $# -gt 0 ] || set -- 8:2048 4:2048 8:512 8:8192
for setting in "$@"; do
  workers="${setting%:*}" blocks="${setting#*:}"
  for router in ${ROUTERS:-kv round-robin}; do
    echo "== $router, $workers workers of $blocks blocks"
    # Some prompts are longer than the tiny model's 8,192 tokens; the simulated engine takes them all the same.
    # shellcheck disable=SC2016
    ROUTER="$router" WORKERS="$workers" BLOCK=64 SPEEDUP=40 "$root/benches/with_stack.sh" \
      --num-gpu-blocks-override "$blocks" --model-context-length 32768 -- \
      bash -c '"$0" bench --url "$URL" --model tiny --trace "$1" --shrink 8 --speedup 40 --workers "$2" \
        --blocks-per-worker "$3" --worker-ids --warmup 0 --progress never \
        --server-pid "frontend=$FRONTEND_PID" --server-pid "worker=$WORKER_PID" || true' "$dynamo" "$trace" "$workers" "$blocks"
  done
done
