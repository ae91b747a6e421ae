#!/usr/bin/env bash
# Runs `python -m dwrl_jax.train ARGS` on every host of a Cloud TPU slice, again after each preemption.
#
#   launch/tpu_pod.sh --name=qwen7b --zone=us-east5-b --accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e --spot \
#       --delete --setup='mountpoint -q ~/bucket || (mkdir -p ~/bucket && gcsfuse --implicit-dirs MY_BUCKET ~/bucket)' \
#       -- --config=configs/qwen7b.py --workdir=../bucket/qwen7b
#
# It asks for a queued resource and waits for it, copies the project at the current commit, installs it, runs the command on
# all hosts at once, and keeps the output of each attempt in --logs. If the TPU was taken away, it asks for a new one and
# runs the same command, which goes on where the run was: the workdir must be one that outlives the TPU and that all hosts
# see, such as a mounted bucket. It ends with success, with bad input (exit code 2), and after --max-failures other failures
# in a row on a TPU that is still there. Ctrl-C and SIGTERM ask the hosts to save and stop; started again with the same
# flags, the script uses the TPU that it finds.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: launch/tpu_pod.sh FLAGS -- ARGS OF dwrl_jax.train
  --name=NAME              of the TPU VM and of its queued resource
  --zone=ZONE              e.g. us-east5-b
  --project=PROJECT        default: that of gcloud
  --accelerator-type=TYPE  e.g. v6e-16, as in `gcloud compute tpus accelerator-types list`
  --runtime-version=IMAGE  e.g. v2-alpha-tpuv6e, as in `gcloud compute tpus tpu-vm versions list`
  --spot                   cheaper, may be taken away; default: on demand
  --existing               use the TPU VM --name as it is; nothing is created or deleted, no type and version needed
  --repo=URL               clone this repository at the current commit, instead of copying the files
  --setup=COMMAND          run on each host before each attempt, in the home folder, e.g. to mount a bucket
  --logs=DIR               one file per attempt; default: runs/tpu_pod/NAME
  --poll=SECONDS           between two looks at the TPU's state; default: 60
  --max-failures=N         default: 3
  --delete                 delete the queued resource after success, with all that is on the disks of its hosts
Relative paths in ARGS begin at the project's folder on the hosts, ~/dwrl_jax.
USAGE
}

fail() {
    echo "error: $1" >&2
    exit 2
}

say() {
    echo "tpu_pod.sh: $*" >&2
}

name="" zone="" project="" type="" version="" spot="" existing="" repo="" setup="" logs="" poll=60 max_failures=3 delete=""
while (($#)); do
    case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --accelerator-type=*) type=${1#*=} ;;
    --runtime-version=*) version=${1#*=} ;;
    --spot) spot=yes ;;
    --existing) existing=yes ;;
    --repo=*) repo=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --logs=*) logs=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --max-failures=*) max_failures=${1#*=} ;;
    --delete) delete=yes ;;
    -h | --help)
        usage
        exit 0
        ;;
    --)
        shift
        break
        ;;
    *) fail "$1: unknown flag; see --help (train's own arguments come after --)" ;;
    esac
    shift
done
[[ $name ]] || fail "--name is missing; see --help"
[[ $zone ]] || fail "--zone is missing; see --help"
[[ $existing || $type ]] || fail "--accelerator-type is missing (or --existing); see --help"
[[ $existing || $version ]] || fail "--runtime-version is missing (or --existing); see --help"
[[ ! $existing || ! $spot$delete ]] || fail "--existing creates and deletes nothing: it goes without --spot and --delete"
[[ $poll =~ ^[0-9]+$ ]] || fail "--poll=$poll: a whole number of seconds is needed"
[[ $max_failures =~ ^[1-9][0-9]*$ ]] || fail "--max-failures=$max_failures: a whole number above 0 is needed"
(($#)) || fail "the arguments of dwrl_jax.train are missing: -- --config=... --workdir=..."
command -v gcloud >/dev/null || fail "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
commit=$(git -C "$root" rev-parse HEAD) || fail "$root is not a git checkout"
logs=${logs:-runs/tpu_pod/$name}
mkdir -p "$logs"
[[ -z $(git -C "$root" status --porcelain --untracked-files=no) ]] || say "warning: changes that are not committed stay here"

where=("--zone=$zone" ${project:+"--project=$project"})
alive=(--ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=4) # a host that is gone ends the connection
child="" asked=""

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all "${alive[@]}" --command="$1" </dev/null
}

stop() {
    if [[ $asked ]]; then # the second time, without waiting for the hosts
        [[ ! $child ]] || kill "$child" 2>/dev/null || true
        exit "$1"
    fi
    asked=$1
    if [[ $child ]]; then
        say "asking the hosts to save and stop"
        # shellcheck disable=SC2016 # expanded on the hosts; the lock is free where no run is under way
        on_all_hosts 'cd dwrl_jax && { flock -n run.lock true || kill -TERM "$(cat run.pid)"; }' || true
    fi
}
trap 'stop 143' TERM
trap 'stop 130' INT

pause() { # in the background: else a signal would have to wait for its end
    sleep "$poll" &
    wait $! || true
}

queued_state() { # ACTIVE, WAITING_FOR_RESOURCES ..., or nothing where there is none
    gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)' 2>/dev/null || true
}

