#!/bin/bash
# sbatch slurm/finetune.sh configs/x.yaml [key=value]...
#
# Fine-tunes on all nodes of the job, one agent a node; submit it from the repository. Ten minutes before the time limit all
# ranks save, and the job goes back into the queue and on from there. slurm/README.md: what to change for a cluster.
#SBATCH --job-name=sft-dist
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=sft-dist-%j.log
set -u
asked=none # a signal that comes before the ranks are started is kept for them
trap 'asked=USR1' USR1 USR2
trap 'asked=TERM' TERM
cd "${SLURM_SUBMIT_DIR:?is not set: start this with sbatch}" || exit 78
code=${SFT_CODE:-$PWD} # what `sft-launch slurm submit` has put aside, or the repository
[ -f "$code/sft_dist/train.py" ] || { echo "$code has no sft_dist/train.py: submit from the repository" >&2; exit 2; }
python=${SFT_PYTHON:-python}
[ -n "${SFT_PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=$PWD/.venv/bin/python

# A job that was submitted from inside another one inherits what that one's launcher had set.
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE MASTER_ADDR MASTER_PORT
for name in "${!TORCHELASTIC_@}" "${!PET_@}" ${SFT_ATTEMPT:+SFT_EXPECT_WORLD}; do unset "$name"; done
export PYTHONPATH=$code${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
launch() { "$python" -P -m launch "$@"; } # -P: this folder must not bring other code than $code

nodes=$SLURM_JOB_NUM_NODES
procs=${SFT_PROCS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
start=$((${SLURM_RESTART_COUNT:-0} + 1))
number=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID} # SLURM_JOB_ID of an array's last task is the whole array
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$head" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p') # what Slurm itself calls the node
port=$((20000 + SLURM_JOB_ID % 12000))                                          # below the ephemeral range, and not everybody's 29500
echo "job $number, start $start: $nodes node(s) x $procs process(es), head $head ($address:$port)"

# What can be refused is refused here, once, before anything is started.
attempt=$(launch begin --nodes "$nodes" --procs "$procs" --launcher "Slurm job $number, start $start" "$@") || exit
[ -n "$attempt" ] || exit 0 # the run was finished before
run=${attempt%/attempts/*}
srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --gpu-bind=none --kill-on-bad-exit=1 \
    "$python" -P -m launch.node_agent --nodes "$nodes" --procs "$procs" --head "$address" --port "$port" --attempt "$attempt" "$@" &
step=$!
unset SFT_CODE SFT_PYTHON SFT_PROCS_PER_NODE SFT_EXPECT_WORLD # they are of this job, not of one that is submitted from inside it

# Bash runs a trap only when `wait` returns: srun is in the background. Signals are repeated, as srun may not have started all agents yet.
# shellcheck disable=SC2317 # called by the traps
forward() {
    asked=$1
    echo "$(date +%T) $1: all ranks are asked to save and stop"
    while kill -0 "$step" 2>/dev/null; do
        scancel --signal="$1" "$number.0" 2>/dev/null
        for _ in {1..20}; do kill -0 "$step" 2>/dev/null && sleep 1; done # not one long sleep, which would outlive the job
    done &
}
trap 'forward USR1' USR1 USR2
trap 'forward TERM' TERM
[ "$asked" = none ] || forward "$asked"
while kill -0 "$step" 2>/dev/null; do wait "$step"; done
wait "$step"
ended=$?

# The agent of node 0 tells what went wrong; where it died itself, this does.
[ "$ended" = 0 ] || [ -e "$attempt/node-0/exit.json" ] || launch why --over "$run"
# TERM: somebody cancelled the job, unless a job of more weight took its place. Else the run's own records say whether it is worth it.
job=$(scontrol show job "$number")
began=$(sed -n 's/.* StartTime=\([0-9][^ ]*\).*/\1/p' <<<"$job")
preempted=$(sed -n 's/.*PreemptTime=\([0-9][^ ]*\).*/\1/p' <<<"$job")
room=$([[ -z "$preempted" || "$preempted" < "$began" ]] || echo --made-room)
[ "$asked" != TERM ] || [ -n "$room" ] || exit "$ended"
if again=$(launch again --over ${room:+"$room"} "$run") && [ "$start" -lt "${SFT_MAX_STARTS:-100}" ]; then
    echo "$(date +%T) $again; the job goes back into the queue"
    trap - USR1 USR2 TERM && scontrol requeue "$number" && exec sleep 60 # Slurm ends it, and the job with it
    again="it could not be queued again; submit the same command"
fi
echo "$(date +%T) $again; the job ends here"
exit "$ended"
