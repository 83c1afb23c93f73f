#!/usr/bin/env bash
# An hour of trace (shrunk by eight, at 40 times its speed) replayed again and again through one stack whose workers evict:
# the index's bytes and the frontend's memory after each turn, which have to stay where they were after the second.
#   benches/soak.sh TRACE.jsonl [TURNS]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
dynamo="${CARGO_TARGET_DIR:-$root/target}/release/dynamo"
if [ "${1:-}" != "inside" ]; then
  trace="${1:?usage: soak.sh TRACE.jsonl [TURNS]}"
  WORKERS=8 BLOCK=64 SPEEDUP=40 exec "$root/benches/with_stack.sh" --num-gpu-blocks-override 2048 --model-context-length 32768 -- \
    "$0" inside "$trace" "${2:-5}"
fi
trace="$2" turns="$3"
gauge() { curl -s "$URL/metrics" | awk -v name="$1" 'index($1, name"{") == 1 { sum += $2 } END { printf "%d", sum }'; }
resident() { awk '/VmRSS/ { printf "%d", $2 * 1024 }' "/proc/$FRONTEND_PID/status"; }
echo "| turn | blocks in the index | its bytes | frontend RSS, MB |"; echo "|---|---|---|---|"
for turn in $(seq "$turns"); do
  "$dynamo" bench --url "$URL" --model tiny --trace "$trace" --shrink 8 --speedup 40 --warmup 0 --progress never >/dev/null
  sleep 3
  bytes="$(gauge dynamo_kvrouter_index_bytes)" rss="$(resident)"
  echo "| $turn | $(gauge dynamo_kvrouter_index_blocks) | $bytes | $((rss / 1048576)) |"
  [ "$turn" != 2 ] || { bytes_then="$bytes" rss_then="$rss"; }
done
[ "$turns" -gt 2 ] || exit 0
for pair in "index bytes:$bytes_then:$bytes" "RSS:$rss_then:$rss"; do
  IFS=: read -r what before after <<<"$pair"
  [ "$after" -le $((before + before / 10)) ] || { echo "$what grew from $before to $after" >&2; exit 1; }
done
echo "flat: neither grew by a tenth after the second turn"
