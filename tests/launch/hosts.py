"""Two hosts on this machine: network namespaces with an address and a name each, and a link between them that can be cut.

A host lives as long as a process that holds its namespaces; nothing of it is seen outside of them, and nothing is left after that process.
"""

import shutil
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

NEEDED = ("ip", "ss", "nsenter", "unshare", "setpriv", "mount")
ADDRESSES = {"alpha": "10.251.37.1", "beta": "10.251.37.2"}
HOLD = 'hostname "$1" && mount --bind "$2" /etc/hosts && ip link set lo up && touch "$3" && exec sleep infinity'


def obstacle() -> str | None:
    """Why there can be no hosts here, or None."""
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        return f"no {', '.join(missing)} here (Debian: apt-get install iproute2 util-linux mount)"
    tried = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True)
    return f"no namespaces for this user: {tried.stderr.strip()}" if tried.returncode else None


@dataclass
class Host:
    """One that is up. holder: the process that holds its namespaces."""

    name: str
    holder: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return ADDRESSES[self.name]

    def inside(self, folder: Path) -> list[str]:
        """What a command line begins with that runs on this host, in a folder."""
        return ["nsenter", f"--target={self.holder.pid}", "--net", "--uts", "--mount", "env", "-C", str(folder)]

    def link(self, state: str) -> None:
        """Pull the cable out (down), or put it in again (up)."""
        self._run("ip", "link", "set", "eth0", state)

    def join(self) -> None:
        """Take the address that belongs to the name."""
        self._run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.link("up")

    def listening(self) -> set[tuple[str, int]]:
        """Where anything on this host listens for TCP: address and port."""
        lines = self._run("ss", "-H", "-l", "-t", "-n").splitlines()
        ends = [line.split()[3].rpartition(":") for line in lines]
        return {(address, int(port)) for address, _, port in ends}

    def _run(self, *command: str) -> str:
        return _run("nsenter", f"--target={self.holder.pid}", "--net", *command)


@dataclass
class Hosts:
    """Up inside its `with`: alpha and beta, which resolve each other's names."""

    folder: Path
    stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> tuple[Host, Host]:
        self.folder.mkdir()
        lines = [f"{address} {name}" for name, address in {**ADDRESSES, "localhost": "127.0.0.1"}.items()]
        (self.folder / "hosts").write_text("\n".join([*lines, ""]))
        with ExitStack() as stack:
            alpha, beta = (self._hold(name, stack) for name in ADDRESSES)
            ends = [f"netns {host.holder.pid}".split() for host in (alpha, beta)]
            _run("ip", "link", "add", "name", "eth0", *ends[0], "type", "veth", "peer", "name", "eth0", *ends[1])
            for host in (alpha, beta):
                host.join()
            self.stack = stack.pop_all()
        return alpha, beta

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stack.close()

    def _hold(self, name: str, stack: ExitStack) -> Host:
        """A process with namespaces of its own, which the system ends together with this one."""
        ready = self.folder / f"{name}-is-up"
        script = ["sh", "-c", HOLD, "sh", name, str(self.folder / "hosts"), str(ready)]
        holder = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--uts", "--mount", *script])
        stack.callback(holder.wait)
        stack.callback(holder.kill)
        end = time.monotonic() + 20
        while not ready.exists():
            assert holder.poll() is None and time.monotonic() < end, f"host {name} did not come up"
            time.sleep(0.02)
        return Host(name, holder)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout
