"""The mistakes in job scripts and launch lines that the linter knows, each seen to fail on a real cluster or launcher."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from launch.shell import Command, Script
from launch.traps import handlers, traps

Lines = Iterator[int]
TORCHRUN = re.compile(r"\btorchrun\b|\baccelerate\s+launch\b|torch\.distributed\.(run|launch)\b")
REQUEUE = re.compile(r"\bscontrol\s+requeue\b")
LAUNCHES = re.compile(
    rf"{TORCHRUN.pattern}|\bdeepspeed\b|\bpython[\d.]*\b|\.(py|sh)\b|\bbash\b|\$\{{?\w*(python|cmd|launch)", re.IGNORECASE
)
SAYS = {"echo", "printf", ":", "grep", "sed", "awk", "cat", "module", "which", "logger"}


@dataclass(frozen=True)
class Rule:
    """fact: why it is a mistake, in a sentence. find: the lines that make it. fix: what to write instead."""

    name: str
    fact: str
    find: Callable[[Script], Lines]
    fix: str


def done(script: Script) -> list[Command]:
    """The commands that do something; what only prints or searches text may name anything."""
    return [command for command in script.commands if command.program not in SAYS]


def seen(pattern: str) -> Callable[[Script], Lines]:
    """The lines with a command that has it."""
    wanted = re.compile(pattern)
    return lambda script: (command.line for command in done(script) if wanted.search(command.text))


def launchers(script: Script) -> list[Command]:
    return [command for command in done(script) if TORCHRUN.search(command.text)]


def steps(script: Script) -> list[Command]:
    """The sruns that start the work, not those that ask for a name or a version."""
    return [command for command in script.running("srun") if LAUNCHES.search(command.text.partition("srun")[2])]


def signals(script: Script) -> bool:
    return bool(traps(script)) or script.option("signal") is not None


def is_batch(script: Script) -> bool:
    return bool(script.options or script.running("srun"))


def number(script: Script, command: Command, name: str, short: str) -> int | None:
    """A count that srun is given, or else the job; None where none is given or it is not plain."""
    told = (
        re.search(rf"--{name}[=\s]+(\S+)|(?<!\S)-{short}[=\s]*(\S+)", command.own)
        if short
        else re.search(rf"--{name}[=\s]+(\S+)", command.own)
    )
    option = script.option(name)
    value = (told[1] or told[told.lastindex or 1]) if told else option.value if option else ""
    return int(value) if value.isdigit() else None


def accelerate_cpu(script: Script) -> Lines:
    for command in launchers(script):
        if re.search(r"accelerate\s+launch", command.text) and re.search(r"--cpu\b(?!-)", command.text):
            several = re.search(r"--num[-_]processes[=\s]+(\S+)", command.text)
            if several and several[1] != "1":
                yield command.line


def accelerate_machine_rank(script: Script) -> Lines:
    for command in launchers(script):
        several = re.search(r"--num[-_]machines[=\s]+(\S+)", command.text)
        if several and several[1] != "1" and not re.search(r"--machine[-_]rank", command.text):
            yield command.line


def accelerate_config(script: Script) -> Lines:
    return (c.line for c in launchers(script) if re.search(r"accelerate\s+launch", c.text) and not re.search(r"--config[-_]file", c.text))


def c10d_node_rank(script: Script) -> Lines:
    return (c.line for c in launchers(script) if re.search(r"\bc10d\b", c.text) and re.search(r"--node[-_]rank", c.text))


def own_rendezvous(script: Script) -> Lines:
    random = re.compile(r"--rdzv[-_]id[=\s]+[\"'\\]*(\$\{?RANDOM|\$\$|\$\((uuidgen|date)|`(uuidgen|date))")
    for command in launchers(script):
        once = command.program == "srun" and random.search(command.expanded)
        if random.search(command.text) and not once:
            yield command.line


def never_expanded(script: Script) -> Lines:
    return (option.line for option in script.options if re.search(r"\$\{?\w|\$\(|`", option.value))


def late(script: Script) -> Lines:
    return (option.line for option in script.options if option.late)


def truncated_log(script: Script) -> Lines:
    mode = script.option("open-mode")
    if mode is None or mode.value != "append":
        again = [option.line for option in script.options if option.name == "requeue"]
        yield from again[:1] or [command.line for command in done(script) if REQUEUE.search(command.text)][:1]


def signal_to_steps(script: Script) -> Lines:
    option = script.option("signal")
    if option and traps(script) and "B" not in option.value.rpartition(":")[0]:
        yield option.line


def usr1_to_torchrun(script: Script) -> Lines:
    option = script.option("signal")
    if option and "USR" in option.value and "B" not in option.value.rpartition(":")[0]:
        yield from (c.line for c in steps(script) if TORCHRUN.search(c.text) and not re.search(r"signals[-_]to[-_]handle", c.text))


def deaf_trap(script: Script) -> Lines:
    if traps(script):
        yield from (command.line for command in steps(script) if not command.background and command not in handlers(script))


def waits_once(script: Script) -> Lines:
    ends_well = any(command.program == "wait" or REQUEUE.search(command.text) for command in handlers(script))
    looped = re.search(r"(^|\n)\s*(while|until)\b[\s\S]*?\bwait\b", script.text)
    waits = [command for command in script.running("wait") if command not in handlers(script)]
    once = waits and [command.text for command in waits].count(waits[0].text) == 1
    if traps(script) and any(command.background for command in steps(script)) and once and not looped and not ends_well:
        yield waits[0].line


def shell_between(script: Script) -> Lines:
    inner = re.compile(r"\b(?:bash|sh)\s+-\w*c\b")
    for command in steps(script):
        rest = command.text[found.end() :] if (found := inner.search(command.text)) else ""
        run = LAUNCHES.search(rest)
        if run and not re.search(r"\bexec\b[^;&|]*$", rest[: run.start()]):
            yield command.line


def batch_shell_rank(script: Script) -> Lines:
    if is_batch(script):
        yield from (c.line for c in done(script) if re.search(r"\$\{?SLURM_(PROCID|NODEID|LOCALID)\b", c.expanded))


def cpus_not_passed(script: Script) -> Lines:
    if script.option("cpus-per-task") and "SRUN_CPUS_PER_TASK" not in script.text:
        yield from (c.line for c in steps(script) if not re.search(r"--cpus-per-task\b|(?<!\S)-c[\s=\d$\"]", c.own))


def hidden_gpus(script: Script) -> Lines:
    yield from (option.line for option in script.options if option.name == "gpus-per-task" and option.value.rpartition(":")[2] == "1")
    yield from (command.line for command in script.running("srun") if re.search(r"--gpus-per-task[=\s]+(\w+:)?1\b", command.own))


def worlds_per_node(script: Script) -> Lines:
    for command in steps(script):
        each = number(script, command, "ntasks-per-node", "")
        tasks, nodes = number(script, command, "ntasks", "n"), number(script, command, "nodes", "N")
        several = each > 1 if each is not None else bool(tasks and nodes and tasks > nodes)
        if several and TORCHRUN.search(command.text):
            yield command.line


def one_thread(script: Script) -> Lines:
    if "OMP_NUM_THREADS" not in script.text:
        alone = re.compile(r"--(nproc[-_]per[-_]node|num[-_]processes)[=\s]+1\b")
        yield from (command.line for command in launchers(script) if not alone.search(command.text))


def killed_while_saving(script: Script) -> Lines:
    if signals(script) or "signals-to-handle" in script.text:
        bad_exit = re.compile(r"--kill-on-bad-exit(?!=0)|(?<!\S)-K(?!0)")
        yield from (command.line for command in steps(script) if bad_exit.search(command.own) and TORCHRUN.search(command.text))


def short_shutdown(script: Script) -> Lines:
    if signals(script) and not re.search(r"PET_SHUTDOWN_TIMEOUT|--shutdown[-_]timeout", script.text):
        yield from (command.line for command in steps(script) if TORCHRUN.search(command.text))


def leaked_ranks(script: Script) -> Lines:
    exported = re.compile(r"\bexport\b.*\b(RANK|WORLD_SIZE|LOCAL_RANK|MASTER_ADDR|MASTER_PORT)=")
    lines = [command.line for command in script.commands if exported.search(command.text)]
    for command in script.running("sbatch"):
        if lines and lines[0] < command.line and "--export=N" not in command.text:
            yield command.line


def absent_sacct(script: Script) -> Lines:
    if not re.search(r"(command\s+-v|which|type|hash)\s+sacct\b", script.text):
        yield from (command.line for command in done(script) if re.search(r"(^|[\s\"'(`])sacct\s+-", command.text))


def whole_array(script: Script) -> Lines:
    if script.option("array") and "SLURM_ARRAY_JOB_ID" not in script.text:
        yield from (command.line for command in done(script) if REQUEUE.search(command.text))


def deepspeed_launcher(script: Script) -> Lines:
    return (c.line for c in script.running("deepspeed", "srun") if re.search(r"(^|\s)deepspeed\s+(-|\S+\.py)", c.text))
