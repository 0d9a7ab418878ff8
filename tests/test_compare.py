"""`sft-dist compare` and `sft-dist ls` from the command line: what is shown, what is written, how they end."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from given_runs import a_run, guesses
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from sft_dist.cli import main

ROOT = Path(__file__).resolve().parent.parent


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code of a command, and all that it said."""
    code = 0
    try:
        main(arguments)
    except SystemExit as raised:
        code = raised.code if isinstance(raised.code, int) else int(bool(raised.code))
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path / "runs" / "good", guesses([11]), optim__lr=0.2)
    a_run(tmp_path / "runs" / "bad", guesses(range(12)), optim__lr=0.1)
    return tmp_path / "runs"


def test_a_comparison_is_shown_and_written_into_this_folder(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(runs.rglob("*"))
    code, screen = told(capsys, "compare", "runs")
    assert code == 0
    lines = screen.splitlines()
    assert "  optim.lr: 0.2 (good), 0.1 (bad)" in lines
    assert (
        "  good is better than bad: +18.3 points of top1, 95 % interval 7.2 to 28.2, McNemar p < 0.001; "
        "one seed each, so it speaks of these two models and not of their recipes" in lines
    )
    assert "    recall by class, in points: cat +20.0, dog +20.0, eel +15.0" in lines
    assert "    11 samples better: 0.png (dog -> cat), 1.png (eel -> dog), 2.png (cat -> eel), 3.png (dog -> cat) and 7 more" in lines
    assert lines[-1] == "written: compare.html and compare.json"
    assert json.loads(Path("compare.json").read_text())["pairs"][0]["verdict"] == "better"
    assert Path("compare.html").read_text().startswith("<!DOCTYPE html>")
    assert sorted(runs.rglob("*")) == before  # nothing is written into the runs


def test_runs_are_judged_by_another_score_if_it_is_asked_for(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, screen = told(capsys, "compare", "runs", "--metric", "val/f1_macro", "--baseline", "runs/good")
    assert code == 1
    assert (
        "  bad is worse than good: -18.3 points of f1_macro, 95 % interval -29.1 to -9.0, permutation p = 0.001; "
        "one seed each, so it speaks of these two models and not of their recipes" in screen.splitlines()
    )
    assert "    -18.3 points of top1, 95 % interval -28.2 to -7.2, McNemar p < 0.001, not corrected" in screen.splitlines()
    found = json.loads(Path("compare.json").read_text())
    assert (found["metric"], found["pairs"][0]["difference"]["test"]) == ("val/f1_macro", "permutation")
    assert found["pairs"][0]["beside"]["val/top1"]["test"] == "McNemar"


def test_a_folder_for_what_is_written_is_made_but_never_a_runs_own(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "compare", "runs", "--out", "far/away")[0] == 0
    assert sorted(path.name for path in Path("far/away").iterdir()) == ["compare.html", "compare.json"]
    code, screen = told(capsys, "compare", "runs", "--out", "runs/good")
    assert code == 2 and "is a run's folder, where a comparison has no place; choose another with --out" in screen


def test_worse_than_the_baseline_is_exit_code_1(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, screen = told(capsys, "compare", "runs", "--baseline", "runs/good")
    assert code == 1
    assert screen.splitlines()[-2] == "regression: bad is worse than good, beyond noise (p < 0.05)"
    code, screen = told(capsys, "compare", "runs", "--baseline", "runs/bad")
    assert code == 0
    assert screen.splitlines()[-2] == "no regression against bad"


def test_what_cannot_be_held_against_the_baseline_is_no_pass(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "bad" / "predictions" / "step-00000004.jsonl").unlink()
    code, screen = told(capsys, "compare", "runs", "--baseline", "runs/good")
    assert code == 2
    assert "cannot tell bad from good: no predictions of bad" in screen
    assert "no regression" not in screen
    (runs / "bad" / "scores.json").unlink()
    assert told(capsys, "compare", "runs", "--baseline", "runs/good")[0] == 2


def test_a_run_that_died_beside_one_that_is_as_good_is_no_pass(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(runs / "as-good", guesses([11]), optim__lr=0.3)
    (runs / "bad" / "scores.json").unlink()
    code, screen = told(capsys, "compare", "runs", "--baseline", "runs/good")
    assert code == 2
    assert "bad has no val/top1 to hold against good" in screen and "no regression" not in screen
    assert json.loads(Path("compare.json").read_text())["left_out"] == ["bad"]
    assert told(capsys, "compare", "runs", "--baseline", "runs/good", "--where", "optim.lr>0.2")[0] == 0


def test_damage_is_told_and_the_rest_is_compared(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "empty").mkdir()
    a_run(runs / "begun", guesses([]), optim__lr=0.5, outcome=None)
    (runs / "begun" / "scores.json").write_text("{")
    with (runs / "bad" / "metrics.jsonl").open("a") as file:
        file.write('{"step"')
    code, screen = told(capsys, "compare", "runs")
    assert code == 0
    assert [line for line in screen.splitlines() if line.startswith("note: ")] == [
        "note: empty: no run in it",
        "note: begun: scores.json cannot be read (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
        "note: begun is left out: unfinished, without val/top1",
        "note: bad: metrics.jsonl: 1 line(s) left out (the last, cut short)",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["runs", "--where", "optim.lr"], "'optim.lr' is no condition"),
        (["runs", "--where", "optim.lr>0.1"], "there are no two recipes to compare: 1 with val/top1"),
        (["runs", "--sort", "nothing"], "--sort nothing: no run has that"),
        (["runs", "--metric", "val/loss"], "--metric val/loss: runs are judged by one of val/top1, val/f1_macro, val/precision_macro"),
        (["runs", "--baseline", "runs", "--top", "3"], "--top with --baseline would hide regressions"),
        (["wandb:pets"], "wandb:pets names no runs in W&B"),
        ([], "Missing argument 'RUN...'"),
    ],
)
def test_mistakes_are_exit_code_2(runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    code, screen = told(capsys, "compare", *arguments)
    assert code == 2 and said in screen
    assert not Path("compare.json").exists()


HUGE = "1" + 400 * "0"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("scores.json", '"best": {"step": 4,', f'"best": {{"step": {HUGE},'),
        ("scores.json", '"val/loss": ', f'"val/loss": {HUGE}, "val/other": '),
        ("plan.json", '"world": 1', f'"world": {HUGE}'),
        ("plan.json", '"global_batch": 32', '"global_batch": [32]'),
        ("metrics.jsonl", '"step": 3', f'"step": {HUGE}'),
        ("metrics.jsonl", '"speed/samples_per_s": 16.0', '"speed/samples_per_s": 1e-300'),
        ("config.yaml", "task: classify", "task: classify\nx: 0x" + 6000 * "f"),
        ("predictions/step-00000004.jsonl", '"label": 1', '"label": true'),
    ],
)
def test_a_number_that_nothing_can_compute_with_does_not_keep_the_others_from_being_shown(
    runs: Path, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str
) -> None:
    path = runs / "bad" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    for command in ("ls", "compare"):
        code, said = told(capsys, command, "runs")
        assert code == 0 and "good" in said and "bad" in said, said


def test_a_run_without_a_score_at_its_best_has_a_dash_there(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = json.loads((runs / "bad" / "scores.json").read_text())
    (runs / "bad" / "scores.json").write_text(json.dumps({"last": scores["last"]}))
    code, said = told(capsys, "compare", "runs")
    assert code == 0, said
    assert '<td class="number">0.8000</td><td class="number">-</td><td class="number">-</td>' in Path("compare.html").read_text()


def test_ls_lists_the_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "empty").mkdir()
    code, screen = told(capsys, "ls")
    lines = screen.splitlines()
    assert code == 0
    assert [line[:47].rstrip() for line in lines[:2]] == [
        "bad   done  4/4  val/top1 0.8000  seed 0  " + lines[0][42:47],
        "good  done  4/4  val/top1 0.9833  seed 0  " + lines[1][42:47],
    ]
    assert lines[2] == "passed over empty: no run in it"
    code, screen = told(capsys, "ls", "runs/good", "--json")
    assert [(line["name"], line["step"], line["best"]) for line in json.loads(screen)] == [("good", 4, pytest.approx(59 / 60))]
    assert told(capsys, "ls", "nowhere")[0] == 2


def test_neither_command_imports_torch(runs: Path) -> None:
    program = """
import sys
from sft_dist.cli import main
for command in (["ls"], ["compare", "runs"]):
    try:
        main(command)
    except SystemExit as ended:
        assert not ended.code
    print("HEAVY", sorted({"torch", "torchvision", "accelerate"} & set(sys.modules)))
    print("LIGHT", sorted({"numpy", "scipy", "matplotlib", "jinja2"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith(("HEAVY", "LIGHT"))]
    assert told == ["HEAVY []", "LIGHT []", "HEAVY []", "LIGHT ['jinja2', 'matplotlib', 'numpy', 'scipy']"]


@pytest.mark.dist
def test_two_real_runs_are_compared_as_scipy_and_scikit_learn_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shared = [
        str(ROOT / "configs" / "quickstart.yaml"),
        "train.duration=6 steps",
        "data.workers=0",
        "eval.every=6 steps",
        "schedule.warmup=0 steps",
    ]
    program = "import sys; from sft_dist.cli import main\nfor line in sys.argv[1:]:\n    main(line.split('|'))"
    lines = ["|".join(["train", *shared, f"optim.lr={lr}", f"run.name=lr-{lr}"]) for lr in (0.001, 0.0001)]
    compare = "compare|runs|--sort|val/loss"
    subprocess.run([sys.executable, "-c", program, *lines, compare], cwd=tmp_path, check=True, timeout=280)

    found = json.loads((tmp_path / "compare.json").read_text())
    [pair] = found["pairs"]
    names = [pair["one"], pair["other"]]
    rows = [
        [json.loads(line) for line in (tmp_path / "runs" / name / "predictions" / "step-00000006.jsonl").read_text().splitlines()]
        for name in names
    ]
    truths = [row["label"] for row in rows[0]]
    said = [[max(range(10), key=lambda i: row["probs"][i]) for row in those] for those in rows]
    right = [[guess == truth for guess, truth in zip(those, truths, strict=True)] for those in said]
    lost, won = sum(a and not b for a, b in zip(*right, strict=True)), sum(b and not a for a, b in zip(*right, strict=True))
    assert pair["samples"] == len(truths) == 359
    assert pair["p_corrected"] == pytest.approx(stats.binomtest(lost, lost + won).pvalue)
    assert pair["difference"]["value"] == pytest.approx(accuracy_score(truths, said[1]) - accuracy_score(truths, said[0]))
    f1 = [f1_score(truths, those, average="macro") for those in said]
    assert pair["beside"]["val/f1_macro"]["value"] == pytest.approx(f1[1] - f1[0])
    theirs = stats.permutation_test(
        [np.array(those) for those in said],
        lambda one, other: abs(f1_score(truths, other, average="macro") - f1_score(truths, one, average="macro")),
        permutation_type="samples",
        vectorized=False,
        alternative="greater",
        n_resamples=400,
        rng=np.random.default_rng(0),
    ).pvalue
    assert pair["beside"]["val/f1_macro"]["p"] == pytest.approx(theirs, abs=4 * np.sqrt(max(theirs * (1 - theirs), 1 / 400) / 400))
    assert (pair["better"]["count"], pair["worse"]["count"]) == (won, lost)
    scores = {group["label"]: group["last"]["mean"] for group in found["groups"]}
    assert [scores[name] for name in names] == pytest.approx([accuracy_score(truths, those) for those in said])
    assert found["differing"] == {"optim.lr": [found["groups"][0]["label"][3:], found["groups"][1]["label"][3:]]}
