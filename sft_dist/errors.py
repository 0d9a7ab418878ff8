"""Every error that a user can meet, with the exit code that it ends the process with."""

from collections.abc import Sequence

# error                     exit code   who can mend it
# SftError                       -
# +-- ConfigError                2      the user: config, arguments, data
# +-- MachineError              78      whoever owns the machine: devices, rights, disk, world
# +-- InfrastructureError       75      nobody in particular: a lost peer, a time-out; worth another attempt
# +-- DivergedError              1      the numbers: the loss is no longer finite


class SftError(Exception):
    """One problem or several, each told in a sentence of its own; shown on one screen, without a traceback.

    everywhere: every rank raises the same error, so that one of them can speak for all.
    """

    exit_code = 1

    def __init__(self, problems: str | Sequence[str], everywhere: bool = False) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        self.everywhere = everywhere
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["SftError"], tuple[tuple[str, ...], bool]]:
        return type(self), (self.problems, self.everywhere)  # errors travel between ranks


class ConfigError(SftError):
    """What the user wrote cannot be done: the config, an argument, or the data that they name."""

    exit_code = 2


class MachineError(SftError):
    """The machine gives less than was asked for: no CUDA, no right to write, no space, another world."""

    exit_code = 78


class InfrastructureError(SftError):
    """Something outside the run broke it: a lost peer, a time-out. The same run may well succeed when it is started again."""

    exit_code = 75


class DivergedError(SftError):
    """The loss is NaN or infinite: going on would only spoil the weights."""

    exit_code = 1
