"""The pages in a real browser: nothing goes wrong, every picture is there, and they fit a telephone, by day and by night."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from browser import Tab, a_tab, needs_chromium
from given import TREE
from given_pictures import scene
from given_runs import a_run, guesses, write
from test_exhibits import some
from test_report import a_whole_run
from test_report_tasks import a_boxed, a_masked, with_masks

from sft_dist.cli import main
from sft_dist.compare.command import compare
from sft_dist.compare.verdicts import Choice
from sft_dist.report import command as report
from sft_dist.report import exhibits

BACKGROUND = "getComputedStyle(document.body).backgroundColor"
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
LOADED = """Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth > 0, () => false)))
.then(all => [all.length, all.filter(Boolean).length])"""
LONG = "a_class_with_a_name_that_never_ends_and_has_no_space_anywhere_in_it_" * 3


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    needs_chromium()
    with a_tab(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every section."""
    run = a_whole_run(tmp_path_factory.mktemp("runs") / "run", classes=(LONG, "dog", "eel"))
    exhibits.write(run, some(run, layer=LONG))
    (run / "attempts" / "1").mkdir()
    row = {
        "kind": "train",
        "train/loss": 0.5,
        "speed/samples_per_s": 16.0,
        "speed/data_wait_pct": 40,
        "time/data_s": 0.8,
        "time/forward_s": 1.2,
    }
    write(run / "metrics.jsonl", *({"step": step, "samples": 32 * step, **row} for step in range(1, 5)))
    return report.write(run)


@pytest.mark.parametrize(
    ("width", "dark", "paper"),
    [(360, False, "rgb(255, 255, 255)"), (360, True, "rgb(22, 22, 24)"), (1200, False, "rgb(255, 255, 255)")],
    ids=["telephone", "telephone by night", "desk"],
)
def test_a_page_fits_its_screen_shows_its_pictures_and_says_nothing(tab: Tab, page: Path, width: int, dark: bool, paper: str) -> None:
    tab.said.clear()
    tab.look_at(page, width, dark)
    tab.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert tab.value(BACKGROUND) == paper
    there, shown = tab.value(LOADED)
    assert there == shown >= 10
    assert tab.value("document.querySelectorAll('section').length") == 11
    assert tab.value(TOO_WIDE) == 0 and tab.value("innerWidth") == width
    assert tab.said == []


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of recipes, classes and keys with long names; of digits, so that samples have pictures."""
    folder = tmp_path_factory.mktemp("compared")
    for name, wrong, lr in ((LONG[:120], [11], 0.2), ("bad-0", range(12), 0.1), ("bad-1", range(13), 0.1)):
        run = a_run(folder / "runs" / name, guesses(wrong), optim__lr=lr, train__seed=int(name == "bad-1"), track={"notes": LONG})
        for path in (run / "scores.json", run / "predictions" / "step-00000004.jsonl"):
            path.write_text(path.read_text().replace('"dog"', json.dumps(LONG)))
        for i in range(60):
            path.write_text(path.read_text().replace(f'"{i}.png"', f'"digits/{i:04d}"'))
    assert compare([str(folder / "runs")], [], folder / "out", Choice()) == 0
    return folder / "out" / "compare.html"


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a folder in which pictures leak, contradict each other and cannot be read, with long names."""
    folder = tmp_path_factory.mktemp("checked")
    photos = folder / "photos"
    for split, name, seeds in (("train", LONG[:200], range(12)), ("train", "dog", range(11, 24)), ("val", "dog", range(20, 30))):
        for seed in seeds:
            place = photos / split / name / f"{seed}-{LONG[:150]}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            scene(seed).save(place)
    (photos / "val" / "dog" / "no-picture.png").write_bytes(b"none")
    (photos / "val" / LONG[:200]).mkdir()
    scene(50).save(photos / "val" / LONG[:200] / "one.png")
    tree = {**yaml.safe_load(TREE), "data": {"name": "folder", "root": str(photos), "size": 64}}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(folder / "config.yaml"), "--out", str(folder), "--workers", "0"])
    assert ended.value.code == 1
    return folder / "data-check.html"


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of segmentation, looked into."""
    return report.write(with_masks(a_masked(tmp_path_factory.mktemp("masks"), classes=(LONG, "tree", "car", "sky"))[0], LONG))


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of detection, with boxes over two images."""
    return report.write(a_boxed(tmp_path_factory.mktemp("boxes"), classes=(LONG, "white", "plate")))


@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (1200, False)], ids=["telephone", "telephone by night", "desk"])
@pytest.mark.parametrize(("which", "pictures"), [("comparison", 6), ("check", 4), ("masks", 5), ("boxes", 4)])
def test_every_other_page_fits_its_screen_too(
    tab: Tab, request: pytest.FixtureRequest, which: str, pictures: int, width: int, dark: bool
) -> None:
    page = request.getfixturevalue(which)
    tab.said.clear()
    tab.look_at(page, width, dark)
    tab.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert tab.value(BACKGROUND) == ("rgb(22, 22, 24)" if dark else "rgb(255, 255, 255)")
    there, shown = tab.value(LOADED)
    assert there == shown >= pictures
    assert LONG[:60] in tab.value("document.body.innerText")
    assert tab.value(TOO_WIDE) == 0 and tab.value("innerWidth") == width
    assert tab.said == []


def test_what_is_wrong_with_a_page_is_seen(tab: Tab, tmp_path: Path) -> None:
    bad = '<img src="data:image/png;base64,AAAA"><p style="width: 900px">wide</p><script>console.log("loud")</script>'
    (tmp_path / "bad.html").write_text(f"<!DOCTYPE html><meta name=viewport content='width=device-width'>{bad}")
    tab.said.clear()
    tab.look_at(tmp_path / "bad.html", 360, dark=False)
    assert tab.value(LOADED) == [1, 0]
    assert tab.value(TOO_WIDE) > 500
    assert [json.loads(said)["args"][0]["value"] for said in tab.said] == ["loud"]


def test_paper_is_white_by_night_too(tab: Tab, page: Path) -> None:
    tab.look_at(page, 1000, dark=True)
    tab.ask("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert tab.value("getComputedStyle(document.body).color") == "rgb(29, 29, 31)"
    assert tab.value(BACKGROUND) == "rgb(255, 255, 255)"
    assert tab.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    tab.ask("Emulation.setEmulatedMedia", media="")
