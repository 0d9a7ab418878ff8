"""How the hosts of `sft-launch ssh` are reached, and what everybody can see of it."""

import re
import shlex
import shutil
from dataclasses import dataclass

from launch.software import REPOSITORY
from sft_dist.errors import ConfigError, MachineError

SCRIPT = str(REPOSITORY / "launch" / "remote.py")
HOST = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.+-]*@)?[A-Za-z0-9_:\[][A-Za-z0-9_.:%\[\]-]*")
LOOPBACK = re.compile(r"localhost|ip6-localhost|127\..*|\[?::1\]?")


@dataclass(frozen=True)
class Way:
    """How the hosts are reached: `ssh` with its own arguments, as the user writes it; hosts, in the order of the nodes."""

    ssh: tuple[str, ...]
    hosts: tuple[str, ...]

    @classmethod
    def of(cls, ssh: str, hosts: str) -> "Way":
        """Raises ConfigError for names that ssh or a shell could take for something else, and for a host that is named twice."""
        try:
            words = tuple(shlex.split(ssh))
        except ValueError as error:
            raise ConfigError(f"--ssh {ssh!r} is no command line: {error}") from error
        names = hosts.split(",")
        problems = [] if words else ["--ssh is empty; leave it out for plain ssh"]
        problems += [
            f"-H: {name!r} is no name of a host; write names with commas between them, host1,host2"
            for name in names
            if not HOST.fullmatch(name)
        ]
        machines = [address(name) for name in names]
        problems += [
            f"-H: {name} stands there twice; one agent a host starts all its processes (--procs)"
            for name in sorted(set(machines))
            if machines.count(name) > 1
        ]
        if problems:
            raise ConfigError(problems)
        return cls(words, tuple(names))

    def check(self) -> None:
        """Raises MachineError where there is no such program here."""
        if shutil.which(self.ssh[0]) is None:
            raise MachineError(
                f"--ssh {self.ssh[0]}: there is no such program here; install it (OpenSSH's client is ssh), or name another one"
            )

    def head(self) -> str:
        """The first host's name, by which the others find it. Raises ConfigError where it means every host itself."""
        name = address(self.hosts[0])
        if len(self.hosts) > 1 and LOOPBACK.fullmatch(name):
            raise ConfigError(
                f"-H: to the other hosts {name} is themselves; name the first host as they know it, or give its address with --head"
            )
        return name

    def argv(self, node: int, python: str) -> list[str]:
        """What runs here. All of it can be seen by everybody on both machines, and none of it depends on the run."""
        return [*self.ssh, "-o", "BatchMode=yes", "-T", self.hosts[node], f"exec {shlex.join([python, '-P', SCRIPT])}"]


def address(host: str) -> str:
    """The host without the user."""
    return host.rpartition("@")[2]
