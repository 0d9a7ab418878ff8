"""From the command to the end of the first step on two processes: `sft-launch run` beside torchrun and `accelerate launch`, in turns.

    python benchmarks/launchers.py [ROUNDS]

Prints a Markdown table of wall seconds: until the first row is in metrics.jsonl, and until the process has ended, with the versions.
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

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPT = str(REPOSITORY / "sft_dist" / "train.py")
QUICKSTART = str(REPOSITORY / "configs" / "quickstart.yaml")
ROUNDS = 7


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
        shorter = ["train.duration=3 steps", "schedule.warmup=1 steps"]
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


def named_in_order() -> list[str]:
    return list(commands(0))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    main()
