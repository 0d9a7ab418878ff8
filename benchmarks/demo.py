"""The main job in three minutes, offline: pretrain on one task, fine-tune on another with few images, compare with training from scratch.

    python benchmarks/demo.py        # or: make demo

The source task is the handwritten digits 0 to 4, the target task 5 to 9. Every run goes through the same doors as yours will.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
RUNS = Path("runs/demo")  # relative to the repository, as in the configs
SEEDS = (0, 1, 2)
KINDS = {"transfer": "fine-tuned", "scratch": "from scratch"}  # config demo-<kind>.yaml -> heading
THREADS_OF_RANKS = {"OMP_NUM_THREADS": "1"}  # torchrun's own default; unset, it warns

SFT_DIST = ("sft-dist", [sys.executable, "-m", "sft_dist"])
TORCHRUN = ("torchrun", [sys.executable, "-m", "torch.distributed.run"])


def main() -> None:
    console = Console(highlight=False, soft_wrap=True)
    started = time.monotonic()
    if (REPOSITORY / RUNS).exists():
        console.print(f"{RUNS} is there from before: what is finished answers at once, what is not goes on. Delete it to start over.")

    console.rule("Pretrain on the digits 0 to 4, from scratch, with one process")
    launch(console, SFT_DIST, "train configs/demo-source.yaml")
    for seed in SEEDS:
        for kind, heading in KINDS.items():
            console.rule(f"Digits 5 to 9 from five images each, {heading}, seed {seed}, two processes")
            run = f"configs/demo-{kind}.yaml train.seed={seed} run.name={kind}-{seed}"
            launch(console, TORCHRUN, f"--nproc-per-node 2 sft_dist/train.py {run}")

    console.rule("Fine-tuned and from scratch: the same images, steps and batches")
    scores = {kind: [top1(f"{kind}-{seed}") for seed in SEEDS] for kind in KINDS}
    console.print(table(scores))
    better = sum(tuned > fresh for tuned, fresh in zip(scores["transfer"], scores["scratch"], strict=True))
    console.print(f"Fine-tuning was better with {better} of {len(SEEDS)} seeds. All of it took {time.monotonic() - started:.0f} s.")
    console.print(f"The runs are in {RUNS}/source, {RUNS}/transfer-<seed> and {RUNS}/scratch-<seed>: 0.9 GB with all checkpoints.")
    console.print(f"Score one again: sft-dist eval {RUNS}/transfer-0")


def launch(console: Console, program: tuple[str, Sequence[str]], words: str) -> None:
    """Show a command as a person would type it, and run it; where it fails, end with its exit code."""
    name, command = program
    console.print(f"$ {name} {words}", style="bold", markup=False)
    environment = {**THREADS_OF_RANKS, **os.environ} if program is TORCHRUN else None
    child = subprocess.Popen([*command, *words.split()], cwd=REPOSITORY, env=environment)
    try:
        code = child.wait()
    except KeyboardInterrupt:  # it was interrupted as well, and saves; the same demo goes on from there
        child.wait()
        sys.exit(130)
    if code:
        console.print(f"That command failed with exit code {code}; the demo stops here.", style="bold")
        sys.exit(code if code > 0 else 128 - code)


def top1(run: str) -> float:
    """The validation accuracy of a run at its end; not its best, which would be chosen by the same images."""
    return float(json.loads((REPOSITORY / RUNS / run / "scores.json").read_text())["last"]["val/top1"])


def table(scores: dict[str, list[float]]) -> Table:
    shown = Table("seed", *KINDS.values(), title="val/top1")
    for i, seed in enumerate(SEEDS):
        shown.add_row(str(seed), *(f"{scores[kind][i]:.3f}" for kind in KINDS))
    shown.add_section()
    shown.add_row("mean", *(f"{statistics.mean(scores[kind]):.3f}" for kind in KINDS))
    shown.add_row("sample deviation", *(f"{statistics.stdev(scores[kind]):.3f}" for kind in KINDS))
    return shown


if __name__ == "__main__":
    main()
