"""What Slurm's words for a job mean: its states, why it waits, and why it was refused."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

LIVE = {
    "PENDING": "waits in the queue",
    "CONFIGURING": "has its nodes, which get ready",
    "RUNNING": "runs",
    "COMPLETING": "ends; its nodes are being cleaned",
    "SIGNALING": "is being signalled",
    "STAGE_OUT": "ends; its files are being copied",
    "RESIZING": "changes its size",
    "STOPPED": "is stopped and keeps its nodes",
    "SUSPENDED": "is suspended for another job",
    "REQUEUED": "goes back into the queue",
    "REQUEUE_HOLD": "went back into the queue and is held there",
    "SPECIAL_EXIT": "went back into the queue and is held there",
}
ENDED = {
    "COMPLETED": "ended with exit code 0: the run is done, or saved and stopped as asked",
    "FAILED": "ended with an error",
    "CANCELLED": "was cancelled",
    "TIMEOUT": "ran into its time limit",
    "NODE_FAIL": "lost a node",
    "PREEMPTED": "was ended for a job of more weight",
    "OUT_OF_MEMORY": "took more memory than it had asked for (sbatch --mem)",
    "BOOT_FAIL": "had a node that did not start",
    "DEADLINE": "could not end before its deadline (sbatch --deadline)",
}
REASONS = [  # pattern of Slurm's Reason, what it means, what to do; the first that fits
    (r"None", "it was submitted this moment", "look again in some seconds"),
    (r"Priority", "other jobs come first", "wait; `sprio -j {job}` shows the ranking, a shorter --time may fit into a gap"),
    (r"Resources", "it is next, and waits until enough nodes are free", "wait, or ask for fewer nodes or less time"),
    (r"BeginTime", "it may not start before a time that was set, after a requeue about two minutes", "wait, or scontrol update JobId={job} StartTime=now"),
    (r"ReqNodeNotAvail.*|Nodes_required_for_job.*", "nodes that it needs are down, drained or reserved", "sinfo -R says why; wait, or name other nodes or another partition"),
    (r"NodeDown", "a node that it needs is down", "sinfo -R says why; wait, or leave it out (--exclude)"),
    (r"QOS.*(?:Limit|Per).*", "a limit of its quality of service (QOS) is reached", "wait until other jobs of yours end, or use another --qos"),
    (r"QOSNotAllowed|InvalidQOS|QOS.*", "its quality of service (QOS) does not admit it", "use another --qos, or ask who runs the cluster"),
    (r"InvalidAccount|AccountNotAllowed", "its account may not be used here", "cancel it and submit with another --account"),
    (r"Assoc.*|AccountingPolicy|MaxJobs.*|MaxNodes.*", "a limit of your account is reached", "wait until other jobs of the account end, or ask for less"),
    (r"DependencyNeverSatisfied", "the job that it waits for ended otherwise than asked: it will never start", "cancel it and submit it again"),
    (r"Dependency", "it waits for another job to end", "squeue -j {job} -o %E shows which"),
    (r"JobHeldUser", "you hold it", "scontrol release {job}"),
    (r"JobHeldAdmin", "who runs the cluster holds it", "ask them"),
    (r"launch_failed_requeued_held", "a node could not start it; Slurm put it back and holds it", "look at sinfo -R, then scontrol release {job}; if it comes again leave that node out (--exclude)"),
    (r"job_requeued_in_held_state|JobHoldMaxRequeue", "it was put back too often, and is held", "sft-launch why RUN says what happens each time; then scontrol release {job}"),
    (r"PartitionTimeLimit", "its --time is longer than the partition allows: it will never start", "scontrol update JobId={job} TimeLimit=..., or cancel it and submit with less"),
    (r"PartitionNodeLimit", "it asks for more nodes than the partition allows, or has", "cancel it and submit with fewer --nodes"),
    (r"PartitionConfig", "what it asks for does not fit its partition", "scontrol show partition shows its limits; cancel it and submit with less, or to another --partition"),
    (r"PartitionDown|PartitionInactive", "its partition takes no jobs now", "wait, or scontrol update JobId={job} Partition=..."),
    (r"BadConstraints", "no node has what its --constraint or flags ask for", "cancel it and submit with others"),
    (r"Reservation.*", "it waits for its reservation to begin", "wait"),
    (r"Licenses", "it waits for a licence", "wait"),
    (r"JobArrayTaskLimit", "as many tasks of its array run as may run at once", "wait"),
    (r"Cleaning", "what is left of its last start is being cleaned up", "wait"),
    (r"Prolog.*", "its nodes are being made ready", "wait"),
]  # fmt: skip
REFUSALS = [  # pattern of sbatch's message, what to do, whether the user can mend it
    (r"[Ii]nvalid partition", "no such partition; `sinfo -s` lists those there are (--partition)", True),
    (r"[Ii]nvalid account|account/partition combination", "`sacctmgr show associations user=$USER` lists your accounts (--account)", True),
    (r"[Ii]nvalid qos", "`sacctmgr show qos` lists those there are", True),
    (r"[Tt]ime limit|TIME_LIMIT|Requested time", "`sinfo -o '%P %l'` shows the longest --time of each partition; a run saves and queues again by itself", True),
    (r"[Nn]ode count|[Tt]oo many nodes|[Mm]ore processors", "`sinfo -o '%P %D %c %G'` shows nodes, processors and GPUs of each partition", True),
    (r"[Nn]ode configuration is not available|[Ii]nvalid generic resource|[Ii]nvalid feature", "no node has what is asked for; `sinfo -o '%P %D %c %m %G %f'` shows what they have", True),
    (r"[Mm]emory specification", "`sinfo -o '%P %m'` shows the memory of the nodes (--mem)", True),
    (r"[Ii]nvalid job array", "`scontrol show config | grep MaxArraySize` shows how many tasks an array may have", True),
    (r"unrecognized option|invalid option|[Ii]nvalid .*specification|Script arguments", "see `man sbatch`", True),
    (r"[Uu]nable to contact|[Cc]onfiguration source|fetch_config|[Cc]onnection refused", "Slurm does not answer from this machine; is it a login node of the cluster?", False),
]  # fmt: skip
REFUSED = "Slurm refuses this job: "
AMBIGUOUS = r"[Nn]ode configuration is not available"
"""`sbatch --test-only` also says it of nodes that are only drained or down (22.05), for which `sbatch` itself lets a job wait."""
PASSING = r"nodes are busy|nodes required .* are DOWN|Required node not available|reserved for jobs in higher|QOS.*Limit|Job held"
"""What `sbatch --test-only` may refuse although a job would only have to wait."""


@dataclass(frozen=True)
class Refusal:
    """Why sbatch does not take a job. mended_by_user: else it is for who runs the cluster."""

    sentence: str
    mended_by_user: bool


def state_in_words(state: str) -> str:
    return {**LIVE, **ENDED}.get(state, "is in a state that this version does not know")


def reason_in_words(reason: str, job: str) -> str:
    """Why a job waits, and what to do; Slurm's own word where it is another one."""
    for pattern, meaning, advice in REASONS:
        if re.fullmatch(pattern, reason):
            return f"{meaning}; {advice.format(job=job)}"
    return "see `man squeue`, under JOB REASON CODES"


def refusal(message: str) -> Refusal:
    """What sbatch has printed, in one sentence with what to do."""
    lines = [
        re.sub(r"^(?:sbatch|scontrol|scancel|squeue|allocation failure|error|fatal)\s*:\s*", "", line.strip())
        for line in message.splitlines()
    ]
    lines = [re.sub(r"^(?:error|fatal|allocation failure)\s*:\s*", "", line) for line in lines if line]
    told = "; ".join(dict.fromkeys(lines)) or "no message"
    for pattern, advice, by_user in REFUSALS:
        if re.search(pattern, message):
            return Refusal(f"{REFUSED}{told}: {advice}", by_user)
    return Refusal(f"{REFUSED}{told}", True)


def only_waits(message: str, node_states: Iterable[str]) -> bool:
    """Whether a refusal of `sbatch --test-only` speaks of now, not of the job. node_states: of all nodes, as sinfo names them."""
    some_are_out = any(re.match(r"(?i)down|drain|fail|maint|reboot|resv|reserved|unk|no_respond|.*\*$", state) for state in node_states)
    return re.search(PASSING, message) is not None or (some_are_out and re.search(AMBIGUOUS, message) is not None)
