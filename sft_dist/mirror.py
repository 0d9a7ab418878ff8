"""The mirror of a run in Weights & Biases: a process beside the training that reads metrics.jsonl, the truth, and cannot slow or stop it."""

import fcntl
import importlib.util
import math
import os
import select
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sft_dist import parse
from sft_dist.config import Track
from sft_dist.errors import ConfigError, InfrastructureError, SftError
from sft_dist.rundir import RunDir, read_json, writing
from sft_dist.session import FOLDER, SYNC, Record, Session, first_line, later, let_go
from sft_dist.steps import Steps

LOOK_S = 0.5


def check(track: Track, env: Mapping[str, str]) -> None:
    """Refuse what W&B would obey in silence although the config says otherwise, and a package that is missing."""
    if track.wandb == "disabled":
        return
    if not importlib.util.find_spec("wandb"):
        raise ConfigError(f"track.wandb = {track.wandb!r}, but the package wandb is not installed; pip install wandb, or use disabled")
    told = {"dryrun": "offline", "run": "online"}.get(mode := env.get("WANDB_MODE", ""), mode)
    if told and told != track.wandb:
        raise ConfigError(f"WANDB_MODE = {mode}, but track.wandb = {track.wandb}; unset it, or write track.wandb: {told}")
    if env.get("WANDB_DISABLED", "").lower() in ("1", "true"):
        raise ConfigError(f"WANDB_DISABLED is set, but track.wandb = {track.wandb}; unset it, or write track.wandb: disabled")


def found(paths: Sequence[Path]) -> list[RunDir]:
    """The runs that are named, and those in the folders that are named. Raises ConfigError where there is none."""
    runs: list[RunDir] = []
    for path in paths:
        places = [path] if (path / "config.yaml").is_file() else sorted(config.parent for config in path.glob("*/config.yaml"))
        if not places:
            raise ConfigError(f"{path} is neither the folder of a run nor one that holds any (no config.yaml)")
        runs += map(RunDir, places)
    return runs


def sync(run: RunDir, limit_s: float, project: str | None = None, entity: str | None = None) -> str:
    """Send the steps of a run that W&B does not have yet; what came of it, in words. Raises InfrastructureError where W&B does not take them.

    The newest step of a run that is not finished stays back: its evaluation may be yet to come, and W&B takes each step once.
    """
    os.umask(0o077)
    with _alone(run, patience_s=0) as alone:
        if not alone:
            return "the run's own process is sending it"
        with closing(Steps(run.metrics)) as steps:
            rows, last = list(steps.new()), list(steps.rest() if read_json(run.outcome).get("outcome") == "done" else [])
        record, there = Record.of(run), len(rows) + len(last)
        newest = max((row["step"] for row in [*rows, *last]), default=0)
        if newest <= record.online and not (last and record.lacks(newest, parse.load(run.config).track)):
            return f"nothing new in {there} steps  {record.url}".rstrip()
        session = Session(run, record, "online", limit_s, project=project, entity=entity)
        try:
            sent = sum(map(session.log, rows)) + sum(map(session.conclude, last))
            session.finish()
        except SftError:
            raise
        except Exception as error:  # W&B's own process has died: the next run gets a new one
            let_go()
            raise InfrastructureError(f"W&B: {first_line(error)}; {later(run)}") from error
    if session.trouble:
        raise InfrastructureError(session.trouble)
    return f"{sent} of {there} steps sent  {record.url}"


def main(arguments: list[str]) -> None:
    """The process itself. Sentences for the screen go to stdout; how the training ended comes from stdin.

    arguments: the run's folder, online or offline, and the seconds that are left once the training is over.
    """
    run, mode, limit_s = RunDir(Path(arguments[0])), arguments[1], float(arguments[2])
    os.umask(0o077)
    os.nice(19)  # the training comes first
    screen = os.fdopen(os.dup(1), "w", buffering=1)  # not handed on to W&B's own processes, which may live longer
    os.dup2(2, 1)
    ending = Ending(limit_s)
    try:
        with _alone(run, patience_s=math.inf):
            try:
                trouble = _follow(run, _open(run, mode, limit_s, screen), ending)
            except Exception:  # W&B's own process has died: of a signal to the whole tree, from which it cannot be kept, or of a bug
                traceback.print_exc()
                let_go()
                trouble = _follow(run, _open(run, mode, limit_s), ending)
        if trouble:
            _say(screen, trouble)
    except Exception as error:  # ours, and whatever W&B's library raises
        traceback.print_exc()
        told = first_line(error) if isinstance(error, SftError) else f"W&B: {first_line(error)}"
        _say(screen, told if SYNC in told else f"{told}; {later(run)}")
    os._exit(0)  # W&B's library has handlers that wait for the network at the end


class Ending:
    """How the training ended, once it has: `done`, `saved` or `failed` by its own word, `lost` where it died without one.

    From then on the process has limit_s seconds, whatever it is doing.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s, self.word, self.over = limit_s, "", threading.Event()
        threading.Thread(target=self._listen, args=(os.getppid(),), name="ending", daemon=True).start()

    def _listen(self, training: int) -> None:
        heard: list[Any] = []
        while not heard and os.getppid() == training:  # data workers may hold the pipe open after the training's death
            heard, _, _ = select.select([sys.stdin], [], [], LOOK_S)
        self.word = (sys.stdin.readline().strip() if heard else "") or "lost"
        self.over.set()
        time.sleep(self.limit_s)
        os._exit(1)


def _open(run: RunDir, mode: str, limit_s: float, screen: IO[str] | None = None) -> Session:
    """Online if it was asked for and can be, else offline, which is said."""
    record, training = Record.of(run, os.environ), os.getppid()
    if mode == "online":
        try:
            session = Session(run, record, mode, limit_s, training)
        except InfrastructureError as error:
            _say(screen, f"{error}; this attempt is mirrored offline, and `{SYNC} {run.path}` sends it later")
        else:
            _say(screen, f"W&B: {record.url}")
            return session
    return Session(run, record, "offline", limit_s, training)


def _follow(run: RunDir, session: Session, ending: Ending) -> str:
    """Send what comes, to the end; what W&B did not take of that which comes last, or nothing."""
    steps, over = Steps(run.metrics), False
    while not over:
        over = ending.over.wait(LOOK_S)
        for row in steps.new():
            session.log(row)
    for row in steps.rest() if ending.word == "done" else ():
        session.conclude(row)
    session.finish(exit_code=int(ending.word in ("failed", "lost")))
    return session.trouble


def _say(screen: IO[str] | None, sentence: str) -> None:
    """None: it was said before."""
    with suppress(OSError):  # nobody listens any more where the training was killed
        if screen:
            print(sentence, file=screen)


@contextmanager
def _alone(run: RunDir, patience_s: float) -> Iterator[bool]:
    """One mirror of a run at a time: that of the attempt before may still be at its end. False if it is so for longer than patience_s."""
    folder = run.path / FOLDER
    with writing(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = (folder / ".lock").open("a")
    with lock as file:
        end = time.monotonic() + patience_s
        while not (mine := _locked(file)) and time.monotonic() < end:
            time.sleep(LOOK_S)
        yield mine


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
