"""Runs in Weights & Biases as records, from its public API: config, scores and rows, whoever tracked them; no predictions of single samples."""

import atexit
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from sft_dist.config import Config
from sft_dist.errors import ConfigError, InfrastructureError
from sft_dist.history.reading import flat
from sft_dist.history.records import Curves, Predictions, Record, is_number, natural, numbers, printable
from sft_dist.rundir import read_json
from sft_dist.session import FOLDER, first_line, let_go

PREFIX = "wandb:"
WORD = re.compile(r"wandb:([^/?\s]+)/([^/?\s]+)(?:/([^/?\s]+))?(?:\?(.+))?")
FILTERS = {"group": "group", "job_type": "jobType", "tag": "tags", "state": "state"}
"""What may stand behind the question mark -> W&B's name for it."""
ANSWER_S = 20
"""How long W&B may take to answer one question."""
MOST_RUNS = 1000
MOST_ROWS = 10_000  # of one run; of more W&B picks some, evenly
PAGE = 100
ENDS = {"failed": "failed", "crashed": "failed", "killed": "failed"}
OURS = ("plan", "environment")  # what our runs say of themselves beside the config


@dataclass(frozen=True)
class Place:
    """`wandb:entity/project[/run][?group=...&tag=...]`, in its parts."""

    entity: str
    project: str
    run: str | None
    filters: Sequence[tuple[str, str]]

    @classmethod
    def parse(cls, word: str) -> "Place":
        match = WORD.fullmatch(word)
        if not match:
            raise ConfigError(
                f"{printable(word)} names no runs in W&B; write wandb:entity/project, wandb:entity/project/run or ...?group=name"
            )
        filters = parse_qsl(match[4] or "", keep_blank_values=True)
        if (match[4] and not filters) or any(name not in FILTERS for name, _ in filters):
            raise ConfigError(f"{printable(word)}: behind the ? stands {'=..., '.join(FILTERS)}=...; --where chooses by config and scores")
        return cls(match[1], match[2], match[3], filters)

    @property
    def query(self) -> dict[str, Any]:
        """The same in the language of W&B's filters."""
        wanted = [{FILTERS[name]: value} for name, value in self.filters] + ([{"name": self.run}] if self.run else [])
        return {"$and": wanted} if wanted else {}


def gather(word: str) -> tuple[list[Record], list[str]]:
    """The runs that a word names, and what is to be said of them.

    Raises ConfigError where there is none, InfrastructureError where W&B is not reached in time or refuses.
    """
    place = Place.parse(word)
    where = f"{place.entity}/{place.project}"
    with asked(where):
        runs = api().runs(where, filters=place.query, per_page=PAGE, lazy=False)
        found = list(islice(runs, MOST_RUNS))
        there = len(runs)
    if not found:
        raise ConfigError(f"{printable(word)}: W&B has no such run")
    names = [run.name or run.id for run in found]
    told = []
    if there > len(found):
        told.append(f"{printable(word)}: the first {len(found)} of {there} runs were read; choose by group, tag or state")
    records = [_record(run, name if names.count(name) == 1 else f"{name} {run.id}", where) for run, name in zip(found, names, strict=True)]
    return sorted(records, key=lambda record: natural(record.name)), told


def place_of(record: Record) -> Place | None:
    """Where a run is in W&B, if it is there: what was read from it, or what a run's folder says of its mirror."""
    if record.place.startswith(PREFIX):
        return Place.parse(record.place)
    url = read_json(Path(record.place) / FOLDER / "mirror.json").get("url")
    match = re.search(r"/([^/?\s]+)/([^/?\s]+)/runs/([\w-]+)$", url) if isinstance(url, str) else None
    return Place(unquote(match[1]), unquote(match[2]), match[3], ()) if match else None


@contextmanager
def asked(where: str) -> Iterator[None]:
    """Whatever W&B's library raises, as one sentence of ours, without a secret in it; W&B's scratch folders go to where they vanish."""
    before = os.environ.get("WANDB_DIR")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:  # W&B may still write there
        os.environ["WANDB_DIR"] = scratch
        try:
            yield
        except Exception as error:
            told = first_line(error)
            if "Could not find project" in told:
                raise ConfigError(f"W&B has no project {where}, or none that this key may see") from error
            raise InfrastructureError(f"W&B does not answer for {where}: {told}") from error
        finally:
            os.environ.pop("WANDB_DIR") if before is None else os.environ.update(WANDB_DIR=before)


