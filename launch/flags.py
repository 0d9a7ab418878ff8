"""Which flags and variables of sbatch a submission decides itself, however they are spelt."""

import re
from collections.abc import Mapping

OURS = {  # a flag of sbatch -> what decides it instead
    "--nodes": "sft-launch's own --nodes, before the --",
    "--time": "sft-launch's own --time, before the --",
    "--gpus-per-node": "sft-launch's own --gpus-per-node, before the --",
    "--job-name": "run.name",
    "--output": "the run's folder, where the log lies",
    "--error": "the run's folder, where the log lies",
    "--export": "the job gets this environment, whole",
    "--export-file": "the job gets this environment, whole",
    "--chdir": "the folder that you submit from",
    "--wrap": "slurm/finetune.sh is what runs",
    "--array": "sft-launch slurm array makes several runs, submit one",
    "--ntasks": "one agent a node, which starts --procs processes",
    **dict.fromkeys(("--ntasks-per-node", "--tasks-per-node"), "one agent a node, which starts --procs processes"),
    "--gpus-per-task": "it hides the GPUs of a node from each other: use --gpus-per-node",
    "--open-mode": "slurm/finetune.sh: a second start appends to the log of the first",
    "--clusters": "the variable SLURM_CLUSTERS, which Slurm's other commands heed as well",
    "--wait": "sft-launch, which does not wait: slurm status and logs follow a job",
    **dict.fromkeys(("--help", "--usage", "--version"), "with it sbatch only prints, and submits nothing: ask sbatch itself"),
    "--parsable": "sft-launch",
    "--test-only": "sft-launch: --dry-run",
}
SHORT = {"N": "--nodes", "t": "--time", "J": "--job-name", "o": "--output", "e": "--error", "D": "--chdir", "a": "--array", "n": "--ntasks"}
SHORT |= {"M": "--clusters", "W": "--wait", "d": "--dependency", "G": "--gpus", "h": "--help", "u": "--usage", "V": "--version"}
BARE = "hHIkOQsuvVW"
"""Short flags without a value, which may stand together with the next one: -HN2."""
WHOLE = ("--gpus",)
"""Flags by themselves, although others of sbatch begin with their name."""
VARIABLES = {  # what sbatch reads where no flag says otherwise
    "SBATCH_ARRAY_INX": OURS["--array"],
    "SBATCH_CLUSTERS": OURS["--clusters"],
    "SBATCH_ERROR": OURS["--error"],
    **dict.fromkeys(
        ("SBATCH_GPUS", "SBATCH_GPUS_PER_SOCKET", "SBATCH_GRES"),
        "how many processes a node needs cannot be seen from it: use --gpus-per-node",
    ),
    "SBATCH_GPUS_PER_TASK": OURS["--gpus-per-task"],
    "SBATCH_NO_REQUEUE": "slurm/finetune.sh puts its job back into the queue: say -- --no-requeue if it must not",
    "SBATCH_OPEN_MODE": OURS["--open-mode"],
    "SBATCH_WAIT": OURS["--wait"],
}
HEARD = re.compile(r"(?:B|RB|BR):(?:SIG)?(?:USR1|USR2|TERM|10|12|15)(?:@\d+)?")


def means(flag: str, name: str) -> bool:
    """Whether sbatch takes a word for the flag of that long name: whole, shortened (--arr=0-3), or by its letter (-a0-3, -Ha0-3)."""
    given = flag.partition("=")[0]
    if flag.startswith("--"):
        return given == name or (len(given) > 2 and name.startswith(given) and given not in WHOLE)
    letters = flag[1:]
    own = letters[: len(letters) - len(letters.lstrip(BARE)) + 1]
    return flag.startswith("-") and name in [SHORT.get(letter) for letter in own]


def refused(flag: str) -> list[str]:
    """Why a word that stands after -- must not reach sbatch; nothing where it may."""
    if not re.match(r"--?\w", flag):
        return [f"{flag!r} after -- is no flag of sbatch, which is one word here, like --mem=64G or -xn2; key=value stands before the --"]
    if means(flag, "--signal"):
        return [f"{flag}: {why}" for why in _unheard(flag.partition("=")[2])]
    return [f"{flag} is not for you to set here: {why}" for name, why in OURS.items() if means(flag, name)][:1]


def refused_variables(env: Mapping[str, str], gpus_told: bool) -> list[str]:
    """What is wrong with sbatch's own variables: they say of every job what nobody has said of this one."""
    wrong = {**VARIABLES, **({} if gpus_told else {"SBATCH_GPUS_PER_NODE": OURS["--gpus-per-node"]})}
    told = [
        f"{name}={env[name]} in the environment is not for you to set here: {why}; unset it" for name, why in wrong.items() if name in env
    ]
    return told + [
        f"SBATCH_SIGNAL={value} in the environment: {why}" for value in [env.get("SBATCH_SIGNAL", "B:USR1")] for why in _unheard(value)
    ]


def _unheard(signal: str) -> list[str]:
    hears = "slurm/finetune.sh hears USR1, USR2 or TERM, and only where B: sends it to the script; use --signal=B:USR1@SECONDS"
    return [] if HEARD.fullmatch(signal.upper()) else [hears]
