"""A comparison for eyes and for scripts: the page opens without network and obeys nothing that a name says."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from given_runs import CLASSES, a_run, guesses

from sft_dist.compare import data, table, telling, verdicts
from sft_dist.compare import page as comparison
from sft_dist.compare.noise import Difference, Spread
from sft_dist.compare.verdicts import Choice, Comparison, Pair
from sft_dist.history import reading
from sft_dist.pages import paper, words

HOSTILE = "<img src=x onerror=alert(1)>\u202e\x1b[31m\n[bold]$x_1$ {{ 7*7 }}</script>\udcff"


def compared(folder: Path, baseline: bool = False, **choice: Any) -> Comparison:
    a_run(folder / "good", guesses([11]), optim__lr=0.2)
    a_run(folder / "bad-0", guesses(range(12)), optim__lr=0.1)
    a_run(folder / "bad-1", guesses(range(13)), optim__lr=0.1, train__seed=1)
    runs, _ = reading.gather([folder])
    return verdicts.judge(runs, [run for run in runs if baseline and run.name == "good"], Choice(**choice))


def hostile(folder: Path) -> Comparison:
    """The same with the nastiest names that files can hold, in place of a run, a class and a sample."""
    run = a_run(folder / "good", guesses([11]), optim__lr=0.2)
    for path in (run / "scores.json", run / "predictions" / "step-00000004.jsonl"):
        path.write_text(path.read_text().replace('"cat"', json.dumps(HOSTILE)).replace('"0.png"', json.dumps(HOSTILE)))
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + f"extra: {json.dumps(HOSTILE[:40])}\n")
    run.rename(folder / HOSTILE.replace("/", "|"))
    other = a_run(folder / "bad", guesses(range(12)), optim__lr=0.1)
    for path in (other / "scores.json", other / "predictions" / "step-00000004.jsonl"):
        path.write_text(path.read_text().replace('"cat"', json.dumps(HOSTILE)).replace('"0.png"', json.dumps(HOSTILE)))
    runs, _ = reading.gather([folder])
    return verdicts.judge(runs, [], Choice())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compared(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return hostile(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def pages(plain: Comparison, nasty: Comparison) -> dict[str, str]:
    """Both as pages, drawn once: curves take most of a page's time."""
    return {name: comparison.page(found, {"1.png": "data:image/png;base64,AAAA"}) for name, found in (("plain", plain), ("hostile", nasty))}


class Page(HTMLParser):
    """The tags of a page, with whether all that opened closed again, and its text."""

    VOID = ("meta", "img", "br", "line", "circle")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.mark.parametrize("names", ["plain", "hostile"])
def test_the_page_is_whole_fetches_nothing_and_runs_nothing(pages: dict[str, str], names: str) -> None:
    text = pages[names]
    page = Page(text)
    assert page.open == []
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base", "form"} == set()
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "srcset"):
            assert str(attributes.get(name) or "data:").startswith("data:"), tag
    assert "default-src 'none'" in text
    text.encode("utf-8")


def test_the_head_of_a_page_with_what_it_may_load_stands_in_one_template() -> None:
    assert [path.name for path in paper.TEMPLATES.iterdir() if "Content-Security-Policy" in path.read_text()] == ["page.html"]


def test_hostile_names_are_shown_as_they_are_and_obeyed_nowhere(pages: dict[str, str]) -> None:
    text = pages["hostile"]
    assert "&lt;img src=x onerror=alert(1)&gt;\\u202e\\x1b[31m\\n[bold]$x_1$ {{ 7*7 }}" in text
    assert "<img src=x" not in text and "49" not in re.findall(r"\$x_1\$ (\S+)", text)
    assert not re.search("[\u202e\x1b]", text)


