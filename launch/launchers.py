"""The mistakes with torchrun, accelerate launch and deepspeed that the linter knows, each seen to fail."""

import re

from launch.rules import TORCHRUN, Lines, done, signals, steps
from launch.shell import Command, Script
from launch.traps import handlers


def launchers(script: Script) -> list[Command]:
    return [command for command in done(script) if TORCHRUN.search(command.text)]


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


def accelerate_orphan(script: Script) -> Lines:
    alone = re.compile(r"accelerate\s+launch\b.*--num[-_]processes[=\s]+1(?!\d)", re.DOTALL)
    several = re.compile(r"--num[-_]machines[=\s]+(?!1\b)")
    if signals(script):
        yield from (c.line for c in launchers(script) if alone.search(c.text) and not several.search(c.text))


def c10d_node_rank(script: Script) -> Lines:
    return (c.line for c in launchers(script) if re.search(r"\bc10d\b", c.text) and re.search(r"--node[-_]rank", c.text))


def own_rendezvous(script: Script) -> Lines:
    random = re.compile(r"--rdzv[-_]id[=\s]+[\"'\\]*(\$\{?RANDOM|\$\$|\$\((uuidgen|date)|`(uuidgen|date))")
    for command in launchers(script):
        once = command.program == "srun" and random.search(command.expanded)
        if random.search(command.text) and not once:
            yield command.line


def deepspeed_launcher(script: Script) -> Lines:
    return (c.line for c in script.running("deepspeed", "srun") if re.search(r"(^|\s)deepspeed\s+(-|\S+\.py)", c.text))


def usr1_to_torchrun(script: Script) -> Lines:
    option = script.option("signal")
    sent = option is not None and "USR" in option.value and "B" not in option.value.rpartition(":")[0]
    forwards = re.compile(r"\b(kill|scancel)\b.*(-|--signal[=\s]|-s\s*)(SIG)?USR[12]\b")
    forwarded = any(forwards.search(command.text) for command in handlers(script))
    if sent or forwarded:
        started = launchers(script) if forwarded or steps(script) else []
        yield from (c.line for c in started if not re.search(r"signals[-_]to[-_]handle", c.text))


def worlds_per_node(script: Script) -> Lines:
    for command in steps(script):
        each = number(script, command, "ntasks-per-node", "")
        tasks, nodes = number(script, command, "ntasks", "n"), number(script, command, "nodes", "N")
        several = each > 1 if each is not None else bool(tasks and nodes and tasks > nodes)
        if several and TORCHRUN.search(command.text):
            yield command.line


def one_thread(script: Script) -> Lines:
    counted = re.compile(r"--(?:nproc[-_]per[-_]node|num[-_]processes)[=\s]+(\S+)")
    for command in launchers(script) if "OMP_NUM_THREADS" not in script.text else []:
        told = counted.search(command.text)
        if told[1] != "1" if told else "accelerate" in command.text:  # without a number torchrun starts one process, accelerate one a GPU
            yield command.line


def killed_while_saving(script: Script) -> Lines:
    if signals(script) or "signals-to-handle" in script.text:
        bad_exit = re.compile(r"--kill-on-bad-exit(?!=0)|(?<!\S)-K(?!0)")
        yield from (command.line for command in steps(script) if bad_exit.search(command.own) and TORCHRUN.search(command.text))


def short_shutdown(script: Script) -> Lines:
    if signals(script) and not re.search(r"PET_SHUTDOWN_TIMEOUT|--shutdown[-_]timeout", script.text):
        yield from (command.line for command in launchers(script))


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
