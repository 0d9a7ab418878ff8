"""The launcher's end of a line to a host: ssh with its input kept open, and its output passed on in whole lines."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from launch.remote import READY

BEAT_S = 15.0
"""The host takes a line for cut that says nothing for eight times as long (launch.remote)."""
CLOSE_S = 5.0
"""A master that ssh leaves behind (ControlPersist) holds on to stderr: it is not waited for."""


class Line:
    """Lives as long as its ssh. What is to run goes over when the host's end has said that it is there, and not before."""

    def __init__(self, node: int, host: str, argv: Sequence[str], message: Mapping[str, Any]) -> None:
        self.node, self.host, self.ready, self.dropped, self.last = node, host, False, False, ""
        self.opening = threading.Lock()
        self.message = json.dumps(message).encode() + b"\n"  # no newline in it: JSON escapes them
        # a session of its own: the terminal's ctrl-C is for the launcher, which tells the hosts
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.input, self.beaten = self.process.stdin, time.monotonic()
        self.streams = ((self.process.stdout, sys.stdout.buffer, True), (self.process.stderr, sys.stderr.buffer, False))
        self.relays = [threading.Thread(target=self._relay, args=each, daemon=True) for each in self.streams]
        for relay in self.relays:
            relay.start()

    @property
    def code(self) -> int | None:
        """How ssh ended: as what it ran on the host, with 255 where it could not reach it, below 0 if it was killed."""
        return self.process.poll()

    @property
    def broken(self) -> bool:
        return self.code is not None and (self.code < 0 or self.code == 255)

    def tell(self, word: str) -> None:
        """A signal's name for the host; where nothing was started yet, nothing shall be."""
        with self.opening:
            self.dropped = self.dropped or (not self.ready and self.code is None)
        if self.ready:
            self._send(word.encode() + b"\n")
        elif self.code is None:
            self.process.terminate()

    def beat(self) -> None:
        """A sign of life, now and then."""
        if self.ready and time.monotonic() > self.beaten + BEAT_S:
            self.beaten = time.monotonic()
            self._send(b"\n")

    def close(self) -> None:
        """Wait until all that was said is passed on."""
        self.process.wait()
        for relay, (source, _, _) in zip(self.relays, self.streams, strict=True):
            relay.join(CLOSE_S)
            if not relay.is_alive():
                source.close()
        with suppress(OSError):
            self.input.close()

    def _send(self, text: bytes) -> None:
        with suppress(OSError):  # ssh has ended, which is noticed by its exit code
            self.input.write(text)
            self.input.flush()

    def _relay(self, source: IO[bytes], target: IO[bytes], opens: bool) -> None:
        for line in source:
            if opens and not self.ready and line.rstrip().endswith(READY.encode()):
                self._open()
                continue
            self.last = self.last if opens else line.decode(errors="replace").strip() or self.last
            with suppress(OSError, ValueError):  # nobody listens any more; the run goes on
                target.write(line if self.ready else f"{self.host}| ".encode() + line)
                target.flush()

    def _open(self) -> None:
        with self.opening:  # or a word of the other thread, in just this moment, would cut off what it lets begin
            if not self.dropped:
                self._send(self.message)
                self.ready = True
