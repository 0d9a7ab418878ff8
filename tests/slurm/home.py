"""The small run that the tests of this tier make again and again, and where it lies."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ranks import largest_difference, rows

REPOSITORY = Path(__file__).resolve().parent.parent.parent
CONFIG = {
    "task": "classify",
    "data": {"name": "digits", "size": 32, "crop_scale": [0.5, 1.0], "flip": 0, "classes": ["3", "5", "8"], "per_class": 20, "workers": 0},
    "model": {"name": "mobilenet_v3_small", "train": "head", "norm": "frozen", "dropout": "none"},
    "batch": {"total": 24, "micro": 7},
    "optim": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0001},
    "schedule": {"name": "cosine", "warmup": "2 steps"},
    "train": {"duration": "60 steps", "clip": 1.0},
    "eval": {"every": "20 steps", "micro": 40},
    "save": {"every": "5 steps"},
    "precision": "fp64",
    "device": "cpu",
    "report": {"write": "none"},
}


@dataclass(frozen=True)
class Home:
    """The folder with the config, the weights to start from, the runs and the jobs' logs."""

    path: Path

    @property
    def config(self) -> str:
        return str(self.path / "config.yaml")

    def run(self, name: str) -> Path:
        return self.path / "runs" / name

    def outcome(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run(name) / "outcome.json").read_text())
        return found

    def attempts(self, name: str) -> int:
        return len([path for path in (self.run(name) / "attempts").iterdir() if path.name.isdigit()])

    def strays(self, name: str) -> float:
        """The largest difference of a run's curve from that of one process that nobody disturbed; every step once."""
        return largest_difference(rows(self.run("reference")), rows(self.run(name)))
