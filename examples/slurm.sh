#!/bin/bash
# One run on several machines under Slurm. It goes on after the time limit, a preemption and a failed machine.
#
#     sbatch examples/slurm.sh my.yaml runs/my
#
# Five minutes before the limit, or when Slurm wants the machines (SIGTERM), the job puts itself into the queue again. Every
# start goes on from the last checkpoint. RUN, the data and the model lie on storage that all machines share.
#
#SBATCH --job-name=ilora
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=ilora-%j.log

set -u
config=$1 run=$2
ilora=(run "$config" --out "$run")
if [[ -f $run/config.yaml ]]; then ilora=(resume "$run"); fi

launch=(torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}")
if (( SLURM_JOB_NUM_NODES > 1 )); then
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    launch+=(--rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:$((20000 + SLURM_JOB_ID % 10000))")
else
    launch+=(--standalone)
fi

# The checkpoints and the answers that are there, those of contrast runs too.
reached() { find "$run" \( -path '*/checkpoints/[0-9]*' -o -path '*/predictions/*.jsonl' \) 2>/dev/null | sort; }

again() {
    echo "slurm.sh: $1; job $SLURM_JOB_ID goes back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
}

stopped() {
    trap '' USR1 TERM
    kill -TERM "$work" 2>/dev/null
    wait "$work"
    # A job that somebody has cancelled is no longer RUNNING, and stays away.
    if [[ $(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T) == RUNNING ]]; then again "stopped from outside"; fi
    exit 0
}

before=$(reached)
srun --kill-on-bad-exit=1 "${launch[@]}" -m ilora "${ilora[@]}" &
work=$!
trap stopped USR1 TERM
wait "$work"
code=$?

# 1 and above 2: a process was lost, perhaps with its machine. 2: bad input, which another start would meet again.
# A start that got no further than the one before is not repeated either.
if (( code != 0 && code != 2 )) && [[ $(reached) != "$before" ]]; then again "exit code $code"; fi
exit "$code"
