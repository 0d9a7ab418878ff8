"""A comparison as a report in Weights & Biases: a run set for each recipe, the verdicts in words, curves, and W&B's own run comparer."""

import importlib.util
from collections.abc import Iterator
from typing import Any

from sft_dist import remote
from sft_dist.compare import telling
from sft_dist.compare.verdicts import Comparison
from sft_dist.errors import ConfigError
from sft_dist.history.groups import Group
from sft_dist.history.records import printable
from sft_dist.kinds import SCORES
from sft_dist.pages import words
from sft_dist.remote import Place
from sft_dist.session import clean

LONGEST = 128  # of a title, in W&B
MOST = 20  # keys that are told to differ


def check() -> None:
    """Refuse before anything is compared where the package is missing that makes reports."""
    if not importlib.util.find_spec("wandb_workspaces"):
        raise ConfigError("--wandb-report needs W&B's package for reports; pip install wandb-workspaces, or pip install 'sft-dist[report]'")


def save(comparison: Comparison) -> list[str]:
    """Make the report in the project of the first run; where it is, and which runs it cannot show.

    Raises ConfigError where no run is in W&B, InfrastructureError where W&B is not reached.
    """
    groups = [entry.group for entry in comparison.entries]
    places = {run.place: remote.place_of(run) for group in groups for run in group.runs}
    known = [place for place in places.values() if place]
    missing = [run.name for group in groups for run in group.runs if not places[run.place]]
    if not known:
        raise ConfigError(f"--wandb-report: none of these runs is in W&B: {words.listed(missing, 5)}; `sft-dist sync RUN` sends them")
    home = known[0]
    with remote.asked(f"{home.entity}/{home.project}"):
        remote.api()
        import wandb_workspaces.reports.v2 as made

        sets = [one for group in groups for one in _run_sets(group, places, made)]
        panels = [made.LinePlot(x="Step", y=[name]) for name in plotted(comparison.task, comparison.metric)]
        grid = made.PanelGrid(runsets=sets, panels=[*panels, made.RunComparer(diff_only="split")])
        title = clean(f"sft-dist compare: {words.listed([group.label for group in groups], 3)}")[:LONGEST]
        report = made.Report(home.project, home.entity, title=title, width="fluid", blocks=[*_told(comparison, made), grid])
        report.save()
    silent = f"; not in W&B, and so not in it: {words.listed(missing, 5)} (`sft-dist sync` sends them)" if missing else ""
    return [f"W&B report: {report.url}{silent}"]


def plotted(task: str, metric: str) -> list[str]:
    """The curves that are shown: the score that is compared, and the losses that this kind of work has."""
    losses = (*(name for name in SCORES[task] if name == "val/loss"), "train/loss")
    return list(dict.fromkeys((metric, *losses)))


def _run_sets(group: Group, places: dict[str, Place | None], made: Any) -> Iterator[Any]:
    """One for a recipe, or one for each project that its runs are in."""
    from wandb_workspaces import expr

    there: dict[tuple[str, str], list[str]] = {}
    for run in group.runs:
        if (place := places[run.place]) and place.run:
            there.setdefault((place.entity, place.project), []).append(place.run)
    for (entity, project), ids in there.items():
        yield made.Runset(entity, project, name=clean(printable(group.label)), filters=[expr.Metric("ID").isin(ids)])


def _told(comparison: Comparison, made: Any) -> Iterator[Any]:
    labels = [entry.group.label for entry in comparison.entries]
    scores = [f"{entry.group.label}: {telling.spread(entry.spreads.get(comparison.at))}" for entry in comparison.entries]
    facts = [
        f"{fact.name}: " + "; ".join(f"{value} ({label})" for label, value in zip(labels, fact.values, strict=True))
        for fact in comparison.facts
    ]
    verdicts = [telling.sentence(pair, comparison) for pair in comparison.pairs]
    for title, lines in (
        (f"{words.score(comparison.metric)} of the {comparison.at} evaluation", scores),
        ("Is the difference noise?", verdicts),
        ("What differs", facts[:MOST]),
        ("Notes", comparison.notes),
    ):
        if lines:
            yield made.H2(printable(title))
            yield made.UnorderedList([clean(printable(line)) for line in lines])
