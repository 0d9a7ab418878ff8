"""The rows of a run as a growing file has them, one a step, for whoever shows them elsewhere."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sft_dist.errors import ConfigError


class Steps:
    """The rows of a metrics file as they come, one a step: those of training and of evaluation are laid together."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[bytes] | None = None
        self.part = b""
        self.open: dict[str, Any] = {}

    def new(self) -> Iterator[dict[str, Any]]:
        """The steps that are complete, as a later one has begun, since this was last asked."""
        if not self.file:
            if not self.path.exists():
                return
            self.file = self.path.open("rb")  # kept: a resume puts another file in its place, which begins anew
        *lines, self.part = (self.part + self.file.read()).split(b"\n")
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                raise ConfigError(f"{self.path} holds a line that is not JSON; it was changed by hand or the disk is damaged") from None
            if self.open and row["step"] != self.open["step"]:
                yield from self.rest()
            self.open |= {name: value for name, value in row.items() if name != "kind" and value is not None}

    def rest(self) -> Iterator[dict[str, Any]]:
        """The newest step, once nothing more can come to it."""
        if self.open:
            row, self.open = self.open, {}
            yield row

    def close(self) -> None:
        if self.file:
            self.file.close()