@cache
def api() -> Any:
    """W&B's own, which answers within ANSWER_S, prints nothing and asks for nothing. Raises whatever W&B's library raises."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # else the library tells its makers of our exceptions, and waits for that
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    atexit.register(let_go)  # before W&B's own, which may wait without end
    return wandb.Api(timeout=ANSWER_S)


def _record(run: Any, name: str, where: str) -> Record:
    """The same record as of a run's folder, as far as W&B was told. Of runs of other programs the config and the scores are what they are."""
    told = {key: value for key, value in run.rawconfig.items() if key not in (*OURS, "_wandb", "wandb_version")}
    place = {"track.group": run.group, "track.job_type": run.job_type, "track.tags": list(run.tags or [])}
    plan, env = (found if isinstance(found := run.rawconfig.get(key), dict) else {} for key in OURS)
    summary = dict(run.summary_metrics)
    fingerprint = env.get("data_fingerprint")

    @cache
    def rows() -> list[dict[str, Any]]:
        with asked(where):
            return list(run.history(samples=MOST_ROWS, pandas=False))

    return Record(
        name=printable(name),
        place=printable(f"{PREFIX}{where}/{run.id}"),
        config=_in_order({**flat(told), **place}),
        plan=plan,
        env=env,
        outcome=_outcome(run.state, summary),
        scores=_scores(summary),
        fingerprint=fingerprint if isinstance(fingerprint, str) else None,
        turns=(),
        when=_seconds(run.heartbeat_at or run.created_at),
        problems=(),
        curves=lambda: _curves(rows()),
        predictions=lambda _: Predictions(),
    )


def _in_order(config: Mapping[str, Any]) -> dict[str, Any]:
    """As our configs have it: W&B keeps no order."""
    fields = Config.model_fields.items()
    keys = [f"{section}.{key}" if key else section for section, field in fields for key in getattr(field.annotation, "model_fields", [""])]
    return {key: config[key] for key in dict.fromkeys([*keys, *sorted(config)]) if key in config}


def _outcome(state: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """A run that W&B calls finished has ended in order: whether done, or saved to go on later, our own runs tell."""
    told = summary.get("outcome")
    ended = {"finished": told if told in ("done", "saved", "failed") else "done", **ENDS}.get(state)
    return {"step": summary.get("step", summary.get("_step")), **({"outcome": ended} if ended else {})}


def _scores(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Best, last and test: in W&B `best/val/top1`, `val/top1` and `test/top1`."""
    known = numbers(summary)
    best = {name.removeprefix("best/"): value for name, value in known.items() if name.startswith("best/")}
    last = {name: value for name, value in known.items() if name.startswith("val/")}
    test = {name: value for name, value in known.items() if name.startswith("test/")}
    found: dict[str, dict[str, Any]] = {"best": best, "last": last, "test": test}
    steps = {name: {"step": summary.get(f"{name}/step")} for name in found}
    return {name: {**entry, **steps[name]} for name, entry in found.items() if numbers(entry)}


def _curves(history: Sequence[Mapping[str, Any]]) -> Curves:
    """W&B has a row a step, in which training and evaluation are laid together; here they are two again."""
    problems = [f"{MOST_ROWS} rows, which W&B picked of more, stand for all"] if len(history) >= MOST_ROWS else []
    return Curves(list(chain.from_iterable(map(_apart, history))), problems=problems)


def _apart(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    step = row.get("step", row.get("_step"))
    if not is_number(step) or step != int(step):
        return
    shared = {"step": int(step), **{name: row[name] for name in ("samples", "epoch") if name in row}}
    scores = {name: value for name, value in row.items() if name.startswith(("val/", "train/mean_"))}
    rest = {name: value for name, value in row.items() if "/" in name and name not in scores and not isinstance(value, dict)}  # tables
    for kind, values in (("train", rest), ("eval", scores)):
        if values:
            yield {"kind": kind, **shared, **values}


def _seconds(when: object) -> float:
    try:
        return datetime.fromisoformat(str(when)).timestamp()
    except ValueError:
        return 0.0
