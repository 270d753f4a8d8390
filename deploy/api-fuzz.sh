#!/bin/sh
# Asks a demo's API for everything its OpenAPI document allows, and for what it does not: schemathesis, newest release,
# in a Python of its own. Fails on a 500, on an answer the document does not know, and on every other check. What is
# given is passed on, as in `deploy/api-fuzz.sh --seed 7`. Needs cargo and python3 with venv.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
cargo build --locked --release --quiet
unstale=${CARGO_TARGET_DIR:-$root/target}/release/unstale
python3 -m venv --help >/dev/null 2>&1 || { echo "please install python3 with venv (python3-venv)" >&2; exit 1; }

directory=$(mktemp -d)
demo=""
finish() {
  if [ -n "$demo" ]; then
    kill -s TERM "$demo" 2>/dev/null || true
    wait "$demo" 2>/dev/null || true
  fi
  rm -rf "$directory"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

python3 -m venv "$directory/python"
"$directory/python/bin/pip" install --quiet --disable-pip-version-check schemathesis

"$unstale" demo --for 30m >"$directory/demo.out" 2>"$directory/demo.log" &
demo=$!
url=""
waited=0
while [ -z "$url" ]; do
  url=$(sed -n 's|.*\(http://127\.0\.0\.1:[0-9][0-9]*\).*|\1|p' "$directory/demo.out" | head -n 1)
  if [ -z "$url" ]; then
    if [ "$waited" -ge 60 ] || ! kill -0 "$demo" 2>/dev/null; then
      echo "the demo does not serve:" >&2
      cat "$directory/demo.out" "$directory/demo.log" >&2
      exit 1
    fi
    sleep 1
    waited=$((waited + 1))
  fi
done

# A Consistency-Token that is well formed and ahead of the server is refused, and so is a NUL that no text can hold.
cat >"$directory/schemathesis.toml" <<'TOML'
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "304", "400", "401", "404", "429", "503"]
TOML

# /events never ends. The token is that of a session in the example's seed.
cd "$directory"
status=0
"$directory/python/bin/schemathesis" run "$url/openapi.json" \
  --checks all --max-examples 200 --exclude-path /events --request-timeout 20 --wait-for-schema 10 \
  --generation-database none --continue-on-failure --no-color -H "Authorization: Bearer token-1" "$@" || status=$?
if ! kill -0 "$demo" 2>/dev/null; then
  echo "the demo ended meanwhile:" >&2
  tail -n 20 "$directory/demo.out" "$directory/demo.log" >&2
  exit 1
fi
if grep -q token-1 "$directory/demo.log"; then
  echo "the log holds a session's token" >&2
  exit 1
fi
exit "$status"