def test_hostile_names_do_not_reach_the_terminal(nasty: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    table.show(nasty)
    screen = capsys.readouterr().out
    assert not re.search("[\u202e\x1b]", screen)
    assert "[bold]$x_1$" in screen


def test_a_narrow_screen_shows_the_columns_that_decide(plain: Comparison) -> None:
    def titles(width: int) -> list[object]:
        return [column.header for column in table._table(plain, width).columns]

    assert titles(160)[-3:] == ["training", "samples/s", "device-hours"]
    assert titles(70) == ["run", "seeds", "top1, last", "95 % of the mean"]
    assert titles(20) == ["run", "seeds", "top1, last"]


def test_the_first_samples_of_a_single_pair_are_seen_before_anything_is_opened(pages: dict[str, str]) -> None:
    before, _, after = pages["plain"].partition("<summary>6 more that got better</summary>")
    assert "<h3>12 samples got better</h3>" in before
    assert (before.count("<br>truth: "), after.count("<br>truth: ")) == (6, 6)


def test_every_picture_has_words_that_stand_for_it(pages: dict[str, str]) -> None:
    page = Page(pages["plain"])
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    curves = [attributes["alt"] for attributes in pictures if str(attributes["src"]).startswith("data:image/svg+xml")]
    assert curves[:2] == [
        "val/top1 against step: good ends at 0.9833, bad (2 seeds) ends at 0.8, bad (2 seeds) ends at 0.7833.",
        "val/loss against step: good ends at 0.01667, bad (2 seeds) ends at 0.2, bad (2 seeds) ends at 0.2167.",
    ]
    assert "1.png, truth: dog" in [attributes["alt"] for attributes in pictures]
    named = [attributes.get("aria-label") or attributes.get("aria-hidden") for tag, attributes in page.tags if tag == "svg"]
    assert named and all(named)


def test_curves_follow_the_colours_of_the_reader(pages: dict[str, str]) -> None:
    text = pages["plain"]
    page = Page(text)
    first = next(str(attributes["src"]) for _, attributes in page.tags if "svg+xml" in str(attributes.get("src")))
    svg = base64.b64decode(first.partition("base64,")[2]).decode()
    assert "prefers-color-scheme: dark" in svg and "var(--ink)" in svg
    assert "#123456" not in svg and "#000000" not in svg
    assert text.count("prefers-color-scheme: dark") == 1


def test_the_axis_of_samples_is_drawn_only_where_a_step_is_not_the_same_for_all(plain: Comparison, pages: dict[str, str]) -> None:
    assert "By step" in pages["plain"] and "By samples" not in pages["plain"]
    [good, bad] = plain.entries
    other = replace(good, group=replace(good.group, runs=[replace(run, plan={"global_batch": 64}) for run in good.group.runs]))
    assert "By samples" in comparison.page(replace(plain, entries=[other, bad]), {})


def test_without_curves_and_differences_their_sections_are_absent(plain: Comparison) -> None:
    found = plain
    bare = replace(
        found, facts=[], notes=[], entries=[replace(entry, curves=dict.fromkeys(entry.curves, reading.Curves())) for entry in found.entries]
    )
    headings = re.findall("<h2>(.*?)</h2>", comparison.page(bare, {}))
    assert headings == ["Is the difference noise?"]


def test_the_json_names_everything_that_the_screen_shows(tmp_path: Path) -> None:
    content = json.loads(json.dumps(data.content(compared(tmp_path, baseline=True))))
    assert list(content) == [
        "format", "task", "at", "metric", "baseline", "groups", "groups_in_all", "differing", "corrected_for", "pairs", "regressions", "left_out", "notes",
    ]  # fmt: skip
    assert content["differing"] == {"optim.lr": ["0.2", "0.1"]}
    [pair] = content["pairs"]
    assert (pair["one"], pair["other"], pair["samples"], pair["better"]["count"]) == ("good", "bad (2 seeds)", 60, 0)
    assert [moved["id"] for moved in pair["worse"]["samples"]][:2] == ["0.png", "1.png"]
    assert {change["name"] for change in pair["classes"]} == set(CLASSES)
    assert [run["seed"] for run in content["groups"][1]["runs"]] == [0, 1]


def a_pair(verdict: str, p: float, runs: tuple[int, int] = (1, 1), test: str = "McNemar") -> Pair:
    return Pair("a", "b", runs, verdict, Difference(0.0234, 0.0088, 0.0361, 0.001, test), p)


@pytest.mark.parametrize(
    ("pair", "among", "sentence"),
    [
        (
            a_pair("better", 0.002),
            3,
            "b is better than a: +2.3 points of top1, 95 % interval 0.9 to 3.6, McNemar p = 0.002 (Holm over 3 pairs); "
            "one seed each, so it speaks of these two models and not of their recipes",
        ),
        (
            a_pair("noise", 0.214, (3, 5), "crossed t"),
            1,
            "could be noise: b against a +2.3 points of top1, 95 % interval 0.9 to 3.6, crossed t p = 0.21; 3 against 5 seeds",
        ),
        (
            a_pair("worse", 0.00001, (3, 1), "crossed t"),
            1,
            "b is worse than a: +2.3 points of top1, 95 % interval 0.9 to 3.6, crossed t p < 0.001; "
            "3 against 1 seeds, where the single run is taken to vary like the others",
        ),
        (Pair("a", "b", (1, 1), reason="no predictions of b"), 1, "cannot tell b from a: no predictions of b"),
    ],
    ids=["better", "noise", "worse", "unknown"],
)
def test_verdicts_are_sentences(plain: Comparison, pair: Pair, among: int, sentence: str) -> None:
    assert telling.sentence(pair, replace(plain, among=among)) == sentence


def test_numbers_in_words() -> None:
    assert [telling.p_value(p) for p in (0.0004, 0.0123, 0.0999, 0.1, 1.0)] == [
        "p < 0.001",
        "p = 0.012",
        "p = 0.100",
        "p = 0.10",
        "p = 1.00",
    ]
    assert [telling.spread(found) for found in (None, Spread(0.5, 1), Spread(0.5, 2, 0.25, 0.0, 1.0))] == ["-", "0.5000", "0.5000 ± 0.2500"]
    assert [words.speed(value) for value in (None, 1234.5, 12.34)] == ["-", "1234", "12.3"]
    assert [words.duration(value) for value in (None, 59.6, 90_000.0)] == ["-", "0:01:00", "1 day, 1:00:00"]
    assert [words.listed(["a", "b", "c"], most) for most in (2, 3)] == ["a, b and 1 more", "a, b, c"]
