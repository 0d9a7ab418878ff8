"""`sft-dist report`: one run as a page in its own folder, from what lies there; without torch."""

from pathlib import Path

from sft_dist import chronicle, exhibits, pictures, reading, rundir
from sft_dist.errors import ConfigError
from sft_dist.pages import report
from sft_dist.records import printable
from sft_dist.study import study

NAME = "report.html"


def check(folder: Path) -> None:
    """Raise ConfigError where there is no run to report."""
    if not folder.is_dir() or not reading.is_run(path.name for path in folder.iterdir()):
        raise ConfigError(f"{printable(str(folder))} is no run's folder (a run has a config.yaml and a plan.json)")


def write(folder: Path, at: str = "best", out: Path | None = None) -> Path:
    """Draw the page of a run, in whatever state that is, into its own folder unless told otherwise."""
    record = reading.read(folder)
    looked = study(record, at)
    shown, problems = exhibits.read(folder)
    shown = shown.model_copy(update={"told": (*shown.told, *problems)})
    found = pictures.of(record.config, report.shown_samples(looked)) | exhibits.uris(folder, exhibits.pictures(shown))
    target = out or folder / NAME
    rundir.write_atomically(target, report.page(looked, chronicle.chapters(record), chronicle.times(looked), shown, found))
    return target
