"""`sft-dist compare`, from the words of the command line to the exit code: read, judge, show, write."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sft_dist import pictures, remote, rundir
from sft_dist.compare import cloud, data, table, telling, verdicts
from sft_dist.compare import page as comparison
from sft_dist.compare.verdicts import Choice, Comparison
from sft_dist.errors import ConfigError, MachineError
from sft_dist.history import reading
from sft_dist.history.records import Record, printable
from sft_dist.pages import terminal


def compare(runs: Sequence[str], baseline: Sequence[str], out: Path, choice: Choice, report: bool = False) -> int:
    """1 where something is worse than the baseline beyond noise, else 0. Writes compare.json and compare.html into `out`.

    report: make a report in W&B as well, at the end; where that fails, all else is shown and written.

    Raises ConfigError, after all is shown and written, where a run cannot be held against the baseline: that is no pass.
    """
    if out.is_dir() and reading.is_run(path.name for path in out.iterdir()):
        raise ConfigError(f"{out.absolute()} is a run's folder, where a comparison has no place; choose another with --out")
    if report:
        cloud.check()
    records, passed = _gather(runs)
    base, passed_there = _gather(baseline)
    found = verdicts.judge(records, base, choice)
    found = dataclasses.replace(found, notes=[*dict.fromkeys([*passed, *passed_there, *found.notes])])
    table.show(found)
    write(found, out)
    if report:
        terminal.say(*cloud.save(found))
    if found.baseline and not found.complete:
        told = [telling.sentence(pair, found) for pair in found.undecided]
        told += [f"{name} has no {found.metric} to hold against {found.baseline}" for name in found.left_out]
        raise ConfigError([printable(line) for line in told])
    return int(bool(found.regressions))


def _gather(words: Sequence[str]) -> tuple[list[Record], list[str]]:
    """The runs that words name, here or in W&B, each once; and what is to be said of them."""
    there = [remote.gather(word) for word in dict.fromkeys(words) if word.startswith(remote.PREFIX)]
    here = reading.gather([Path(word) for word in words if not word.startswith(remote.PREFIX)])
    found = {record.place: record for records, _ in (here, *there) for record in records}
    silent = ["of runs in W&B no predictions of single samples are read, so their scores are tested over seeds only"] if there else []
    return list(found.values()), [*silent, *(line for _, told in (here, *there) for line in told)]


def write(found: Comparison, out: Path) -> None:
    """compare.json and compare.html in a folder, which is made if need be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"--out {out}: cannot make that folder: {error.strerror or error}") from error
    config = found.entries[0].group.runs[0].config
    page = comparison.page(found, pictures.of(config, comparison.shown_samples(found)))
    rundir.write_json(out / "compare.json", data.content(found))
    rundir.write_atomically(out / "compare.html", page)
    terminal.say(f"written: {out / 'compare.html'} and compare.json")
