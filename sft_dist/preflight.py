"""All that can be refused before a run pays for anything: from every room that knows something, in one error, without torch."""

from collections.abc import Callable, Mapping

from sft_dist import datasets, events, mirror, refuse, rundir
from sft_dist.config import Config
from sft_dist.errors import ConfigError, MachineError, SftError
from sft_dist.plan import World


def check(config: Config, world: World, env: Mapping[str, str]) -> None:
    """Raises ConfigError where the user wrote anything that cannot be done, MachineError if only the machine is at fault."""
    fresh = not rundir.begun(rundir.RunDir.of(config))
    checks: list[Callable[[], None]] = [
        lambda: refuse.check(config, world, env, fresh),
        lambda: datasets.check(config.data),
        lambda: rundir.check(config),
        lambda: mirror.check(config.track, env),
        lambda: events.check(config.track),
    ]
    found: list[SftError] = []
    for each in checks:
        try:
            each()
        except SftError as error:
            found.append(error)
        except OSError as error:  # what the system does not even let us look at, like a folder in somebody else's home
            found.append(MachineError(f"cannot look at {error.filename}: {error.strerror}"))
    if found:
        problems = [problem for error in found for problem in error.problems]
        raise ConfigError(problems) if any(isinstance(error, ConfigError) for error in found) else MachineError(problems)
