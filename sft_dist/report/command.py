"""`sft-dist report`: one run as a page in its own folder, from what lies there; without torch."""

import sys
from pathlib import Path

from sft_dist import pictures, rundir
from sft_dist.errors import ConfigError, SftError
from sft_dist.history import reading
from sft_dist.history.records import printable
from sft_dist.report import chronicle, exhibits, overlay
from sft_dist.report import page as report
from sft_dist.report.study import study
from sft_dist.report.times import times

NAME = "report.html"


def check(folder: Path) -> None:
    """Raise ConfigError where there is no run to report."""
    if not folder.is_dir() or not reading.is_run(path.name for path in folder.iterdir()):
        raise ConfigError(f"{printable(str(folder))} is no run's folder (a run has a config.yaml and a plan.json)")


def look(folder: Path, at: str = "best") -> list[str]:
    """Load data and model for what only they can show; what was found, in words. With torch."""
    from sft_dist.report.look import look

    return look(folder, at)


def write(folder: Path, at: str = "best", out: Path | None = None) -> Path:
    """Draw the page of a run, in whatever state that is, into its own folder unless told otherwise."""
    record = reading.read(folder)
    looked = study(record, at)
    shown, problems = exhibits.read(folder)
    if shown.step not in (None, looked.step):
        problems.append(f"data and model were looked into at step {shown.step}, the rest shows step {looked.step}; --look does it again")
    shown = shown.model_copy(update={"told": (*shown.told, *problems)})
    found = pictures.of(record.config, report.shown_samples(looked)) | exhibits.uris(folder, exhibits.pictures(shown))
    photos = pictures.photos(record.config, [one.id for one in overlay.chosen(looked) if one.found], overlay.SIDE)
    page = report.page(looked, chronicle.chapters(record), times(looked), shown, found, overlay.frames(looked, photos))
    target = out or folder / NAME
    rundir.write_atomically(target, page)
    return target


def main(arguments: list[str]) -> None:
    """FOLDER page | look: what the end of a run starts. The page comes first, so that it is there whatever looking comes to."""
    folder, what = Path(arguments[0]), arguments[1]
    try:
        write(folder)
        if what == "look":
            look(folder)
            write(folder)
    except SftError as error:
        sys.exit("; ".join(error.problems))


if __name__ == "__main__":
    main(sys.argv[1:])
