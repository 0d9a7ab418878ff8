"""How long a save takes in this run, and a word of warning where whoever ends the run may not wait for it."""

import json
from collections.abc import Mapping
from contextlib import suppress

from sft_dist import attempts
from sft_dist.rundir import RunDir

TORCHRUN_S = 30.0
"""torchrun's --shutdown-timeout: how long after a TERM it lets its workers live, unless PET_SHUTDOWN_TIMEOUT says otherwise."""
FILE = "saves.jsonl"


def note_save(run: RunDir, attempt: int, step: int, seconds: float) -> None:
    """Keep how long a checkpoint took from its step to its commit; rank 0, at every commit."""
    with suppress(OSError), (attempts.folder(run, attempt) / FILE).open("a") as file:  # the checkpoint itself is there
        file.write(json.dumps({"step": step, "seconds": round(seconds, 3)}) + "\n")


def longest_save_s(run: RunDir) -> float:
    """Seconds of the longest save of the newest attempt that made one; 0.0 where none was made yet."""
    for number in reversed(attempts.numbers(run)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            lines = (attempts.folder(run, number) / FILE).read_text().splitlines()
            return max(float(json.loads(line)["seconds"]) for line in lines)
    return 0.0


def too_short(save_s: float, env: Mapping[str, str]) -> list[str]:
    """What to say, at the start, of a launcher that kills its ranks before a save of this length is through; nothing of one that waits."""
    if "SFT_PULSE" in env or "TORCHELASTIC_RUN_ID" not in env:  # our own agent waits for the save, and so does a lone process
        return []
    told = env.get("PET_SHUTDOWN_TIMEOUT", "")
    given_s = float(told) if told.replace(".", "", 1).isdigit() else TORCHRUN_S
    if save_s < given_s:
        return []
    unseen = "" if told else ", unless its --shutdown-timeout, which no rank can see, says more"
    return [
        f"a save of this run took {save_s:.0f} s, but torchrun kills its workers {given_s:.0f} s after a TERM, in the midst of it{unseen}; "
        f"export PET_SHUTDOWN_TIMEOUT={4 * round(save_s) + 30}, or start by sft-launch run, which waits for the save"
    ]


def too_short_for_slurm(save_s: float, kill_wait_s: float, warning_s: float) -> list[str]:
    """Likewise of Slurm. kill_wait_s: its KillWait, from TERM to KILL; warning_s: what --signal asks for before the time limit."""
    said = []
    if save_s >= kill_wait_s:
        said.append(
            f"a save of this run took {save_s:.0f} s, but after scancel Slurm kills in {kill_wait_s:.0f} s (KillWait); "
            "`sft-launch slurm cancel --save` waits for the save"
        )
    if save_s >= warning_s / 2:
        said.append(
            f"a save of this run took {save_s:.0f} s, and finetune.sh asks to be warned {warning_s:.0f} s before the time limit; "
            f"submit with --signal=B:USR1@{4 * round(save_s)}, if you do not already (no job can see it)"
        )
    return said
