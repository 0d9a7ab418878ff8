"""A run of ours as a run in Weights & Biases: the same one after every resume, each step once, no secret in it."""

import os
import shutil
import threading
import time
import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sft_dist import finale, parse, redact
from sft_dist.config import Track
from sft_dist.errors import InfrastructureError
from sft_dist.rundir import RunDir, read_json, write_json

INIT_S = 20
"""How long W&B may take to answer at the start."""
LET_GO_S = 10
SYNC = "sft-dist sync"
FOLDER = "wandb"
"""In the run's folder; W&B's own library wants this name."""
MOST_CLASSES = 100  # of which a matrix is drawn: W&B draws 10,000 cells


@dataclass
class Record:
    """mirror.json: which run in W&B this is, and what is known to have arrived."""

    id: str
    url: str = ""
    step: int = 0
    """The last step that a mirror which ended well has handed over, online or offline."""
    online: int = 0
    """The last one that W&B's server has taken."""
    shown: int = 0
    """The last step whose tables W&B's server has taken."""
    model: int = 0
    """The last one whose model it has."""
    offline: list[str] = field(default_factory=list)
    """The folders of offline runs that are whole."""

    @classmethod
    def of(cls, run: RunDir, env: Mapping[str, str] = MappingProxyType({})) -> "Record":
        """A new run's id is WANDB_RUN_ID's, as a sweep's agent sets it, else drawn; from then on it is kept."""
        told = read_json(run.path / FOLDER / "mirror.json")
        known = {name: value for name, value in told.items() if name in cls.__dataclass_fields__}
        return cls(**{"id": env.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8], **known})

    def lacks(self, step: int, track: Track) -> bool:
        """Whether something that a run shows at its end, at this step, is still to be sent."""
        return step > self.shown or (track.artifact == "export" and step > self.model)

    def write(self, run: RunDir) -> None:
        write_json(run.path / FOLDER / "mirror.json", asdict(self))


class Session:
    """A run of ours, open in W&B: the same one after every resume, by its id. W&B's step is ours, so that a step can arrive only once."""

    def __init__(self, run: RunDir, record: Record, mode: str, limit_s: float, training: int | None = None, **place: str | None) -> None:
        """Raises InfrastructureError where W&B does not answer, or refuses.

        training: the process whose use of the machine is shown, while it runs. place: project and entity, instead of the config's.
        """
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # else the library tells its makers of our exceptions, and waits for that
        self.spool = run.path / FOLDER / "spool"
        os.environ |= dict.fromkeys(("WANDB_DATA_DIR", "WANDB_CACHE_DIR"), str(self.spool.absolute()))  # else it keeps tables in the home
        import wandb

        self.place, self.mode, self.record, self.limit_s = run, mode, record, limit_s
        self.shown, self.model, self.trouble = record.shown, record.model, ""
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

    def conclude(self, row: Mapping[str, Any]) -> bool:
        """The last step of a run that is done, and what the run shows at its end; False if W&B has the step already.

        What comes to naught of the latter is told in `trouble`, and tried again by the next session.
        """
        end, online, track = time.monotonic() + self.limit_s, self.mode == "online", parse.load(self.place.config).track
        try:
            tables = self._tables(track.predictions) if self.shown < row["step"] else {}
            fresh = self.log({**row, **tables})
            if online and not fresh:  # they may have been lost on their way
                self.run.summary.update(_for_summary(tables))
            self.shown = row["step"]
        except Exception as error:  # W&B's server is asked about tables, and may not answer
            self.trouble = self._not_sent("tables", error)
            fresh = self.log(row)
        if online and track.artifact == "export" and self.model < row["step"] and not self.trouble:
            try:
                self._send_model(end)
                self.model = row["step"]
            except Exception as error:
                self.trouble = self._not_sent("model", error)
        return fresh

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
            self.record.online, self.record.shown, self.record.model = self.last, self.shown, self.model
            shutil.rmtree(self.spool, ignore_errors=True)
        self.record.step = max(self.last, self.record.step)
        self.record.write(self.place)

    def _not_sent(self, what: str, error: Exception) -> str:
        holder = "W&B" if self.mode == "online" else "W&B: the offline run"
        return f"{holder} has all steps, but not the {what} of the end: {first_line(error)}; `{SYNC} {self.place.path}` tries again"

    def _tables(self, most: int) -> dict[str, Any]:
        """The confusion matrix of the best evaluation as W&B draws it, and a table of the samples that it is most wrong about."""
        import wandb

        shown = finale.look(self.place, most, _secrets())
        tables: dict[str, Any] = {}
        if shown.truths and len(shown.classes) <= MOST_CLASSES:
            about = {"class_names": list(shown.classes), "title": "Confusion matrix of the best evaluation"}
            tables["best/confusion"] = wandb.plot.confusion_matrix(y_true=list(shown.truths), preds=list(shown.guesses), **about)
        if shown.samples:
            tables["best/predictions"] = wandb.Table(columns=list(shown.columns), data=[list(row) for row in shown.samples])
        return tables

    def _send_model(self, end: float) -> None:
        """The best checkpoint, exported, as an artifact. W&B knows it by the hash of its files, so that it is there once."""
        import wandb

        folder = self.spool / "model"
        finale.export(self.place, folder, limit_s=self.limit_s / 2)
        best, config = read_json(self.place.scores).get("best", {}), parse.load(self.place.config)
        about = {name: value for name, value in best.items() if isinstance(value, int | float)}
        artifact = wandb.Artifact(finale.artifact_name(clean(config.run.name)), type="model", metadata=about)
        for file in finale.free_of(_secrets(), folder):
            artifact.add_file(str(file), policy="immutable", skip_cache=True)  # no further copies of it on this disk
        self.run.log_artifact(artifact, aliases=["best"]).wait(timeout=max(1, int(end - time.monotonic())))


def _about(run: RunDir, environment: Mapping[str, Any]) -> dict[str, Any]:
    """What W&B is told of a run, without secrets; the config by dotted keys, as a sweep names them."""
    config = parse.load(run.config)
    track = config.track
    told = {
        "name": config.run.name, "project": track.project, "entity": track.entity, "group": track.group, "job_type": track.job_type,
        "tags": track.tags or None, "notes": track.notes,
        "config": {**parse.flat(config), "environment": environment, "plan": read_json(run.path / "plan.json")},
    }  # fmt: skip
    redacted: dict[str, Any] = redact.without(_secrets(), told)
    return redacted


def _for_summary(tables: Mapping[str, Any]) -> dict[str, Any]:
    """W&B draws a chart from a table, and keeps that under a name of its own."""
    return {f"{name}_table" if hasattr(one, "table") else name: getattr(one, "table", one) for name, one in tables.items()}


def _secrets() -> Collection[str]:
    return redact.secrets(os.environ).values()


def later(run: RunDir) -> str:
    return f"metrics.jsonl has every row, and `{SYNC} {run.path}` sends them later"


def first_line(error: BaseException) -> str:
    """What an error says, for a sentence of ours: no further lines, and no secret."""
    return clean(next(iter(str(error).splitlines()), type(error).__name__).rstrip("."))


def clean(text: str) -> str:
    """A text in which no secret of this process's environment stands."""
    return str(redact.without(_secrets(), text))


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
