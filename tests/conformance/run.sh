#!/usr/bin/env bash
# Runs the official OpenAI SDKs (Python and Node) against `dynamo serve`. Installs them into target/conformance.
#   DYNAMO=path/to/dynamo tests/conformance/run.sh
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
home="${CARGO_TARGET_DIR:-$root/target}/conformance"
dynamo="${DYNAMO:-${CARGO_TARGET_DIR:-$root/target}/debug/dynamo}"
[ -x "$dynamo" ] || { echo "no binary at $dynamo: run 'cargo build --workspace --bins' first" >&2; exit 2; }
mkdir -p "$home"

if ! [ -e "$home/venv/ready" ]; then
  python3 -m venv "$home/venv"
  "$home/venv/bin/pip" install -q -r "$here/requirements.txt"
  touch "$home/venv/ready"
fi
if ! [ -e "$home/node_modules/openai" ]; then
  npm install --silent --no-audit --no-fund --prefix "$home" "$(cat "$here/node-package.txt")" >/dev/null
fi

run="$(mktemp -d)"
server=""
stop() {
  trap - EXIT INT TERM
  if [ -n "$server" ]; then kill -TERM "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; fi
  rm -rf "$run"
}
trap stop EXIT; trap 'exit 130' INT; trap 'exit 143' TERM

DYN_FILE_KV="$run/discovery" "$dynamo" serve --model-path "$root/tests/data/tiny-llama" --model-name tiny \
  --http-host 127.0.0.1 --http-port 0 --num-workers 2 --speedup-ratio 0 >"$run/out" 2>"$run/log" &
server=$!
url=""
for _ in $(seq 600); do
  url="$(grep -o 'http://[0-9.:]*/v1' "$run/out" | head -1 || true)"
  [ -n "$url" ] && curl -sf "${url%/v1}/v1/models/tiny" >/dev/null && break
  kill -0 "$server" 2>/dev/null || { echo "the server ended:" >&2; cat "$run/out" "$run/log" >&2; exit 1; }
  sleep 0.1
done
[ -n "$url" ] || { echo "the server is not ready:" >&2; cat "$run/out" "$run/log" >&2; exit 1; }

status=0
BASE_URL="$url" "$home/venv/bin/python" -m pytest -q -p no:cacheprovider "$here/test_openai_sdk.py" || status=1
cp "$here/openai_sdk.test.mjs" "$home/"
BASE_URL="$url" node --test "$home/openai_sdk.test.mjs" || status=1
[ "$status" = 0 ] || { echo "-- server log" >&2; tail -50 "$run/log" >&2; }
exit "$status"
