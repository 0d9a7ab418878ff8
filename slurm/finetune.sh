#!/bin/bash
# sbatch slurm/finetune.sh configs/x.yaml [key=value]...
#
# Fine-tunes on all nodes of the job, one torchrun a node; submit it from the repository. Ten minutes before the time limit
# all ranks save, and the job goes back into the queue and on from there. slurm/README.md: what to change for a cluster.
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

cd "${SLURM_SUBMIT_DIR:?is not set: start this with sbatch}" || exit 78
[ -f sft_dist/train.py ] || { echo "$PWD has no sft_dist/train.py: submit from the repository" >&2; exit 2; }
python=${SFT_PYTHON:-python}
[ -n "${SFT_PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python

# A job that was submitted from inside another one inherits what that one's launcher had set.
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE MASTER_ADDR MASTER_PORT
for name in "${!TORCHELASTIC_@}" "${!PET_@}"; do unset "$name"; done

nodes=$SLURM_JOB_NUM_NODES
procs=${SFT_PROCS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
cpus=${SLURM_CPUS_PER_TASK:-1}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$head" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p') # what Slurm itself calls the node
port=$((20000 + SLURM_JOB_ID % 12000))                                          # below the ephemeral range, and not everybody's 29500
export SFT_EXPECT_WORLD=$((nodes * procs))
export PYTHONUNBUFFERED=1 # `srun --unbuffered` would do it with a terminal, and fill the log with progress bars
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus > procs ? cpus / procs : 1))}
echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $nodes node(s) x $procs process(es), head $head ($address:$port)"

# What can be refused is refused here, once, with the exit code that says why: torchrun turns every failure into 1.
"$python" -m sft_dist plan --quick --world "$SFT_EXPECT_WORLD" "$@" >/dev/null || exit

# On each node: a shell that hands signals to the ranks alone. torchrun would die of USR1, and kill the ranks 30 seconds after
# TERM; here it ignores both, and ends when its ranks have saved and left. Where Slurm signals only the first process of a task
# (proctrack/cgroup) that is this shell; where it signals all of them (linuxproc) the ranks hear it twice, which does no harm.
# shellcheck disable=SC2016 # expanded on the node: here SLURM_PROCID is 0
on_node='
trap "" USR1 TERM
"$0" -m torch.distributed.run --node-rank "$SLURM_PROCID" --signals-to-handle SIGINT "$@" & agent=$!
for signal in USR1 TERM; do trap "pkill -$signal -P $agent" $signal; done
while kill -0 $agent 2>/dev/null; do wait $agent; done
wait $agent'
srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="$cpus" --gpu-bind=none --kill-on-bad-exit=1 \
    bash -c "$on_node" "$python" --nnodes "$nodes" --nproc-per-node "$procs" --master-addr "$address" --master-port "$port" \
    sft_dist/train.py "$@" &
step=$!

# Bash runs a trap only when `wait` returns: srun is in the background. Signals are repeated, as a rank that still starts hears none.
# shellcheck disable=SC2317 # called by the traps
forward() {
    echo "$(date +%T) $1: all ranks are asked to save and stop"
    while kill -0 "$step" 2>/dev/null; do
        scancel --signal="$1" "$SLURM_JOB_ID.0" 2>/dev/null
        for _ in {1..20}; do kill -0 "$step" 2>/dev/null && sleep 1; done # not one long sleep, which would outlive the job
    done &
}
requeue=no
trap 'requeue=yes; forward USR1' USR1
trap 'requeue=no; forward TERM' TERM
while kill -0 "$step" 2>/dev/null; do wait "$step"; done
wait "$step"
code=$?

# Before its time limit Slurm sends USR1; what was saved then goes on in a later job. TERM means that it shall end.
outcome='import sys, pathlib; from sft_dist import parse, rundir
run = rundir.RunDir.of(parse.load(pathlib.Path(sys.argv[1]), sys.argv[2:]))
print(rundir.read_json(run.outcome).get("outcome"))'
if [ "$requeue" = yes ] && [ "$("$python" -c "$outcome" "$@")" = saved ]; then
    echo "$(date +%T) saved; the job goes back into the queue"
    [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || SLURM_JOB_ID=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    exec scontrol requeue "$SLURM_JOB_ID" # Slurm ends this script
fi
exit "$code"
