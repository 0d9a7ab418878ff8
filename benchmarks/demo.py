"""The main job in minutes, offline: pretrain on one task, fine-tune on another with few images, compare with training from scratch.

    python benchmarks/demo.py        # or: make demo

The source task is the handwritten digits 0 to 4, the target task 5 to 9. Every run goes through the same doors as yours will. It ends with two pages:
the report of a fine-tuned run, and the comparison of fine-tuned with from scratch, which says whether the difference could be noise.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

REPOSITORY = Path(__file__).resolve().parent.parent
RUNS = Path("runs/demo")  # relative to the repository, as in the configs
SEEDS = range(5)
KINDS = {"transfer": "fine-tuned", "scratch": "from-scratch"}  # config demo-<kind>.yaml -> name of its runs, before the seed
SHOWN = RUNS / f"{KINDS['transfer']}-0"
PAGES = {
    RUNS / "compare.html": "which is better, in which digits and images, and could it be noise",
    SHOWN / "report.html": "one run: curves, mistakes, where it looks, what its layers learned",
}
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
        for kind, name in KINDS.items():
            console.rule(f"Digits 5 to 9 from five images each, {name}, seed {seed}, two processes")
            run = f"configs/demo-{kind}.yaml train.seed={seed} run.name={name}-{seed}"
            launch(console, TORCHRUN, f"--nproc-per-node 2 sft_dist/train.py {run}")

    console.rule("Look into a fine-tuned run")
    launch(console, SFT_DIST, f"report {SHOWN} --look")
    console.rule("Fine-tuned and from scratch: the same images, steps and batches")
    launch(console, SFT_DIST, f"compare {' '.join(f'{RUNS}/{name}-*' for name in KINDS.values())} --out {RUNS}")

    console.rule("What came of it")
    [pair] = json.loads((REPOSITORY / RUNS / "compare.json").read_text())["pairs"]
    console.print(f"{pair['sentence']}.\n\nOpen in a browser; each is one file, and needs no network:", markup=False)
    for page, about in PAGES.items():
        console.print(f"  {page!s:<34}  {about}")
    console.print(
        f"\nAll of it took {time.monotonic() - started:.0f} s. The runs are in {RUNS}: {size_gb():.1f} GB, most of it checkpoints."
    )


def launch(console: Console, program: tuple[str, Sequence[str]], words: str) -> None:
    """Show a command as a person would type it, and run it; where it fails, end with its exit code."""
    name, command = program
    console.print(f"$ {name} {words}", style="bold", markup=False)
    environment = {**THREADS_OF_RANKS, **os.environ} if program is TORCHRUN else None
    child = subprocess.Popen([*command, *expanded(words.split())], cwd=REPOSITORY, env=environment)
    try:
        code = child.wait()
    except KeyboardInterrupt:  # it was interrupted as well, and saves; the same demo goes on from there
        child.wait()
        sys.exit(130)
    if code:
        console.print(f"That command failed with exit code {code}; the demo stops here.", style="bold")
        sys.exit(code if code > 0 else 128 - code)


def expanded(words: Sequence[str]) -> Iterator[str]:
    """Words with the paths that a pattern stands for, as a shell would hand them over."""
    for word in words:
        yield from sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob(word)) if "*" in word else [word]


def size_gb() -> float:
    return sum(path.stat().st_size for path in (REPOSITORY / RUNS).rglob("*") if path.is_file()) / 1e9


if __name__ == "__main__":
    main()
