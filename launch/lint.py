"""`sft-launch lint`: the mistakes of somebody's job script or launch line, with the line, why it is one, and what to write instead."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from launch import launchers, rules, shell
from launch.rules import Rule, seen
from launch.words import plain

PORT = r"\bMASTER_PORT=[\"']?29500\b|--(master|main[-_]process)[-_]port[=\s]+[\"']?29500\b|--rdzv[-_]endpoint[=\s]+\S+:29500\b"
STEP = "srun ... & step=$!; while kill -0 $step 2>/dev/null; do wait $step; done; wait $step"
RULES = (
    Rule(
        "accelerate-cpu",
        "accelerate launch --cpu --num_processes N starts one process, and says nothing",
        launchers.accelerate_cpu,
        "torchrun --nproc-per-node N, or ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes N",
    ),
    Rule(
        "accelerate-machine-rank",
        "without a machine rank all machines believe to be the first, or the launcher ends in a TypeError",
        launchers.accelerate_machine_rank,
        "--machine_rank $SLURM_NODEID, expanded inside the task: srun bash -c 'exec accelerate launch ... --machine_rank $SLURM_NODEID ...'",
    ),
    Rule(
        "accelerate-config",
        "accelerate launch reads a configuration in the user's cache folder for whatever it is not told, and does not say so",
        launchers.accelerate_config,
        "--config_file with a file that lies beside the script",
    ),
    Rule(
        "accelerate-orphan",
        "accelerate launch with one process does not hand a signal on: it ends, and what it has started lives on",
        launchers.accelerate_orphan,
        "the same command without it: python x.py",
    ),
    Rule(
        "rdzv-conf-backend",
        "--rdzv_conf rdzv_backend=... is not read there: the backend stays static",
        seen(r"--rdzv[-_]conf[=\s]+\S*rdzv[-_]backend="),
        "--rdzv-backend c10d",
    ),
    Rule(
        "c10d-node-rank",
        "with c10d --node-rank is ignored, and rank 0 may sit on any node",
        launchers.c10d_node_rank,
        "--node-rank with --master-addr and --master-port (static), or c10d without --node-rank",
    ),
    Rule(
        "own-rendezvous",
        "every node makes an id of its own, and two different rendezvous never meet",
        launchers.own_rendezvous,
        "--rdzv-id $SLURM_JOB_ID",
    ),
    Rule(
        "deepspeed-launcher",
        "the deepspeed launcher starts nodes by ssh behind Slurm's back, and exits 0 when its inner launcher is killed",
        launchers.deepspeed_launcher,
        "srun with one torchrun a node; DeepSpeed itself does not need its launcher",
    ),
    Rule(
        "pdsh",
        "the pdsh launcher writes the whole environment, secrets too, into a .deepspeed_env that everybody can read",
        seen(r"(^|\s)pdsh\s+-|launcher[=\s]+pdsh\b"),
        "srun with one torchrun a node",
    ),
    Rule(
        "port-29500",
        "29500 is everybody's default: two jobs on a node meet there",
        seen(PORT),
        "port=$((20000 + SLURM_JOB_ID % 12000)), which lies below the ephemeral range",
    ),
    Rule(
        "hostname-ip",
        "hostname --ip-address is what /etc/hosts says, often 127.0.0.1, which other nodes cannot reach",
        seen(r"\bhostname\s+(--ip-address|-i)\b"),
        'scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1, or the NodeAddr of scontrol show node',
    ),
    Rule(
        "sbatch-variable",
        "#SBATCH lines are never expanded: the value is taken letter by letter",
        rules.never_expanded,
        "a plain value, or sbatch --nodes=$N on the command line",
    ),
    Rule(
        "late-sbatch",
        "sbatch reads no #SBATCH line behind the first command",
        rules.late,
        "move it above the first command",
    ),
    Rule(
        "truncated-log",
        "a requeued job begins its log anew, and the reason why it was requeued is lost",
        rules.truncated_log,
        "#SBATCH --open-mode=append",
    ),
    Rule(
        "restart-count",
        "SLURM_RESTART_COUNT is not set when a job starts for the first time",
        rules.restart_count,
        "${SLURM_RESTART_COUNT:-0}",
    ),
    Rule(
        "after-requeue",
        "scontrol requeue kills the script that calls it: what stands behind may never run",
        rules.after_requeue,
        "do it before scontrol requeue",
    ),
    Rule(
        "signal-not-to-batch",
        "without B: the signal goes to the steps, and the trap of this script never hears it",
        rules.signal_to_steps,
        "#SBATCH --signal=B:USR1@600",
    ),
    Rule(
        "untrapped-signal",
        "nobody hears it: the batch shell dies of a signal for which it has no trap, and the job with it",
        rules.untrapped_signal,
        "trap HANDLER USR1, or without B: for the steps",
    ),
    Rule(
        "usr1-to-torchrun",
        "USR1 ends torchrun's agent and orphans its workers",
        launchers.usr1_to_torchrun,
        "--signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1, and expect exit code 1 even after a clean save",
    ),
    Rule(
        "deaf-trap",
        "bash runs a trap only when the command in the foreground has ended: after the job",
        rules.deaf_trap,
        STEP,
    ),
    Rule(
        "waits-once",
        "a trap ends `wait`: the script goes on, and Slurm kills the step with it",
        rules.waits_once,
        STEP,
    ),
    Rule(
        "shell-between",
        "where Slurm tracks processes by cgroup, a signal reaches the shell only, not what it has started",
        rules.shell_between,
        "srun bash -c 'exec torchrun ...'",
    ),
    Rule(
        "batch-shell-rank",
        "the batch shell expands it, where it is 0: every task gets the same",
        rules.batch_shell_rank,
        "in single quotes, for the task's own shell: srun bash -c 'exec torchrun --node-rank $SLURM_NODEID ...'",
    ),
    Rule(
        "srun-cpus",
        "srun of Slurm 22.05 to 23.02 does not inherit --cpus-per-task: the step gets one processor",
        rules.cpus_not_passed,
        "srun --cpus-per-task=$SLURM_CPUS_PER_TASK, or export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
    ),
    Rule(
        "gpus-per-task",
        "it hides a node's GPUs from each other: no peer access, and local ranks find one GPU only",
        rules.hidden_gpus,
        "--gpus-per-node=N --ntasks-per-node=1 --gpu-bind=none",
    ),
    Rule(
        "worlds-per-node",
        "each of the tasks starts a launcher with processes of its own, all for the same GPUs",
        launchers.worlds_per_node,
        "--ntasks-per-node=1: one launcher a node",
    ),
    Rule(
        "one-thread",
        "launchers set OMP_NUM_THREADS=1 where several processes start, and loading and CPU work crawl",
        launchers.one_thread,
        "export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / processes of a node))",
    ),
    Rule(
        "killed-while-saving",
        "torchrun exits 1 after a signal even if all ranks saved: the first node to finish then kills the others while they save",
        launchers.killed_while_saving,
        "srun --kill-on-bad-exit=0, or an agent that exits 0 after a clean save (python -m launch.node_agent)",
    ),
    Rule(
        "short-shutdown",
        "torchrun kills its workers 30 s after a signal, also while they save",
        launchers.short_shutdown,
        "export PET_SHUTDOWN_TIMEOUT=600",
    ),
    Rule(
        "gpu-bind",
        "it hides the GPUs of a node from the launcher's processes: no peer access, and local ranks find one GPU only",
        rules.bound_gpus,
        "--gpu-bind=none",
    ),
    Rule(
        "no-overlap",
        "a step of all the job's resources runs: this one waits until it has ended",
        rules.no_overlap,
        "srun --overlap",
    ),
    Rule(
        "leaked-ranks",
        "the new job inherits RANK, WORLD_SIZE, MASTER_ADDR of this one, and launchers believe them",
        rules.leaked_ranks,
        "sbatch --export=NONE, or unset them before",
    ),
    Rule(
        "sacct",
        "a cluster without accounting has no sacct, or one that knows nothing",
        rules.absent_sacct,
        'scontrol show job "$SLURM_JOB_ID"',
    ),
    Rule(
        "whole-array",
        "SLURM_JOB_ID is not the name of an array's task: another one may be requeued",
        rules.whole_array,
        "scontrol requeue ${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}",
    ),
)


@dataclass(frozen=True)
class Mistake:
    line: int
    name: str
    why: str
    fix: str


def lint(text: str) -> list[Mistake]:
    """The mistakes in a script, by line; nothing of it is run."""
    script = shell.read(text)
    found = {(line, rule.name): Mistake(line, rule.name, rule.fact, rule.fix) for rule in RULES for line in rule.find(script)}
    inner = [replace(each, line=document.line + each.line - 1) for document in script.submitted for each in lint(document.text)]
    return sorted([*found.values(), *inner], key=lambda mistake: (mistake.line, mistake.name))


def screen(name: str, mistakes: Sequence[Mistake]) -> list[str]:
    """A line for each, as compilers write them, and what to write instead below it."""
    lines = [line for each in mistakes for line in (f"{name}:{each.line}: {each.name}: {each.why}", f"    write: {each.fix}")]
    return [plain(line) for line in lines or [f"{name}: nothing found"]]
