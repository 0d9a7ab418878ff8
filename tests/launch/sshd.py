"""A private sshd on this machine's loopback address, with keys and configuration of its own, and a client's configuration with several hosts."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from ranks import free_port

LIMIT_S = 20
SERVER = """Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/key.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
MaxStartups 100
"""
CLIENT = """Host hosta hostb barred changed
  Port {port}
Host gone
  Port {closed}
Host barred
  User nobody-of-this-name
Host changed
  UserKnownHostsFile {folder}/nobody_known
Host *
  HostName 127.0.0.1
  User {user}
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known
  GlobalKnownHostsFile /dev/null
  ControlPath none
"""


@dataclass(frozen=True)
class Sshd:
    """process: it answers to. client: a configuration for `ssh -F` in which `hosta` and `hostb` are this machine, nobody answers for
    `gone`, `barred` is a user that it does not know, and `changed` has a host key that the client never saw."""

    process: subprocess.Popen[bytes]
    client: Path
    log: Path

    @property
    def ssh(self) -> str:
        return f"ssh -F {self.client}"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def missing() -> str | None:
    """Why there can be no sshd here, or None."""
    absent = [name for name in ("ssh", "ssh-keygen", "setpriv") if shutil.which(name) is None] + ([] if program() else ["sshd"])
    return f"{', '.join(absent)} not installed (openssh-server, openssh-client, util-linux)" if absent else None


def program() -> str | None:
    return shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


def begin(folder: Path) -> Sshd:
    """Start one that lets in who runs the tests, by a key that is made for it."""
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True, timeout=LIMIT_S)
    names = {"folder": folder, "port": free_port(), "closed": free_port(), "user": getpass.getuser()}
    (folder / "server").write_text(SERVER.format(**names))
    (folder / "client").write_text(CLIENT.format(**names))
    (folder / "known").write_text(f"[127.0.0.1]:{names['port']} {(folder / 'host.pub').read_text()}")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd insists on it
    log = folder / "log"
    # it ends together with these tests, whatever ends them; sshd wants to be called by its whole path
    command = ["setpriv", "--pdeathsig", "KILL", str(program()), "-D", "-e", "-f", str(folder / "server")]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    made = Sshd(process, folder / "client", log)
    end = time.monotonic() + LIMIT_S
    while not answers(int(names["port"])):
        if process.poll() is not None or time.monotonic() > end:
            made.close()
            pytest.fail(f"sshd does not answer: {log.read_text()}")
        time.sleep(0.05)
    return made


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
