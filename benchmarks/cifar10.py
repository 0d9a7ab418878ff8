"""Fine-tuning beside training from scratch on real photos: three configs by several seeds, as a markdown table.

    python benchmarks/cifar10.py --data data/cifar10 --weights weights/mobilenet_v2_imagenet.safetensors

Runs that are finished are read, not repeated: started again, it goes on where it was stopped.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = [REPOSITORY / "configs" / f"cifar10-mobilenet-{name}.yaml" for name in ("head", "all", "scratch")]


def main() -> None:
    asked = arguments()
    wall_s = {run: train(run, config, seed, asked) for config in asked.configs for seed in asked.seeds for run in [name(config, seed)]}
    heads = " | ".join(f"seed {seed}" for seed in asked.seeds)
    print(f"| config | {heads} | mean | deviation | seconds a run |")
    print("|---|" + "---|" * (len(asked.seeds) + 3))
    for config in asked.configs:
        runs = [name(config, seed) for seed in asked.seeds]
        print(row(config.stem, [top1(asked.runs / run) for run in runs], [wall_s[run] for run in runs]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, default=CONFIGS, help="default: the three configs of this benchmark")
    parser.add_argument("--data", required=True, help="data.root: a folder with train/ and val/")
    parser.add_argument("--weights", required=True, help="model.weights of the configs that do not say none")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="run.dir (default: runs)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2, help="how many torchrun starts (default: 2)")
    return parser.parse_args()


def name(config: Path, seed: int) -> str:
    return f"{config.stem}-seed{seed}"


def train(run: str, config: Path, seed: int, asked: argparse.Namespace) -> float:
    """Make one run unless it was made before; returns its wall time in seconds, from start to end of torchrun."""
    clock = asked.runs / f"{run}.seconds"
    if clock.exists():
        return float(clock.read_text())
    overrides = [f"data.root={asked.data}", f"train.seed={seed}", f"run.dir={asked.runs}", f"run.name={run}"]
    if yaml.safe_load(config.read_text())["model"]["weights"] != "none":
        overrides.append(f"model.weights={asked.weights}")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(asked.processes)]
    print(f"{run} ...", file=sys.stderr, flush=True)
    started = time.monotonic()
    command = [*torchrun, REPOSITORY / "sft_dist" / "train.py", config, *overrides]
    if subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}, stdout=sys.stderr).returncode:
        sys.exit(f"{run} failed: its own message stands above")
    seconds = time.monotonic() - started
    clock.write_text(f"{seconds:.1f}\n")
    return seconds


def top1(run: Path) -> float:
    """Top-1 after the last step: the best of several evaluations would flatter the runs that have more of them."""
    score: float = json.loads((run / "scores.json").read_text())["last"]["val/top1"]
    return score


def row(label: str, scores: list[float], seconds: list[float]) -> str:
    """A line of the table; the deviation is the sample's (n - 1), and absent for a single seed."""
    deviation = f"{statistics.stdev(scores):.4f}" if len(scores) > 1 else "-"
    each = " | ".join(f"{score:.3f}" for score in scores)
    return f"| {label} | {each} | {statistics.mean(scores):.4f} | {deviation} | {', '.join(f'{s:.0f}' for s in seconds)} |"


if __name__ == "__main__":
    main()