node_state() { # READY, PREEMPTED ..., or nothing where there is none
    gcloud compute tpus tpu-vm describe "$name" "${where[@]}" '--format=value(state)' 2>/dev/null || true
}

delete_queued() {
    gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

create_queued() {
    gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
        --accelerator-type="$type" --runtime-version="$version" ${spot:+--spot}
}

# Returns with a TPU that is READY.
acquire() {
    local state node last=""
    while true; do
        [[ ! $asked ]] || leave "$asked"
        node=$(node_state)
        [[ $node != READY ]] || return 0
        [[ ! $existing ]] || leave 1 "the TPU VM $name is not READY but ${node:-not there}"
        state=$(queued_state)
        if [[ $state == FAILED || $state == SUSPENDED || $node == PREEMPTED || $node == TERMINATED ]]; then
            say "the queued resource is ${state:-gone}, its TPU ${node:-gone}: asking for a new one"
            delete_queued || leave 1 "could not delete the queued resource $name"
            state=""
        fi
        if [[ ! $state ]]; then
            # a state may also be empty because gcloud could not ask for it
            create_queued || [[ $(queued_state) ]] || leave 1 "could not create the queued resource $name"
        elif [[ $state != "$last" ]]; then
            say "the queued resource is $state"
        fi
        last=$state
        pause
    done
}

# Runs "$@" with its output on the terminal and in the attempt's log; its exit code, also when a signal came in between.
logged() {
    local code=0
    (
        set +e
        "$@" 2>&1 | tee -ia "$log"
        exit "${PIPESTATUS[0]}"
    ) &
    child=$!
    while true; do
        code=0
        wait "$child" || code=$?
        kill -0 "$child" 2>/dev/null || break
    done
    child=""
    return "$code"
}

copy() {
    local archive
    archive=$(mktemp "${TMPDIR:-/tmp}/dwrl_jax.XXXXXX")
    git -C "$root" archive --format=tar.gz --output="$archive" "$commit"
    local code=0
    gcloud compute tpus tpu-vm scp "$archive" "$name:dwrl_jax.tar.gz" "${where[@]}" --worker=all || code=$?
    rm -f "$archive"
    return "$code"
}

# The commands of the hosts. Python 3.11 or newer is needed, which older images lack.
new_python="python3 -m pip install -q --user uv && python3 -m uv venv -q --seed --allow-existing --python=3.12 .venv"
installation="cd ~/dwrl_jax && if [ ! -e .installed-$commit ]; then
if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then python3 -m venv .venv; else $new_python; fi &&
.venv/bin/pip install -q -e '.[tpu]' && touch .installed-$commit; fi"
if [[ $repo ]]; then
    source="{ [ -e dwrl_jax ] || git clone -q $(printf %q "$repo") dwrl_jax; } &&"
    source+=" git -C dwrl_jax fetch -q && git -C dwrl_jax checkout -q $commit"
else
    source="mkdir -p dwrl_jax && tar -xzf dwrl_jax.tar.gz -C dwrl_jax"
fi
install="${setup:+($setup) && }$source && $installation"
# gcloud repeats a command whose connection broke: the lock lets the second wait until the first has ended.
run="cd ~/dwrl_jax && exec 9>run.lock && flock 9 && echo \$\$ >run.pid && . launch/tpu_flags.env &&"
run+=" exec env DWRL_JAX_DISTRIBUTED=auto .venv/bin/python -m dwrl_jax.train$(printf ' %q' "$@")"

leave() { # with an exit code and a message
    [[ ! ${2:-} ]] || say "$2"
    if [[ ! $existing && $(queued_state) ]]; then
        say "the queued resource $name is still there; to delete it:" \
            "gcloud compute tpus queued-resources delete $name ${where[*]} --force --quiet"
    fi
    exit "$1"
}

failures=0
for ((attempt = 1; ; attempt++)); do
    acquire
    log=$logs/attempt-$attempt.log
    while [[ -e $log ]]; do # of an earlier start
        attempt=$((attempt + 1))
        log=$logs/attempt-$attempt.log
    done
    say "attempt $attempt: $log"
    code=0 step="the installation"
    { [[ $repo ]] || logged copy; } && logged on_all_hosts "$install" || code=$?
    if ((code == 0)) && [[ ! $asked ]]; then
        step="the run"
        logged on_all_hosts "$run" || code=$?
        # gcloud ends with the code of the first host that failed, which may have failed because of another's bad input
        if ((code != 0)) && grep -q 'failed with exit status 2\.' "$log"; then code=2; fi
    fi
    if ((code == 0)) && [[ ! $asked || $step == "the run" ]]; then
        say "the run ended well"
        if [[ $delete ]]; then
            delete_queued || leave 1 "could not delete the queued resource $name"
            exit 0
        fi
        leave 0
    fi
    [[ ! $asked ]] || leave "$asked" "stopped; the same command goes on where the run was"
    [[ $step != "the run" || $code != 2 ]] || leave 2 "bad input: $log"
    pause # the state of a TPU that is being taken away lags behind
    if [[ $(node_state) == READY ]]; then
        failures=$((failures + 1))
        ((failures < max_failures)) || leave "$code" "$step failed with exit code $code, $failures times in a row: $log"
        say "$step failed with exit code $code on a TPU that is still there: trying again"
    else
        failures=0
        say "the TPU was taken away"
    fi
done
