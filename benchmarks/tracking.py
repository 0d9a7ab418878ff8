"""What W&B costs a run on two ranks when its server accepts connections and never answers: pairs of runs, tracked and not, by turns.

Prints a Markdown table of the wall seconds from the first row of metrics.jsonl to the last, and from there to the end of the processes.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from socket import create_server, socket

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = REPOSITORY / "configs" / "quickstart.yaml"
KINDS = ("disabled", "online")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    told = parser.parse_args()
    seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder, create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=hold, args=(server,), daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        for pair in range(told.pairs):
            for kind in KINDS if pair % 2 else reversed(KINDS):
                seconds[kind].append(one_run(Path(folder), f"{kind}-{pair}", kind, told.steps, address))
                print(f"{kind}: {seconds[kind][-1][0]:.2f} s and {seconds[kind][-1][1]:.2f} s", file=sys.stderr, flush=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "accelerate", "wandb"))
    print(f"Python {platform.python_version()}, {packages}\n")
    print(
        "| track.wandb | runs | first to last step: min s | median s | max s | last step to exit: median s | max s |\n|---|---|---|---|---|---|---|"
    )
    for kind in KINDS:
        steps, ends = zip(*seconds[kind], strict=True)
        figures = (min(steps), statistics.median(steps), max(steps), statistics.median(ends), max(ends))
        print(f"| {kind} | {len(steps)} | {' | '.join(f'{figure:.2f}' for figure in figures)} |")
    ratios = [tracked[0] / plain[0] for plain, tracked in zip(*(seconds[kind] for kind in KINDS), strict=True)]
    print(f"\nonline / disabled, pair by pair: {', '.join(f'{ratio:.3f}' for ratio in ratios)}; median {statistics.median(ratios):.3f}")


def hold(server: socket) -> None:
    """Accept, and never answer."""
    held = []
    while True:
        held.append(server.accept())


def one_run(folder: Path, name: str, kind: str, steps: int, address: str) -> tuple[float, float]:
    """Seconds from the first step to the last, and from there to the exit. Raises where the run fails."""
    metrics = folder / "runs" / name / "metrics.jsonl"
    keys = [
        f"run.name={name}",
        f"track.wandb={kind}",
        f"train.duration={steps} steps",
        f"eval.every={steps} steps",
        f"save.every={steps} steps",
    ]
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2", "--master-port", "0", "--rdzv-backend", "c10d"]
    command = [*torchrun, "--rdzv-endpoint", "127.0.0.1:0", str(REPOSITORY / "sft_dist" / "train.py"), str(CONFIG), *keys]
    environment = {**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": "x" * 40, "OMP_NUM_THREADS": "1"}
    with (folder / f"{name}.log").open("w") as log:
        running = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    first = wait_for(metrics, 1, running)
    last = wait_for(metrics, steps, running)
    if running.wait():
        raise SystemExit((folder / f"{name}.log").read_text())
    return last - first, time.perf_counter() - last


def wait_for(metrics: Path, step: int, running: "subprocess.Popen[bytes]") -> float:
    while running.poll() is None:
        if metrics.exists() and f'"step": {step}, "kind": "train"' in metrics.read_text():
            return time.perf_counter()
        time.sleep(0.02)
    raise SystemExit(f"{metrics}: the run ended before step {step}")


if __name__ == "__main__":
    main()
