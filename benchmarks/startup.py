"""How long the command line takes to answer without torch, and the quickstart from start to end: `make bench`.

Prints a Markdown table of wall seconds over several runs of each command (minimum, median, maximum), with the versions.
"""

import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SFT_DIST = str(Path(sys.executable).parent / "sft-dist")
SFT_LAUNCH = str(Path(sys.executable).parent / "sft-launch")
QUICKSTART = str(REPOSITORY / "configs" / "quickstart.yaml")


def main() -> None:
    cases = [
        ("sft-dist --help", [SFT_DIST, "--help"], 0, 7),
        ("a refused config", [SFT_DIST, "train", QUICKSTART, "optim.lr=-1", "data.sizee=3"], 2, 7),
        ("sft-dist plan --quick", [SFT_DIST, "plan", QUICKSTART, "--quick", "--world", "8"], 0, 5),
        ("sft-launch --help", [SFT_LAUNCH, "--help"], 0, 7),
        ("sft-launch run, refused", [SFT_LAUNCH, "run", QUICKSTART, "optim.lr=-1", "data.sizee=3"], 2, 7),
        ("sft-launch run --dry-run", [SFT_LAUNCH, "run", QUICKSTART, "--procs", "2", "--dry-run"], 0, 5),
        ("configs/quickstart.yaml, one process", [SFT_DIST, "train", QUICKSTART], 0, 3),
        ("the same again, finished", [SFT_DIST, "train", QUICKSTART], 0, 3),
    ]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "accelerate", "pydantic", "click"))
    print(f"Python {platform.python_version()}, {packages}\n")
    print("| command | exit code | runs | min s | median s | max s |\n|---|---|---|---|---|---|")
    for name, command, code, runs in cases:
        with tempfile.TemporaryDirectory() as folder:
            if "again" in name:
                timed(command, Path(folder), code)
            seconds = []
            for i in range(runs):
                place = Path(folder) if "again" in name else Path(folder) / str(i)
                place.mkdir(exist_ok=True)
                seconds.append(timed(command, place, code))
        print(f"| {name} | {code} | {runs} | {min(seconds):.2f} | {statistics.median(seconds):.2f} | {max(seconds):.2f} |", flush=True)


def timed(command: list[str], folder: Path, code: int) -> float:
    """Wall seconds of a command in a folder. Raises where its exit code is another one."""
    before = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != code:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}, not {code}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - before


if __name__ == "__main__":
    main()
