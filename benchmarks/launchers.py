"""From the command to the end of the first step on two processes: `sft-launch run` beside torchrun and `accelerate launch`, in turns.

    python benchmarks/launchers.py [ROUNDS]

Prints Markdown tables: wall seconds until the first row is in metrics.jsonl, and until the process has ended; and how `sft-launch run`
compares round by round with the others, as ratios and differences of the first, with the 95 % interval of their median (order statistics).
"""

import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from scipy import stats

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPT = str(REPOSITORY / "sft_dist" / "train.py")
QUICKSTART = str(REPOSITORY / "configs" / "quickstart.yaml")
ROUNDS = 16


def commands(port: int) -> dict[str, list[str]]:
    """The same run by each launcher."""
    python = sys.executable
    elastic = ["--nproc-per-node", "2", "--master-port", str(port)]
    return {
        "sft-launch run": [python, "-m", "launch", "run", QUICKSTART, "--procs", "2"],
        "torchrun": [python, "-m", "torch.distributed.run", *elastic, SCRIPT, QUICKSTART],
        "accelerate launch": [
            *(python, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", str(port)),
            *(SCRIPT, QUICKSTART),
        ],
    }


def timed(command: list[str]) -> tuple[float, float]:
    """Wall seconds until the first step is logged, and until the end, of a run of three steps in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
        rows = Path(folder) / "runs" / "quickstart" / "metrics.jsonl"
        before = time.perf_counter()
        shorter = ["train.duration=3 steps", "schedule.warmup=1 steps", "report.write=none"]
        process = subprocess.Popen([*command, *shorter], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (rows.exists() and rows.stat().st_size):
            time.sleep(0.005)
        first = time.perf_counter() - before
        if process.wait():
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        return first, time.perf_counter() - before


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    seconds: dict[str, list[tuple[float, float]]] = {}
    for round_ in range(rounds):
        named = list(commands(_free_port()).items())
        for name, command in named[round_ % 3 :] + named[: round_ % 3]:  # nobody always comes first
            seconds.setdefault(name, []).append(timed(command))
            print(name, *(f"{value:.2f}" for value in seconds[name][-1]), file=sys.stderr, flush=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "accelerate"))
    print(f"Python {platform.python_version()}, {packages}, {rounds} rounds\n")
    print("| launcher | first step: min s | median s | max s | end: median s |\n|---|---|---|---|---|")
    for name in named_in_order():
        firsts, ends = ([pair[part] for pair in seconds[name]] for part in (0, 1))
        print(f"| {name} | {min(firsts):.2f} | {statistics.median(firsts):.2f} | {max(firsts):.2f} | {statistics.median(ends):.2f} |")

    ours, *others = named_in_order()
    print(f"\n| {ours} against | rounds that it won | ratio of the first step: median, 95 % | difference, s |\n|---|---|---|---|")
    for name in others:
        pairs = [(own[0], other[0]) for own, other in zip(seconds[ours], seconds[name], strict=True)]
        ratios, differences = [own / other for own, other in pairs], [own - other for own, other in pairs]
        print(f"| {name} | {sum(r < 1 for r in ratios)} of {rounds} | {in_the_middle(ratios)} | {in_the_middle(differences)} |")


def in_the_middle(values: list[float]) -> str:
    """The median and an interval that covers the true one with at least 95 % probability, whatever the distribution."""
    ordered, n = sorted(values), len(values)
    out = max(0, int(stats.binom.ppf(0.025, n, 0.5)) - 1)
    return f"{statistics.median(ordered):.3f} ({ordered[out]:.3f} to {ordered[n - 1 - out]:.3f})"


def named_in_order() -> list[str]:
    return list(commands(0))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    main()
