#!/usr/bin/env bash
# Serves a judge, runs a command that asks it, and stops the server when the command ends.
#
#   launch/judge_and_client.sh --model=runs/tiny --votes=4 -- python -m dwrl_jax.adapters rows.jsonl
#
# What stands before -- goes to `python -m dwrl_jax.serve`, behind --port=0, which takes a free port. The command runs as
# soon as the server is ready, and $DWRL_JAX_URL tells it the address. The server's log is shown if the server fails.
# SIGTERM and Ctrl-C stop both. The exit code is the command's, or the server's if that ends first. PYTHON names the
# interpreter.
set -euo pipefail

usage="usage: launch/judge_and_client.sh ARGS OF dwrl_jax.serve -- COMMAND"

fail() {
    echo "error: $1" >&2
    exit 2
}

serve=()
while (($#)); do
    case $1 in
    -h | --help)
        echo "$usage"
        exit 0
        ;;
    --)
        shift
        break
        ;;
    --?*) serve+=("$1") ;;
    *) fail "$1: unknown; $usage" ;;
    esac
    shift
done
[[ " ${serve[*]-} " == *" --model="* ]] || fail "--model is missing; $usage"
(($#)) || fail "the command is missing; $usage"
python=${PYTHON:-python}
command -v "$python" >/dev/null || fail "$python: no such interpreter; name one with PYTHON=..."

log=$(mktemp "${TMPDIR:-/tmp}/dwrl_jax_serve.XXXXXX")
server="" client="" asked=""

# shellcheck disable=SC2329 # the trap calls it
stop_all() {
    local pid
    for pid in $client $server; do
        kill -TERM "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    rm -f "$log"
}

failed() { # the server ended with exit code $1
    [[ ! $asked ]] || exit "$asked"
    echo "judge_and_client.sh: the server ended with exit code $1; its log:" >&2
    cat "$log" >&2
    exit "$(($1 ? $1 : 1))"
}

trap 'asked=143' TERM
trap 'asked=130' INT
trap 'stop_all' EXIT

"$python" -m dwrl_jax.serve --port=0 "${serve[@]}" </dev/null >"$log" 2>&1 &
server=$!
until address=$(grep -om1 '^ready at .*' "$log"); do
    [[ ! $asked ]] || exit "$asked"
    if ! kill -0 "$server" 2>/dev/null; then
        code=0
        wait "$server" || code=$?
        failed "$code"
    fi
    sleep 0.1 || true
done
export DWRL_JAX_URL=${address#ready at }

"$@" &
client=$!
while kill -0 "$client" 2>/dev/null; do
    [[ ! $asked ]] || exit "$asked"
    if ! kill -0 "$server" 2>/dev/null; then
        code=0
        wait "$server" || code=$?
        server=""
        failed "$code"
    fi
    sleep 0.1 || true
done
code=0
wait "$client" || code=$?
client=""
exit "$code"
