#!/usr/bin/env bash
# Runs `python -m dwrl_jax.train ARGS` as N processes with M CPU devices each, all on this machine.
#
#   launch/local.sh --processes=2 --devices=2 -- --config=configs/tiny.py --workdir=runs/tiny
#
# It tries a multi-host run without hosts. Process 0 writes to the terminal, the others to a folder; the script names the
# folder when something fails. SIGTERM and Ctrl-C reach every process. When a process fails, the others have --grace
# seconds to end by themselves. Then they are asked to stop, and after --grace more seconds they are killed. The exit code
# is that of the first failure. PYTHON names the interpreter.
set -euo pipefail

usage="usage: launch/local.sh --processes=N --devices=M [--grace=SECONDS] -- ARGS OF dwrl_jax.train"

fail() {
    echo "error: $1" >&2
    exit 2
}

positive() {
    [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1=$2: a whole number above 0 is needed"
}

processes="" devices="" grace=30
while (($#)); do
    case $1 in
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    -h | --help)
        echo "$usage"
        exit 0
        ;;
    --)
        shift
        break
        ;;
    *) fail "$1: unknown; $usage" ;;
    esac
    shift
done
[[ $processes ]] || fail "--processes is missing; $usage"
[[ $devices ]] || fail "--devices is missing; $usage"
positive --processes "$processes"
positive --devices "$devices"
positive --grace "$grace"
python=${PYTHON:-python}
command -v "$python" >/dev/null || fail "$python: no such interpreter; name one with PYTHON=..."

free_port() { # below the range from which the system takes the ports of outgoing connections
    local port
    while true; do
        port=$((20000 + RANDOM % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

export JAX_PLATFORMS=cpu
export JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo
export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
JAX_COORDINATOR_ADDRESS=localhost:$(free_port)
export JAX_COORDINATOR_ADDRESS
export JAX_NUM_PROCESSES=$processes
logs=$(mktemp -d "${TMPDIR:-/tmp}/dwrl_jax.XXXXXX")

pids=() ended=() asked=""

signal_all() { # to the processes that still run
    local i
    for ((i = 0; i < ${#pids[@]}; i++)); do
        [[ ${ended[i]} ]] || kill "-$1" "${pids[i]}" 2>/dev/null || true
    done
}

kill_all() { # with whatever they have started
    local i
    for ((i = 0; i < ${#pids[@]}; i++)); do
        kill -KILL -- "-${pids[i]}" 2>/dev/null || true
    done
}

trap 'asked=143; signal_all TERM' TERM
trap 'asked=130; signal_all INT' INT
trap 'kill_all' EXIT

set -m # a process group for each process: else bash would let them ignore Ctrl-C
for ((i = 0; i < processes; i++)); do
    ended+=("")
    export JAX_PROCESS_ID=$i
    if ((i == 0)); then
        "$python" -m dwrl_jax.train "$@" </dev/null &
    else
        "$python" -m dwrl_jax.train "$@" </dev/null >"$logs/process_$i.log" 2>&1 &
    fi
    pids+=("$!")
done
set +m
[[ ! $asked ]] || signal_all TERM # asked while they were being started

exec 3>&2 2>/dev/null # bash's own remarks about killed jobs
code=0 deadline="" stage=""
while true; do
    running=0
    for ((i = 0; i < processes; i++)); do
        [[ ${ended[i]} ]] && continue
        if kill -0 "${pids[i]}"; then
            running=$((running + 1))
            continue
        fi
        status=0
        wait "${pids[i]}" || status=$?
        ended[i]=yes
        if ((status != 0 && code == 0)); then
            code=$status
            deadline=$((SECONDS + grace))
            if [[ $status != "$asked" ]]; then
                where="; the others' output: $logs"
                ((i == 0)) || where="; its output: $logs/process_$i.log"
                ((processes > 1)) || where=""
                echo "local.sh: process $i of $processes ended with exit code $status$where" >&3
            fi
        fi
    done
    ((running)) || break
    if [[ $deadline ]] && ((SECONDS >= deadline)); then
        if [[ ! $stage ]]; then
            stage=asked
            deadline=$((SECONDS + grace))
            signal_all TERM
        else
            kill_all
        fi
    fi
    sleep 0.1 || true
done
[[ $code != 0 && $code != "$asked" ]] || rm -rf "$logs"
exit "$code"
