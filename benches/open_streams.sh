#!/usr/bin/env bash
# 10,000 open streams that each get a token every ten seconds, and 200 new connections a second for a minute on top; memory,
# descriptors and gauges before, and a minute after all have closed.
#   benches/open_streams.sh [STREAMS] [PER_SECOND] [SECONDS]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
dynamo="${CARGO_TARGET_DIR:-$root/target}/release/dynamo"
if [ "${1:-}" != "inside" ]; then
  # Model `tiny` is for the newcomers: instant. The one for the held streams is started inside.
  SPEEDUP=0 WORKERS=2 exec "$root/benches/with_stack.sh" -- "$0" inside "${1:-10000}" "${2:-200}" "${3:-60}"
fi
streams="$2" rate="$3" seconds="$4"
run="$(mktemp -d)"; pids=()
stop() { trap - EXIT; for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; done; rm -rf "$run"; }
trap stop EXIT
# A step of 10 s: 5.74 ms ÷ 0.000574. Prompts are computed at once.
DYN_FILE_KV="$(tr '\0' '\n' <"/proc/$FRONTEND_PID/environ" | sed -n 's/^DYN_FILE_KV=//p')" "$dynamo" worker \
  --model-path "$root/tests/data/tiny-llama" --model-name slow --endpoint dyn://dynamo.slow.generate --num-workers 2 --block-size 16 \
  --speedup-ratio 1000 --decode-speedup-ratio 0.000000574 --max-num-seqs 8192 --max-num-batched-tokens 2000000 \
  --num-gpu-blocks-override 4000000 >"$run/slow.out" 2>"$run/slow.log" & pids+=($!)
for _ in $(seq 100); do curl -sf -m 2 "$URL/v1/models/slow" >/dev/null && break; sleep 0.1; done
look() {
  awk '/VmRSS/ { printf "frontend RSS %.1f MB, ", $2 / 1024 }' "/proc/$FRONTEND_PID/status"
  printf '%s descriptors\n' "$(find "/proc/$FRONTEND_PID/fd" | wc -l)"
  curl -s "$URL/metrics" | grep -E '^(dynamo_process_tasks|dynamo_frontend_inflight_requests|dynamo_request_plane_inflight_requests|dynamo_frontend_worker_active_requests)'
}
"$dynamo" bench --url "$URL" --model tiny -c 8 -n 200 --output-tokens 4 --progress never >/dev/null
echo "== before"; look
"$dynamo" bench --url "$URL" --model slow -c "$streams" -n "$streams" --warmup 0 --words 16 --output-tokens 12 --timeout 300 \
  --new-connections --progress never >"$run/held.txt" 2>&1 & held=$!
sleep 35
echo "== with $streams streams"; look
"$dynamo" bench --url "$URL" --model tiny --rate "$rate" --duration "$seconds" --new-connections --words 32 --output-tokens 4 \
  --progress never --server-pid "frontend=$FRONTEND_PID" || true
echo "== held streams"; wait "$held" || true; cat "$run/held.txt"
echo "== a minute after all have closed"; sleep 60; look
