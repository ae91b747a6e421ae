#!/usr/bin/env bash
# Runs `python -m dwrl_jax.train ARGS` on the GPUs of a Slurm cluster, one process per GPU.
#
#   sbatch launch/slurm_gpu.sh --config=configs/qwen7b.py --workdir=/shared/runs/qwen7b
#   sbatch --nodes=4 --gpus-per-node=4 --ntasks-per-node=4 launch/slurm_gpu.sh ARGS
#
# Submit where `python -m dwrl_jax.train` works (PYTHON names another interpreter), with a --workdir that all nodes see.
# ntasks-per-node must equal gpus-per-node, and no GPU may be bound to one task (no --gpus-per-task): JAX reads Slurm's
# variables, finds the coordinator and gives the processes of a node one of its visible GPUs each.
#
# Two minutes (up to three, says Slurm) before the time limit, SIGTERM goes to the python processes, not to this script.
# They save and end with 143, and this script queues the job again under its number. Slurm itself does so with a job that
# was preempted or lost a node. Each time the same command goes on where the run was, and the log is continued. Bad input
# (exit code 2), any other failure and `scancel` end the job. If saving takes longer than two minutes, write a larger
# --signal=TERM@SECONDS.
#SBATCH --job-name=dwrl_jax
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=dwrl_jax-%j.log
set -euo pipefail

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    echo "usage: sbatch [OPTIONS OF sbatch] launch/slurm_gpu.sh ARGS OF dwrl_jax.train"
    exit 0
fi
if (($# == 0)); then
    echo "error: the arguments of dwrl_jax.train are missing, e.g. --config=configs/qwen7b.py --workdir=runs/qwen7b" >&2
    exit 2
fi
if [[ ! ${SLURM_JOB_ID:-} ]]; then
    echo "error: not in a Slurm job; submit with: sbatch launch/slurm_gpu.sh ARGS" >&2
    exit 2
fi

cancelled=""
trap 'cancelled=yes' TERM # sent to this script by scancel and by a preemption, after which Slurm decides about the queue
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # since Slurm 22.05 srun does not take it from sbatch

# The first process to end does not end the others, which may still be saving; those that hang are killed after --wait.
code=0
srun --kill-on-bad-exit=0 --wait=600 "${PYTHON:-python}" -m dwrl_jax.train "$@" || code=$?

if [[ $code == 143 && ! $cancelled ]]; then
    echo "slurm_gpu.sh: stopped with its state saved; queueing job $SLURM_JOB_ID again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
