"""What a shell script does on a signal: its traps, and the functions that they call."""

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from launch.shell import Command, Script, read

HEARD = {"USR1", "USR2", "TERM", "HUP", "INT", "CONT"}
NUMBERS = {"0": "EXIT", "1": "HUP", "2": "INT", "10": "USR1", "12": "USR2", "15": "TERM", "18": "CONT"}
TIDY = {"rm", "rmdir", "echo", "printf", "exit", "return", "true", ":", "date", "logger", "{", "}"}


@dataclass(frozen=True)
class Trap:
    """signals: without SIG. does: the commands of its action, and of the functions that are called there."""

    line: int
    signals: frozenset[str]
    does: tuple[Command, ...]

    @property
    def tidies(self) -> bool:
        """Whether it only takes away what the script has made: it runs at the end in any case, or removes files and no more."""
        return "EXIT" in self.signals or all(command.program in TIDY for command in self.does)


def traps(script: Script) -> list[Trap]:
    """Those that do something on a signal that Slurm sends, beyond tidying up."""
    found = [trap for command in script.running("trap") if (trap := _trap(script, command))]
    return [trap for trap in found if trap.signals & HEARD and not trap.tidies]


def handlers(script: Script) -> set[Command]:
    """The commands of the script that run on a signal only."""
    return {command for trap in traps(script) for command in trap.does}


def heard(script: Script, signal: str) -> bool:
    """Whether any trap, also one that ignores it, is for that signal, as far as its name can be read."""
    names = {word for command in script.running("trap") for word in command.text.split()[1:]}
    return any("$" in name or _plain(name) == _plain(signal) for name in names)


def _plain(signal: str) -> str:
    name = signal.strip("\"'").upper().removeprefix("SIG")
    return NUMBERS.get(name, name)


def _trap(script: Script, command: Command) -> Trap | None:
    try:
        words = shlex.split(command.text, comments=True)
        after = [word for word in words[words.index("trap") + 1 :] if word != "--"]
    except ValueError:
        return None
    action, *named = after or [""]
    if not action or action.startswith("-"):
        return None
    signals = frozenset(map(_plain, named))
    return Trap(command.line, signals, tuple(_run(script, read(action).commands, set())))


def _run(script: Script, commands: Iterable[Command], seen: set[str]) -> Iterator[Command]:
    """Commands, and in the place of a function's name what it does, once for each function."""
    for command in commands:
        if command.program in seen:
            continue
        if body := script.function(command.program):
            seen.add(command.program)
            yield from _run(script, body, seen)
        else:
            yield command
