#!/bin/bash
# sbatch --array=0-2 slurm/array.sh FOLDER
#
# Fine-tunes once for each config in FOLDER: task k of the array makes the run of FOLDER/<k>.yaml as slurm/finetune.sh would, and
# queues again alone. Each run needs a run.name of its own. Each task, when it ends, writes the table of all: FOLDER/table.txt.
#SBATCH --job-name=sft-dist
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=sft-dist-%A_%a.log
set -u
unset WANDB_SWEEP_ID WANDB_RUN_ID # one name and one id for all tasks
task=${SLURM_ARRAY_TASK_ID:?is not set: start this with sbatch --array}
configs=${1:?names no folder with 0.yaml, 1.yaml, ...}
cd "${SLURM_SUBMIT_DIR:?is not set: start this with sbatch}" || exit 78
script=${SFT_CODE:-$PWD}/slurm/finetune.sh # what runs is Slurm's copy of this file, which lies somewhere else
[ -f "$script" ] || { echo "there is no $script: submit from the repository" >&2; exit 2; }

# A task that goes back into the queue does not come here: `exec` in finetune.sh ends the shell without its traps.
# shellcheck disable=SC2317 # called by the trap
table() { ! declare -F launch >/dev/null || launch slurm table --over "$task" "$configs" || true; }
trap table EXIT

# In this same shell, which Slurm signals.
# shellcheck source=slurm/finetune.sh
. "$script" "$configs/$task.yaml"
