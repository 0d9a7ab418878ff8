"""`sft-dist data check`: open every image before a run pays for it; on the screen, as a page, and as JSON."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import track

from sft_dist import datasets, parse, pictures
from sft_dist.config import Config
from sft_dist.datacheck import census, findings, page, strays
from sft_dist.errors import ConfigError, MachineError
from sft_dist.pages import terminal
from sft_dist.plan import processors
from sft_dist.rundir import to_json

FEW = 64  # images that are not worth a second process


def check(settings: Config, out: Path, workers: int | None, near: bool) -> int:
    """The exit code: 1 if something is wrong with the data. Writes data-check.html and data-check.json into `out`."""
    if settings.task != "classify":
        raise ConfigError(f"task = {settings.task}: `sft-dist data check` looks at images with one label each, for task: classify")
    datasets.check(settings.data)
    splits = datasets.load(settings.data)
    if not splits.train.labels:
        told = [
            f"data.name = {settings.data.name}: what is wrong with masks or boxes is not looked for yet, only with images of one class each"
        ]
        raise ConfigError([*told, *splits.remarks])
    total = len(splits.train) + len(splits.val) + len(splits.test or ())
    workers = max(1, min(8, processors(), total // FEW)) if workers is None else workers
    looks = list(_watched(census.take(splits, settings.data, workers), total))
    outside = strays.find(Path(str(settings.data.root))) if settings.data.name == "folder" else ()
    report = findings.judge(splits, looks, settings.data.size, near, outside)
    shown = pictures.of(parse.flat(settings), page.shown(report))
    _write(out / "data-check.json", to_json(page.content(report)))
    _write(out / "data-check.html", page.page(report, shown))
    terminal.say(*page.lines(report), f"page: {out / 'data-check.html'}")
    return int(bool(report.wrong))


def _watched(looks: Iterator[census.Look], total: int) -> Iterator[census.Look]:
    console = Console(stderr=True)
    yield from track(looks, "looking", total, console=console, transient=True, disable=not console.is_terminal)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror or error}; use another --out") from error
