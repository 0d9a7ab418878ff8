"""`sft-dist watch`: runs as they go, in the terminal, from any machine that sees their files."""

import time
from contextlib import suppress
from pathlib import Path

from rich.console import RenderableType
from rich.live import Live

from sft_dist.errors import ConfigError
from sft_dist.history import reading
from sft_dist.pages import terminal
from sft_dist.watch import screen, sight
from sft_dist.watch.rows import Rows

MOST = 20  # runs of a folder: those that wrote last
TAIL = 256 * 1024  # bytes of the metrics of one of many


def watch(place: Path, once: bool, every_s: float) -> None:
    """Look until the run is over, or until ctrl-C; at a folder of runs, where there is no terminal, once. once: look once.

    Raises ConfigError where there is no run.
    """
    console = terminal.screen()
    readers: dict[Path, Rows] = {}
    with suppress(KeyboardInterrupt):
        shown, over = _look(place, readers, console.width)
        if over is None:
            once, over = once or not console.is_terminal, False
        if once or over or not console.is_terminal:
            console.print(shown)
        if once or over:
            return
        with Live(shown, console=console, auto_refresh=False) as live:
            while not over:
                time.sleep(every_s)
                shown, over = _look(place, readers, console.width)
                live.update(shown, refresh=True)


def _look(place: Path, readers: dict[Path, Rows], width: int) -> tuple[RenderableType, bool | None]:
    """What to show, and whether nothing will change any more; None for a folder of runs, where another may always begin."""
    if not place.is_dir():
        raise ConfigError(f"{place} is not a folder; name a run's folder, or a folder that holds runs")
    if reading.is_run(path.name for path in place.iterdir()):
        found = sight.look(place, readers.setdefault(place, Rows(place / "metrics.jsonl")), time.time())
        return screen.one(found, width), found.over
    folders, _ = reading.find([place])
    latest = sorted(folders, key=reading.touched, reverse=True)[:MOST]
    sights = [sight.look(folder, readers.setdefault(folder, Rows(folder / "metrics.jsonl", TAIL)), time.time()) for folder in latest]
    return screen.many(sights, len(folders) - len(latest), width), None
