"""The mistakes with Slurm and the shell in job scripts that the linter knows, each seen to fail on a real cluster."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from launch.shell import Command, Script
from launch.traps import handlers, heard, traps

Lines = Iterator[int]
TORCHRUN = re.compile(r"\btorchrun\b|\baccelerate\s+launch\b|torch\.distributed\.(run|launch)\b")
REQUEUE = re.compile(r"\bscontrol\s+requeue\b")
TRAINS = re.compile(r"\.py\b|\s-m\s")
HARMLESS = {
    "echo",
    "printf",
    "exit",
    "return",
    "sleep",
    "wait",
    "true",
    ":",
    "date",
    "logger",
    "trap",
    "kill",
    "break",
    "sbatch",
    "scancel",
}
BLOCK_ENDS = re.compile(r"(fi|done|esac|else|elif|exec|exit|return)\b|\}")
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


def steps(script: Script) -> list[Command]:
    """The sruns that start the work, not those that ask for a name or a version."""
    return [command for command in script.running("srun") if LAUNCHES.search(command.text.partition("srun")[2])]


def signals(script: Script) -> bool:
    return bool(traps(script)) or script.option("signal") is not None


def is_batch(script: Script) -> bool:
    return bool(script.options or script.running("srun"))


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


def work(script: Script) -> list[Command]:
    """The commands that train: steps, and in a script without any, what starts by itself; not what only runs on a signal."""
    alone = [
        c for c in done(script) if c.program in ("torchrun", "accelerate") or (c.program.startswith("python") and TRAINS.search(c.text))
    ]
    later = handlers(script)
    return [command for command in steps(script) or alone if command not in later]


def deaf_trap(script: Script) -> Lines:
    found = work(script)
    if traps(script) and (steps(script) or not any(command.background for command in found)):
        yield from (command.line for command in found if not command.background)


def waits_once(script: Script) -> Lines:
    later = handlers(script)
    ends_well = any(command.program in ("wait", "sbatch") or REQUEUE.search(command.text) for command in later)
    first_loop = next((index for index, c in enumerate(script.commands) if re.match(r"(while|until)\b", c.text)), len(script.commands))
    looped = any(re.search(r"\bwait\b", command.text) for command in script.commands[first_loop:])
    waits = [command for command in script.running("wait") if command not in later]
    once = waits and [command.text for command in waits].count(waits[0].text) == 1
    if traps(script) and any(command.background for command in work(script)) and once and not looped and not ends_well:
        yield waits[0].line


def untrapped_signal(script: Script) -> Lines:
    option = script.option("signal")
    flags, colon, signal = option.value.partition("@")[0].rpartition(":") if option else ("", "", "")
    replaced = any(re.match(r"exec\s+[^<>\d]", command.text) for command in script.commands)  # by a program that may hear it
    elsewhere = script.commands and script.commands[-1].program in (".", "source")  # what runs, and hears, stands in that file
    if option and colon and "B" in flags.upper() and not (replaced or elsewhere) and not heard(script, signal):
        yield option.line


def restart_count(script: Script) -> Lines:
    strict = re.search(r"(^|\n)\s*set\s+(-\w*u|-o\s+nounset)|(^|\n)set -[^\n]*\bnounset\b", script.text)
    bare = re.compile(r"\$(SLURM_RESTART_COUNT\b|\{SLURM_RESTART_COUNT\})")
    compared = re.compile(rf"(^|\s)(\[|test)\s+\"?{bare.pattern}\"?\s+-(eq|ne|gt|ge|lt|le)\b")
    for command in script.commands if strict else done(script):
        if (bare if strict else compared).search(command.text):
            yield command.line


def after_requeue(script: Script) -> Lines:
    requeued = False
    for command in script.commands:
        ends = BLOCK_ENDS.match(command.text) is not None
        if requeued and not ends and command.program not in HARMLESS and not re.match(r"\w+=", command.text):
            yield command.line
        requeued = (requeued and not ends) or (command.program == "scontrol" and REQUEUE.search(command.text) is not None)


def no_overlap(script: Script) -> Lines:
    apart = r"--(overlap|exact|exclusive|oversubscribe|nodelist|relative)\b|(?<!\S)-[swr]"
    shares = re.compile(rf"{apart}|--(nodes|ntasks)\b|(?<!\S)-[Nn]")
    whole = re.compile(rf"^(?!.*({apart}|--(nodes|ntasks)[=\s]+1\b|(?<!\S)-[Nn]\s*1\b))", re.DOTALL)
    running, later, training = False, handlers(script), set(steps(script))
    for command in script.commands:
        if command.program == "srun":
            if running and not command.background and not shares.search(command.own) and command not in later:
                yield command.line
            running = running or (command.background and command in training and whole.search(command.own) is not None)
        running = running and command.program != "wait"


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


def bound_gpus(script: Script) -> Lines:
    hides = re.compile(r"(verbose,)?(single|closest|map_gpu|mask_gpu|per_task)\b")
    if any(TORCHRUN.search(command.text) for command in done(script)):
        yield from (option.line for option in script.options if option.name == "gpu-bind" and hides.match(option.value))
        yield from (c.line for c in script.running("srun") if re.search(rf"--gpu-bind[=\s]+[\"']?{hides.pattern}", c.own))


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
