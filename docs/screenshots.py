"""Makes docs/pictures/ from the pages that `make demo` left behind, by day and by night: `make screenshots`. It needs Debian's chromium."""

import base64
import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # where the browser is driven from

from browser import Tab, a_tab  # noqa: E402

RUNS = ROOT / "runs" / "demo"
PICTURES = ROOT / "docs" / "pictures"
WIDTH, MARGIN, SCALE = 1040, 8, 1.5  # in CSS pixels; and the picture's pixels to one of them
COLOURS = 256  # of a palette: a page has few more, and a file of them is half as large
LARGEST = 200_000  # bytes


@dataclass(frozen=True)
class Shot:
    """A part of a page. first, last: what is at its upper and its lower edge, as CSS selects it."""

    page: Path
    first: str
    last: str


SHOTS = {
    "report": Shot(RUNS / "fine-tuned-0" / "report.html", "h1", "#curves figure"),
    "report-classes": Shot(RUNS / "fine-tuned-0" / "report.html", "#classes", "#classes .beside"),
    "report-looks": Shot(RUNS / "fine-tuned-0" / "report.html", "#looks", "#looks .triples"),
    "report-map": Shot(RUNS / "fine-tuned-0" / "report.html", "#map", "#map"),
    "compare": Shot(RUNS / "compare.html", "h1", ".pair .samples"),
    "compare-curves": Shot(RUNS / "compare.html", "h2:nth-last-of-type(1)", "details[open] .gallery"),
}


def main() -> None:
    if missing := sorted({str(shot.page.relative_to(ROOT)) for shot in SHOTS.values() if not shot.page.exists()}):
        sys.exit(f"{' and '.join(missing)} is missing; `make demo` writes it")
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, a_tab(Path(folder)) as tab:
        for name, shot in SHOTS.items():
            for dark in (False, True):
                path = PICTURES / f"{name}{'-dark' if dark else ''}.png"
                path.write_bytes(taken(tab, shot, dark))
                print(f"{path.relative_to(ROOT)}  {path.stat().st_size:,} bytes")
                assert path.stat().st_size < LARGEST, "too large for a page that people wait for"


def taken(tab: Tab, shot: Shot, dark: bool) -> bytes:
    """A PNG of a palette."""
    tab.look_at(shot.page, WIDTH, dark)
    top, bottom = (
        tab.value(f"document.querySelector({selector!r}).getBoundingClientRect().{edge}")
        for selector, edge in ((shot.first, "top"), (shot.last, "bottom"))
    )
    clip = {"x": 0, "y": max(0, top - MARGIN), "width": WIDTH, "height": bottom - top + 2 * MARGIN, "scale": SCALE}
    shown = tab.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
    made = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(shown))).convert("RGB")
    picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(made, "PNG", optimize=True)
    return made.getvalue()


if __name__ == "__main__":
    main()
