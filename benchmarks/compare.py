"""How soon do `sft-dist ls` and `sft-dist compare` answer over 1,000 runs: 250 recipes with four seeds each, written by this script.

    python benchmarks/compare.py [RUNS]

Prints the wall seconds of whole processes over several runs of each command (minimum, median, maximum) and the median of their processor
seconds, which other work on the machine does not stretch, with the versions. The folders are
shaped like those of configs/quickstart.yaml: 10 classes, 359 validation samples, 67 steps, predictions of the last evaluation.
"""

import json
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sft_dist import parse
from sft_dist.config import Config
from sft_dist.plan import World, make_plan

REPOSITORY = Path(__file__).resolve().parent.parent
SFT_DIST = [sys.executable, "-m", "sft_dist"]
SEEDS, STEPS, EVALUATIONS, SAMPLES, CLASSES = 4, 67, (22, 44, 67), 359, 10
REPEATS = 5


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    cases = [
        ("sft-dist ls runs", ["ls", "runs"]),
        ("sft-dist compare runs", ["compare", "runs"]),
        ("sft-dist compare runs --where 'optim.lr<1e-3' --top 20", ["compare", "runs", "--where", "optim.lr<1e-3", "--top", "20"]),
    ]
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "matplotlib", "rich", "PyYAML"))
    print(f"Python {platform.python_version()}, {packages}; {count} runs\n")
    print("| command | times | min s | median s | max s | processor s |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        config = parse.load(REPOSITORY / "configs" / "quickstart.yaml")
        for number in range(count):
            write(Path(folder) / "runs" / f"run-{number:04d}", config, number)
        for name, words in cases:
            walls, busy = zip(*(timed([*SFT_DIST, *words], Path(folder)) for _ in range(REPEATS)), strict=True)
            wall = f"{min(walls):.2f} | {statistics.median(walls):.2f} | {max(walls):.2f}"
            print(f"| `{name}` | {REPEATS} | {wall} | {statistics.median(busy):.2f} |", flush=True)


def write(run: Path, config: Config, number: int) -> None:
    """The folder of a finished run whose skill grows with the number of its recipe, plus what its seed adds."""
    recipe, seed = divmod(number, SEEDS)
    chance = random.Random(number)
    skill = 0.7 + 0.25 * recipe / 250 + chance.gauss(0, 0.01)
    train = config.train.model_copy(update={"seed": seed})
    config = config.model_copy(update={"train": train, "optim": config.optim.model_copy(update={"lr": 1e-5 * (recipe + 1)})})
    (run / "checkpoints" / f"step-{STEPS:08d}").mkdir(parents=True)
    (run / "predictions").mkdir()
    (run / "attempts" / "1").mkdir(parents=True)
    (run / "config.yaml").write_text(parse.to_yaml(config))
    (run / "plan.json").write_text(make_plan(config, World(), samples=1438, val_samples=SAMPLES).to_json())
    (run / "env.json").write_text(
        json.dumps({"commit": "0" * 40, "dirty": False, "packages": {"torch": "2.14.1"}, "device": "cpu", "data_fingerprint": "0" * 16})
    )
    (run / "outcome.json").write_text(json.dumps({"outcome": "done", "step": STEPS, "attempt": 1}))
    (run / "checkpoints" / "latest").write_text(f"step-{STEPS:08d}\n")
    (run / "checkpoints" / f"step-{STEPS:08d}" / "state.json").write_text(json.dumps({"step": STEPS, "fingerprint": "0" * 16}))
    predictions = [prediction(i, skill, chance) for i in range(SAMPLES)]
    lines(run / "predictions" / f"step-{STEPS:08d}.jsonl", predictions)
    right = sum(max(row["probs"]) == row["probs"][row["label"]] for row in predictions) / SAMPLES
    entry = {"step": STEPS, "val/loss": 1 - right, "val/top1": right, "val/f1_macro": right, "samples": SAMPLES}
    details = {"per_class": {str(i): {"f1": right, "support": 36} for i in range(CLASSES)}, "confusion": [[0] * CLASSES] * CLASSES}
    (run / "scores.json").write_text(json.dumps({"best": {**entry, **details}, "last": {**entry, **details}}))
    lines(run / "metrics.jsonl", [row for step in range(1, STEPS + 1) for row in rows(step, right)])


def prediction(sample: int, skill: float, chance: random.Random) -> dict[str, Any]:
    label = sample % CLASSES
    guess = label if chance.random() < skill else chance.randrange(CLASSES)
    return {"id": f"digits/{sample:04d}", "label": label, "loss": 0.1, "probs": [0.91 if i == guess else 0.01 for i in range(CLASSES)]}


def rows(step: int, right: float) -> list[dict[str, Any]]:
    place = {"step": step, "samples": 64 * step, "epoch": 64 * step / 1438}
    figures = {"train/loss": 1 / step, "train/top1": 0.5, "train/lr": 0.001, "train/grad_norm": 1.0, "speed/samples_per_s": 100.0}
    score = right * step / STEPS
    evaluation = [{**place, "kind": "eval", "val/loss": 1 - score, "val/top1": score}] if step in EVALUATIONS else []
    return [{**place, "kind": "train", **figures}, *evaluation]


def lines(path: Path, objects: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in objects))


def timed(command: list[str], folder: Path) -> tuple[float, float]:
    """Wall and processor seconds of a command. Raises where it fails."""
    before, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    wall, now = time.perf_counter() - before, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


if __name__ == "__main__":
    main()
