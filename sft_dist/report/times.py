"""Where the time of a run went, by the phases that its rows and attempts tell."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

from sft_dist import attempts
from sft_dist.history.records import is_number
from sft_dist.pulse import PHASES, STEP, column
from sft_dist.report.study import Study
from sft_dist.rundir import RunDir, read_json

SLOW_PCT = 20  # of the time in steps: waiting for data for longer than that is worth a word
LOST, REST = "steps that were lost and made again", "the rest"
OUTSIDE = "starting and ending processes"
WORDS = {
    "forward": "forward",
    "backward": "backward",
    "update": "the optimizer",
    "exchange": "exchanging sums",
    "data": "waiting for data",
    "evaluation": "evaluation",
    "save": "saving",
    "start-up": "starting",
}
"""A phase in the words of the page, in its order; what is not here is the rest."""


@dataclass(frozen=True)
class Times:
    """Seconds of rank 0 over all attempts.

    parts: what the time was spent on; together they are all of it. measured: whether launchers recorded the attempts from start to end;
    what of that no row tells is counted as outside of the program, as is what a killed attempt did last. communicating: the share of
    the steps in which messages were under way, and exposed: nothing else was done; None where that was not measured.
    """

    parts: Mapping[str, float]
    measured: bool
    communicating: float | None = None
    exposed: float | None = None

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def waiting(self) -> float:
        """The share of the time in steps that went into waiting for data."""
        steps = sum(self.parts.get(WORDS[phase], 0.0) for phase in STEP)
        return self.parts.get(WORDS["data"], 0.0) / steps if steps else 0.0

    @property
    def slow_data(self) -> bool:
        return 100 * self.waiting > SLOW_PCT


def times(study: Study) -> Times | None:
    """Where the time went; None where no row tells. A step that was made again is lost; an evaluation or a save of that time is none."""
    kept, cut = study.curves.rows, [row for rows in study.curves.rewound for row in rows]
    spent = _by_phase(chain(kept, _tails(study)))
    if not any(spent.values()):
        return None
    rewound = _by_phase(cut)
    between = {phase: spent[phase] + (0.0 if phase in STEP else rewound[phase]) for phase in PHASES}
    parts = {word: between[phase] for phase, word in WORDS.items()}
    parts[LOST] = sum(rewound[phase] for phase in STEP)
    parts[REST] = sum(between[phase] for phase in PHASES if phase not in WORDS)
    wall = study.cost.wall_s
    if wall is not None:
        parts[OUTSIDE] = max(0.0, wall - sum(parts.values()))
    shares = [_mean(kept, f"speed/{name}_pct") for name in ("communication", "exposed_communication")]
    return Times({name: seconds for name, seconds in parts.items() if seconds}, wall is not None, *shares)


def _tails(study: Study) -> list[dict[str, Any]]:
    """What attempts did after their last training row."""
    run = RunDir(Path(study.record.place))
    try:
        return [read_json(attempts.folder(run, number) / attempts.TAIL) for number in attempts.numbers(run)]
    except OSError:
        return []


def _by_phase(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    spent = dict.fromkeys(PHASES, 0.0)
    for row in rows:
        for phase in PHASES:
            seconds = row.get(column(phase))
            spent[phase] += max(0.0, seconds) if is_number(seconds) else 0.0
    return spent


def _mean(rows: Iterable[Mapping[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if is_number(row.get(name))]
    return mean(values) if values else None
