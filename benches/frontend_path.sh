#!/usr/bin/env bash
# What a token and a request cost in the frontend and in the workers; beside another server, in turn, if one is given.
#   benches/frontend_path.sh                                  ours alone
#   benches/frontend_path.sh path/to/run_peer.sh              the peer's script starts it and runs a command with
#                                                             FRONTEND_PID and WORKER_PID set, on port 8900
# Rows: cost by the difference of 64 and 512 tokens at 64 streams; paced at 40 tokens/s; one short stream.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
dynamo="${CARGO_TARGET_DIR:-$root/target}/release/dynamo"
rounds="${ROUNDS:-5}" requests="${REQUESTS:-1024}"
# One token in 25 ms, as a share of the simulated accelerator's 5.74 ms (an idle cache).
paced_speedup=0.2296

if [ "${1:-}" = "measure" ]; then
  # Inside both stacks: URL, FRONTEND_PID, WORKER_PID are ours, PEER_* are the peer's, if there is one.
  versus=()
  [ -z "${PEER_FRONTEND_PID:-}" ] || versus=(--versus http://127.0.0.1:8900 --versus-pid "frontend=$PEER_FRONTEND_PID" --versus-pid "worker=$PEER_WORKER_PID")
  ours=(--url "$URL" --server-pid "frontend=$FRONTEND_PID" --server-pid "worker=$WORKER_PID" --rounds "$rounds" --progress never)
  case "$2" in
    cost) "$dynamo" bench "${ours[@]}" "${versus[@]}" -c 64 -n "$requests" --difference 64,512 ;;
    short) "$dynamo" bench "${ours[@]}" "${versus[@]}" -c 1 -n 200 --output-tokens 8 ;;
    paced) "$dynamo" bench "${ours[@]}" "${versus[@]}" -c 64 -n 64 --warmup 64 --output-tokens 400 ;;
  esac
  exit
fi

beside() { # the peer's speed-up, the command
  local speedup="$1"; shift
  if [ -n "$peer" ]; then
    # shellcheck disable=SC2016
    SPEEDUP="$speedup" "$peer" -- bash -c 'export PEER_FRONTEND_PID=$FRONTEND_PID PEER_WORKER_PID=$WORKER_PID; unset SPEEDUP; "$@"' _ "$@"
  else
    "$@"
  fi
}
peer="${1:-}"
rows="${ROWS:-cost short paced}"
for row in $rows; do
  echo "== $row"
  case "$row" in
    paced) more="--num-gpu-blocks-override 2000000"; beside "$paced_speedup" env SPEEDUP="$paced_speedup" "$root/benches/with_stack.sh" ${more:-} -- "$0" measure "$row" ;;
    *) more=""; beside 1000 env SPEEDUP=0 "$root/benches/with_stack.sh" ${more:-} -- "$0" measure "$row" ;;
  esac
done
