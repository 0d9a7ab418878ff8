"""The report of a run: its numbers are those of scores.json, it obeys nothing that a name says, and a damaged run has one too."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from given_runs import CLASSES, TRUTHS, a_run, guesses, write
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from test_exhibits import some
from test_pages import HOSTILE, Page

from sft_dist.errors import ConfigError
from sft_dist.report import command as report
from sft_dist.report import exhibits
from sft_dist.report.exhibits import Drift

WRONG = [0, 3, 6, 1, 2]  # of 60 samples: three cats, a dog and an eel


def a_whole_run(folder: Path, wrong: Sequence[int] = WRONG, classes: Sequence[str] = CLASSES, **keys: Any) -> Path:
    """`a_run` with all that an evaluation writes, as scikit-learn computes it."""
    said = guesses(wrong)
    a_run(folder, said, **keys)
    columns = zip(classes, *precision_recall_fscore_support(TRUTHS, said), strict=True)
    per_class = {name: {"precision": p, "recall": r, "f1": f, "support": int(n)} for name, p, r, f, n in columns}
    scores = json.loads((folder / "scores.json").read_text())
    for entry in scores.values():
        entry |= {"per_class": per_class, "confusion": confusion_matrix(TRUTHS, said).tolist()}
    write(folder / "scores.json", scores)
    return folder


def drawn(folder: Path, **choice: Any) -> Page:
    return Page(report.write(folder, **choice).read_text())


def cells(page: Page) -> str:
    """The text of a page, a space for each gap."""
    return re.sub(r"\s+", " ", page.words)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return drawn(a_whole_run(tmp_path_factory.mktemp("plain") / "good"))


def test_scores_by_class_are_those_of_scikit_learn(plain: Page) -> None:
    precision, recall, f1, support = precision_recall_fscore_support(TRUTHS, guesses(WRONG))
    for i, name in enumerate(CLASSES):
        assert re.search(rf"{name}\s*{precision[i]:.4f}\s*{recall[i]:.4f}\s*{f1[i]:.4f}\s*{support[i]}\s", plain.words), name


def test_the_matrix_is_that_of_scores_json(plain: Page) -> None:
    matrix = confusion_matrix(TRUTHS, guesses(WRONG))
    assert re.search("cat" + "".join(rf"\s*{cell}" for cell in matrix[0]), plain.words)
    assert "cat, taken for dog: 3 times (15 % of its samples)" in plain.words
    assert "eel, taken for cat: once (5 % of its samples)" in plain.words


@pytest.mark.parametrize(("classes", "shown"), [(CLASSES, False), ((*CLASSES, "fox", "gnu", "hen"), True)], ids=["three classes", "six"])
def test_top5_is_shown_only_where_it_can_be_wrong(tmp_path: Path, classes: Sequence[str], shown: bool) -> None:
    run = a_whole_run(tmp_path / "run")
    scores = json.loads((run / "scores.json").read_text())
    for entry in scores.values():
        entry["val/top5"] = 1.0
        entry["per_class"] = {name: {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 10} for name in classes}
    write(run / "scores.json", scores)
    assert ("val/top5" in drawn(run).words) is shown


def test_the_verdict_is_a_sentence_with_what_it_rests_on(plain: Page) -> None:
    told = cells(plain)
    assert "Done. top1 0.9167 on 60 validation samples (95 % interval 0.819 to 0.964), the best evaluation, at step 4 of 4." in told
    assert "Always saying the commonest class would score 0.3333." in told
    assert "The weakest class is cat: F1 0.895 over 20 samples." in told


def test_calibration_and_samples_are_those_of_the_predictions(plain: Page) -> None:
    told = cells(plain)
    assert "Its confidence is 0.800 on average, and it is right in 0.917 of cases: less sure than it could be." in told
    assert "Expected calibration error 0.1167" in told
    assert "5 wrong of 60" in told and "0.png" in told


def test_the_page_is_whole_fetches_nothing_and_runs_nothing(plain: Page) -> None:
    assert plain.open == []
    assert {tag for tag, _ in plain.tags} & {"script", "link", "iframe", "object", "base", "form"} == set()
    for tag, attributes in plain.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert str(attributes.get("src") or "data:").startswith("data:") and str(attributes.get("href") or "#").startswith("#"), tag
        assert tag != "img" or attributes.get("alt"), attributes
    ids = {attributes.get("id") for _, attributes in plain.tags}
    assert {str(attributes["href"])[1:] for tag, attributes in plain.tags if tag == "a"} <= ids


def test_pictures_of_the_samples_are_shown_where_the_data_is(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for number in WRONG:
        Image.new("RGB", (30, 20), (40 * number, 9, 9)).save(root / f"{number}.png")
    page = drawn(a_whole_run(tmp_path / "run", data__name="folder", data__root=str(root)))
    told = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert "0.png: cat, taken for dog" in told and "5.png: eel, taken for that" not in told


def test_hostile_names_are_shown_as_they_are_and_obeyed_nowhere(tmp_path: Path) -> None:
    run = a_whole_run(tmp_path / "run", classes=(HOSTILE, "dog", "eel"))
    path = run / "predictions" / "step-00000004.jsonl"
    path.write_text(path.read_text().replace('"0.png"', json.dumps(HOSTILE)))
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + f"extra: {json.dumps(HOSTILE[:40])}\n")
    write(run / "outcome.json", {"outcome": "failed", "attempt": 1, "error": {"message": HOSTILE}, "reason": HOSTILE})
    write(run / "env.json", {HOSTILE: HOSTILE})
    run = run.rename(tmp_path / HOSTILE.replace("/", "|"))
    text = report.write(run).read_text()
    assert text.count("&lt;img src=x onerror=alert(1)&gt;\\u202e\\x1b[31m\\n[bold]$x_1$ {{ 7*7 }}") > 5
    assert "<img src=x" not in text and not re.search("[\u202e\x1b]", text)
    assert Page(text).open == []


BROKEN: dict[str, list[Any]] = {
    "scores.json": ["", "[]", '{"best": 3}', '{"best": {"step": 4, "val/top1": "x", "per_class": [], "confusion": 7}}',
                    '{"best": {"step": 4, "per_class": {"cat": {"precision": 1e999, "recall": 0, "f1": 0, "support": -3}}, "confusion": [[1, 2]]}}',
                    '{"best": {"step": 4, "per_class": {"cat": {"precision": 0, "recall": 0, "f1": 0, "support": 0}}, "confusion": [[0]]}}',
                    '{"best": {"step": 4, "val/top1": 7, "per_class": {"cat": {"precision": 0, "recall": 0, "f1": 0, "support": 10}}}}',
                    '{"best": {"step": 4, "val/top1": 1, "per_class": {"cat": {"precision": 0, "recall": 0, "f1": 0, "support": 1e300}}}}'],
    "metrics.jsonl": ["", '{"step": 1, "kind": "train", "speed/data_wait_pct": 900, "speed/samples_per_s": 0}\n{"step": ', "\0\xff\n[]\n"],
    "predictions/step-00000004.jsonl": ["", "{}\n", '{"id": "a", "label": 7, "probs": [0.1, 5.0, -3, 0, 0, 0, 0, 0.5]}\n'],
    "config.yaml": ["", "- 1\n", "{data: {name: [1]}, model: 7}\n"],
    "plan.json": ["", '{"total_steps": {"a": [1]}}'],
    "outcome.json": ["", '{"outcome": ["x"], "reason": 3, "attempt": "one"}'],
    "attempts/1/attempt.json": ['{"started_ns": 1e300, "nodes": "two", "from_step": -1e99}'],
    "attempts/2/rewound.jsonl": ['{"step": [1], "kind": "train"}\n'],
    "attempts/2/rank-0.json": ['{"rank": "zero"}'],
    "report/exhibits.json": ["", "[]", '{"step": "x"}', '{"cams": [{"id": "a", "truth": "b", "said": "c", "confidence": 0.5, '
                             '"plain": "../../secret.png", "for_said": "x.png"}]}', '{"embedding": {"labels": [0], "before": '
                             '{"points": [], "explained": [1, 0], "neighbours": 0}, "after": {"points": [], "explained": [1, 0], "neighbours": 0}}}'],
}  # fmt: skip


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_whole_run(tmp_path_factory.mktemp("damaged") / "run")


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, all_of_it in BROKEN.items() for content in all_of_it])
def test_a_damaged_run_has_a_page_too(damaged: Path, name: str, content: str) -> None:
    path = damaged / name
    before = path.read_bytes() if path.exists() else None
    try:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(content, encoding="utf-8")
        page = drawn(damaged)
    finally:
        path.write_bytes(before) if before is not None else path.unlink()
    assert page.open == [] and "run" in page.words


def test_what_was_looked_into_says_of_which_step_it_is(tmp_path: Path) -> None:
    run = a_whole_run(tmp_path / "run")
    made = some(run)
    exhibits.write(run, made)
    told = cells(drawn(run))
    assert "at layer1.0.conv1, at step 4: red" in told and "by step 4, relative" in told and "and at step 4, by principal" in told
    assert "does it again" not in told
    exhibits.write(run, made.model_copy(update={"step": 2}))
    told = cells(drawn(run))
    assert "at layer1.0.conv1, at step 2: red" in told
    assert "data and model were looked into at step 2, the rest shows step 4; --look does it again" in told


def test_the_verdict_names_no_total_that_the_plan_does_not(tmp_path: Path) -> None:
    run = a_whole_run(tmp_path / "run")
    write(run / "plan.json", {"total_steps": None})
    assert "the best evaluation, at step 4." in cells(drawn(run))


def test_a_layer_that_was_zero_has_no_relative_change(tmp_path: Path) -> None:
    run = a_whole_run(tmp_path / "run")
    token = Drift(layer="class_token", elements=16, change=None, learning=True, fresh=True)
    exhibits.write(run, some(run).model_copy(update={"drift": (token,)}))
    assert re.search(r"class_token\s*from zero\s*16\s*drawn anew", drawn(run).words)


def test_a_run_that_has_hardly_begun_has_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("task: classify\n")
    (tmp_path / "attempts").mkdir()
    told = cells(drawn(tmp_path))
    assert "Unfinished: it still runs, or was killed. There is no evaluation yet." in told
    assert "Calibration" not in told and "Curves" not in told


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ConfigError, match="is no run's folder"):
            report.check(place)


def test_the_command_writes_into_the_run_without_torch(tmp_path: Path) -> None:
    run = a_whole_run(tmp_path / "run")
    program = f"import sys\nfrom sft_dist.cli import cli\ncli.main(['report', {str(run)!r}], standalone_mode=False)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n")[:2] == [f"written: {run / 'report.html'}", "False"], done.stderr
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>") or "<!DOCTYPE html>" in (run / "report.html").read_text()[:9]


def test_many_classes_are_drawn_and_not_tabled(tmp_path: Path) -> None:
    run = a_whole_run(tmp_path / "run")
    names = [f"class {i}" for i in range(40)]
    row = {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 2}
    matrix = (2 * np.eye(40, dtype=int)).tolist()
    entry = {"step": 4, "val/top1": 1.0, "per_class": dict.fromkeys(names, row), "confusion": matrix}
    write(run / "scores.json", {"best": entry, "last": entry})
    page = drawn(run)
    assert "Confusion matrix of 40 classes: 80 of 80 samples are on its diagonal." in [a.get("alt") for _, a in page.tags]
    assert "Precision, recall and F1 of 40 classes" in page.words
