"""A run of ours as a run in Weights & Biases: the same one after every resume, each step once, no secret in it."""

import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from sft_dist import parse, redact
from sft_dist.errors import ConfigError, InfrastructureError
from sft_dist.rundir import RunDir, read_json, write_json

INIT_S = 20
"""How long W&B may take to answer at the start."""
LET_GO_S = 10
SYNC = "sft-dist sync"
FOLDER = "wandb"
"""In the run's folder; W&B's own library wants this name."""


class Steps:
    """The rows of a metrics file as they come, one a step: those of training and of evaluation are laid together."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[bytes] | None = None
        self.part = b""
        self.open: dict[str, Any] = {}

    def new(self) -> Iterator[dict[str, Any]]:
        """The steps that are complete, as a later one has begun, since this was last asked."""
        if not self.file:
            if not self.path.exists():
                return
            self.file = self.path.open("rb")  # kept: a resume puts another file in its place, which begins anew
        *lines, self.part = (self.part + self.file.read()).split(b"\n")
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                raise ConfigError(f"{self.path} holds a line that is not JSON; it was changed by hand or the disk is damaged") from None
            if self.open and row["step"] != self.open["step"]:
                yield from self.rest()
            self.open |= {name: value for name, value in row.items() if name != "kind" and value is not None}

    def rest(self) -> Iterator[dict[str, Any]]:
        """The newest step, once nothing more can come to it."""
        if self.open:
            row, self.open = self.open, {}
            yield row

    def close(self) -> None:
        if self.file:
            self.file.close()


@dataclass
class Record:
    """mirror.json: which run in W&B this is, and what is known to have arrived."""

    id: str
    url: str = ""
    step: int = 0
    """The last step that a mirror which ended well has handed over, online or offline."""
    online: int = 0
    """The last one that W&B's server has taken."""
    offline: list[str] = field(default_factory=list)
    """The folders of offline runs that are whole."""

    @classmethod
    def of(cls, run: RunDir, env: Mapping[str, str] = MappingProxyType({})) -> "Record":
        """A new run's id is WANDB_RUN_ID's, as a sweep's agent sets it, else drawn; from then on it is kept."""
        told = read_json(run.path / FOLDER / "mirror.json")
        known = {name: value for name, value in told.items() if name in cls.__dataclass_fields__}
        return cls(**{"id": env.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8], **known})

    def write(self, run: RunDir) -> None:
        write_json(run.path / FOLDER / "mirror.json", asdict(self))


class Session:
    """A run of ours, open in W&B: the same one after every resume, by its id. W&B's step is ours, so that a step can arrive only once."""

    def __init__(self, run: RunDir, record: Record, mode: str, limit_s: float, training: int | None = None, **place: str | None) -> None:
        """Raises InfrastructureError where W&B does not answer, or refuses.

        training: the process whose use of the machine is shown, while it runs. place: project and entity, instead of the config's.
        """
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # else the library tells its makers of our exceptions, and waits for that
        import wandb

        self.place, self.mode, self.record = run, mode, record
        record.write(run)  # the id, before anybody hears it
        if mode == "offline":
            _clear_halves(run, record)
        environment = read_json(run.path / "env.json")
        settings = wandb.Settings(
            mode=mode, init_timeout=min(INIT_S, limit_s / 2), finish_timeout=limit_s, finish_timeout_raises=True, silent=True, console="off",
            disable_git=True, git_commit=environment.get("commit"), save_code=False, disable_code=True, x_save_requirements=False,
            x_disable_stats=training is None, x_stats_pid=training or os.getpid(), x_transaction_log_flush_interval=1.0,
        )  # fmt: skip
        told = {**_about(run, environment), **{name: value for name, value in place.items() if value}}
        try:
            self.run = wandb.init(dir=run.path, id=record.id, resume="allow", allow_val_change=True, settings=settings, **told)
        except Exception as error:
            let_go()
            raise InfrastructureError(f"W&B is not reached: {first_line(error)}") from error
        self.last = record.step
        if mode == "online":
            self.last, record.url = self.run.starting_step - 1, self.run.url or ""
            record.write(run)
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, row: Mapping[str, Any]) -> bool:
        """One step; False if W&B has it already, as after a resume from an earlier checkpoint, whose steps repeat the same numbers."""
        if row["step"] <= self.last:
            return False
        self.run.log(dict(row), step=row["step"], commit=True)
        self.last = row["step"]
        return True

    def summarise(self) -> None:
        """How it ended, and the best and the test scores beside the last ones, which W&B's summary has by itself."""
        scores = read_json(self.place.scores)
        ended, last = read_json(self.place.outcome).get("outcome"), scores.get("last", {}).get("step")
        self.run.summary.update({name: told for name, told in (("outcome", ended), ("last/step", last)) if told is not None})
        numbers = {name: entry for name, entry in scores.items() if name in ("best", "test")}
        self.run.summary.update(
            {
                metric if metric.startswith(name) else f"{name}/{metric}": value
                for name, entry in numbers.items()
                for metric, value in entry.items()
                if isinstance(value, int | float)
            }
        )

    def finish(self, exit_code: int = 0) -> None:
        """Raises InfrastructureError where W&B has not taken everything in time."""
        self.summarise()
        try:
            self.run.finish(exit_code)
        except Exception as error:
            let_go()
            raise InfrastructureError(f"W&B has not taken everything: {first_line(error)}; {later(self.place)}") from error
        if self.mode == "offline":
            self.record.offline.append(Path(self.run.settings.sync_dir).name)
        else:
            self.record.online = self.last
        self.record.step = max(self.last, self.record.step)
        self.record.write(self.place)


def _about(run: RunDir, environment: Mapping[str, Any]) -> dict[str, Any]:
    """What W&B is told of a run, without secrets; the config by dotted keys, as a sweep names them."""
    config = parse.load(run.config)
    track = config.track
    told = {
        "name": config.run.name, "project": track.project, "entity": track.entity, "group": track.group, "job_type": track.job_type,
        "tags": track.tags or None, "notes": track.notes,
        "config": {**parse.flat(config), "environment": environment, "plan": read_json(run.path / "plan.json")},
    }  # fmt: skip
    clean: dict[str, Any] = redact.without(redact.secrets(os.environ).values(), told)
    return clean


def later(run: RunDir) -> str:
    return f"metrics.jsonl has every row, and `{SYNC} {run.path}` sends them later"


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def let_go() -> None:
    """End W&B's own process after a failure: it would call the run's id "in use", or it has crashed and the next run would find it dead.

    W&B waits for its process without end; after LET_GO_S it is left to itself, and ends with ours.
    """
    import wandb

    def end() -> None:
        with suppress(Exception):
            wandb.teardown()

    ending = threading.Thread(target=end, name="let go", daemon=True)
    ending.start()
    ending.join(LET_GO_S)


def _clear_halves(run: RunDir, record: Record) -> None:
    """Offline runs whose mirror was killed may lack their last steps: they are written anew, unless they were uploaded by hand."""
    for folder in (run.path / FOLDER).glob("offline-run-*"):
        if folder.name not in record.offline and not any(folder.glob("*.synced")):
            with suppress(OSError):
                shutil.rmtree(folder)
