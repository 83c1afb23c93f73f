#!/usr/bin/env bash
# Counts the instructions of the prefix index, and of the plain radix tree, per block, and fails if they are more than the
# limits below. Needs valgrind, and no quiet machine.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/ensure_packages.sh valgrind=valgrind
bench="$(cargo bench --locked -p dynamo-kv-router --bench prefix_index_cost --no-run --message-format=json |
  python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("target", {}).get("name") == "prefix_index_cost" and message.get("executable"):
        print(message["executable"])')"

# About a third above what was counted when the limits were set.
status=0
for limit in run:store=420 run:query=12 run:remove=400 radix:store=430 radix:query=26 radix:remove=720; do
  index="${limit%%:*}" what="${limit#*:}"
  most="${what#*=}" what="${what%%=*}"
  log="$(mktemp)"
  blocks="$(valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect='prefix_index_cost::measured*' \
    --log-file="$log" "$bench" "$what" "$index")"
  instructions="$(sed -n 's/.*Collected : *\([0-9]*\).*/\1/p' "$log")"
  rm -f "$log"
  awk -v what="$index $what" -v n="$instructions" -v blocks="$blocks" -v most="$most" 'BEGIN {
    each = n / blocks
    printf "%-12s %6.1f instructions a block, at most %d\n", what, each, most
    exit !(n > 0 && each <= most)
  }' || status=1
done
exit "$status"
