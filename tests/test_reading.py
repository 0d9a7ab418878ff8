"""A run folder is read in whatever state it is: half written, damaged, foreign, or named by somebody who means harm."""

import json
import os
from pathlib import Path

import pytest
import yaml
from given_runs import TRUTHS, a_run, guesses

from sft_dist.errors import ConfigError
from sft_dist.history import listing, reading, records
from sft_dist.rundir import write_json


def test_a_whole_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = reading.read(a_run(tmp_path / "a", guesses([0, 1, 2]), train__seed=7))
    assert (record.name, record.done, record.fingerprint, record.classes) == ("a", True, "f1", ["cat", "dog", "eel"])
    assert (record.config["train.seed"], record.config["data.mean"], record.plan["total_steps"]) == (7, [0.485, 0.456, 0.406], 4)
    assert record.numbers("last")["val/top1"] == 0.95
    assert (record.step("best"), record.step("test")) == (4, None)
    predictions = record.predictions(4)
    assert predictions.ids[:2] == ["0.png", "1.png"]
    assert (list(predictions.truths), list(predictions.guesses)) == (TRUTHS, guesses([0, 1, 2]))
    assert predictions.certainty[2:4] == (0.1, 0.8)
    assert [row["step"] for row in record.curves().rows] == [1, 2, 2, 3, 4, 4]
    assert (*record.problems, *record.curves().problems, *predictions.problems) == ()


def test_a_last_line_that_was_cut_short_is_left_out_and_told(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", guesses([]))
    for path in (run / "metrics.jsonl", run / "predictions" / "step-00000004.jsonl"):
        path.write_text(path.read_text().rstrip()[:-5])
    record = reading.read(run)
    assert [row["kind"] for row in record.curves().rows] == ["train", "train", "eval", "train", "train"]
    assert record.curves().problems == ("metrics.jsonl: 1 line(s) left out (the last, cut short)",)
    assert len(record.predictions(4).ids) == 59
    assert record.predictions(4).problems == ("step-00000004.jsonl: 1 line(s) left out (the last, cut short)",)


def test_rows_without_what_they_need_and_doubled_ids_are_left_out_and_counted(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", guesses([]))
    good = {"id": "0.png", "label": 0, "probs": [1.0, 0.0]}
    bad = [
        {"id": 3, "label": 0, "probs": [1.0]},
        {"id": "x", "label": 2, "probs": [1.0]},
        {"id": "y", "label": 0, "probs": ["1"]},
        good,
        {},
    ]
    (run / "predictions" / "step-00000004.jsonl").write_text("\n".join(json.dumps(row) for row in [good, *bad]))
    found = reading.read(run).predictions(4)
    assert list(found.ids) == ["0.png"]
    assert found.problems == ("step-00000004.jsonl: 5 row(s) left out (no id, label and probabilities, or an id that was there before)",)


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("scores.json", "{", "scores.json cannot be read"),
        ("scores.json", "[1]", "scores.json holds no object"),
        ("plan.json", "[" * 100_000, "plan.json cannot be read"),
        ("config.yaml", "a: [", "config.yaml cannot be read"),
        ("config.yaml", "when: 2020-13-45", "config.yaml cannot be read"),
        ("config.yaml", "- a", "config.yaml holds no keys"),
    ],
)
def test_a_damaged_file_is_told_and_the_rest_is_read(tmp_path: Path, file: str, text: str, told: str) -> None:
    run = a_run(tmp_path / "a", guesses([]))
    (run / file).write_text(text)
    record = reading.read(run)
    assert [problem[: len(told)] for problem in record.problems] == [told]
    assert record.done and len(record.predictions(4).ids) == 60


def test_a_run_that_has_only_begun_is_a_record_without_scores(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", guesses([]))
    for name in ("scores.json", "outcome.json", "env.json", "metrics.jsonl"):
        (run / name).unlink()
    record = reading.read(run)
    assert (record.numbers("last"), record.step("last"), record.done, record.classes) == ({}, None, False, [])
    assert (list(record.curves().rows), list(record.predictions(2).ids), record.problems) == ([], [], ())


def test_numbers_that_are_none_are_not_taken_for_scores() -> None:
    entry = {"val/a": float("nan"), "val/b": True, "val/c": "0.9", "val/d": None, "val/e": 1, "samples": 3, "val/f": 0.5}
    assert records.numbers(entry) == {"val/e": 1.0, "val/f": 0.5}
    assert records.numbers(["val/a"]) == records.numbers(None) == {}


def test_a_config_of_another_version_is_read_and_deep_or_endless_values_are_not_followed(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", guesses([]))
    (run / "config.yaml").write_text("old: {key: 3}\nendless: &a [*a]\ndeep: {a: {b: {c: {d: {e: 1}}}}}\n")
    assert reading.read(run).config == {"old.key": 3, "endless": "(nested)", "deep.a.b.c": "(nested)"}


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", guesses([]))
    (run / "config.yaml").write_text(f"a: !!python/object/apply:os.mkdir [{tmp_path}/made]")
    assert "could not determine a constructor" in reading.read(run).problems[0]
    assert not (tmp_path / "made").exists()


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", guesses([]))
    (run / "attempts" / "1").mkdir()
    for name in ("scores.json", "metrics.jsonl", "config.yaml", "checkpoints/latest", "attempts/1/attempt.json"):
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    record = reading.read(run)
    [line] = listing.lines(run)[0]
    assert (line.name, line.step, line.best) == ("a", 4, None)
    assert (record.scores, list(record.curves().rows)) == ({}, [])
    assert record.problems == ("config.yaml cannot be read (it is no file)",)


def test_a_few_lines_that_name_a_section_a_million_times_are_not_followed_to_the_end(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", guesses([]))
    inner, outer = (", ".join(f"k{i}: {what}" for i in range(1000)) for what in ("1", "*a"))
    (run / "config.yaml").write_text(f"a: &a {{{inner}}}\nb: &b {{{outer}}}\nc: {{{outer.replace('*a', '*b')}}}\n")
    assert len(reading.read(run).config) == 10_000


def test_runs_are_found_below_a_folder_in_the_order_in_which_people_count(tmp_path: Path) -> None:
    for name in ("run-10", "run-2", "project/run-1"):
        a_run(tmp_path / name, guesses([]))
    (tmp_path / "notes").mkdir()
    (tmp_path / "file.txt").touch()
    (tmp_path / "link").symlink_to(tmp_path / "run-2")
    (tmp_path / ".hidden").mkdir()
    found, passed = reading.find([tmp_path, tmp_path / "run-2"])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["project/run-1", "run-2", "run-10"]
    assert passed == ["notes: no run in it"]


@pytest.mark.parametrize(("name", "told"), [("nowhere", "nowhere is not a folder"), ("empty", "empty is no run's folder and holds none")])
def test_a_place_without_a_run_is_refused(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=told):
        reading.gather([tmp_path / name])


def test_runs_of_one_name_are_told_apart_by_as_much_of_their_paths_as_it_takes(tmp_path: Path) -> None:
    for name in ("x/a/same", "x/b/same", "y/b/same", "other"):
        a_run(tmp_path / name, guesses([]))
    found, _ = reading.gather([tmp_path])
    assert sorted(record.name for record in records.told_apart(found)) == ["a/same", "other", "x/b/same", "y/b/same"]


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", guesses([])).rename(tmp_path / "x\x1b[31m\n\u202e\udcff")
    assert reading.read(run).name == r"x\x1b[31m\n\u202e\udcff"


def test_the_time_of_attempts_is_read_where_every_node_has_told_its_end(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", guesses([]))
    for number, ends in ((1, (70, 80)), (2, (70, None))):
        attempt = run / "attempts" / str(number)
        for node, end in enumerate(ends):
            (attempt / f"node-{node}").mkdir(parents=True)
            if end:
                write_json(attempt / f"node-{node}" / "exit.json", {"code": 0, "time_ns": end * 10**9})
        write_json(attempt / "attempt.json", {"nodes": 2, "procs": 4, "started_ns": 20 * 10**9})
    assert reading.read(run).turns == (records.Turn(8, 60.0), records.Turn(8, None))


@pytest.mark.parametrize(
    ("file", "size", "told"),
    [
        ("plan.json", 65, "plan.json cannot be read (65 MiB; at most 64 MiB are read)"),
        ("config.yaml", 65, "config.yaml cannot be read (65 MiB; at most 64 MiB are read)"),
        ("metrics.jsonl", 257, "metrics.jsonl cannot be read (257 MiB; at most 256 MiB are read)"),
        ("predictions/step-00000004.jsonl", 2049, "step-00000004.jsonl cannot be read (2049 MiB; at most 2048 MiB are read)"),
    ],
)
def test_a_file_that_is_far_too_large_is_left_out_and_told(tmp_path: Path, file: str, size: int, told: str) -> None:
    run = a_run(tmp_path / "run", guesses([]))
    with (run / file).open("ab") as added:
        added.truncate(size << 20)  # a hole: nothing is written
    record = reading.read(run)
    assert [*record.problems, *record.curves().problems, *record.predictions(4).problems] == [told]


def test_the_fingerprint_of_the_data_is_told_by_the_run_or_else_by_its_checkpoint(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", guesses([]))
    assert reading.read(run).fingerprint == "f1"
    env = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps({**env, "data_fingerprint": "f2"}))
    assert reading.read(run).fingerprint == "f2"


@pytest.mark.parametrize(
    "text",
    [
        "a: {b: 1}\nc: [1, 2]\nd: text\n",
        "a: &x {b: 1}\nc: *x\n",
        "a:\n- 1\n- 2\nb: 'x\ny: z'\n",
        "a: 1\na: 2\n",
        "# words\na: |\n  b: 1\n  c\nd: null\n",
        "---\na: 1\n",
    ],
)
def test_a_config_that_is_read_by_its_sections_is_what_it_is_as_a_whole(tmp_path: Path, text: str) -> None:
    run = a_run(tmp_path / "run", guesses([]))
    (run / "config.yaml").write_text(text)
    whole = yaml.safe_load(text)
    assert reading.read(run).config == {
        name: reading.NESTED if isinstance(value, dict) else value for name, value in reading.flat(whole).items()
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n"])
def test_a_config_without_keys_is_told(tmp_path: Path, text: str) -> None:
    run = a_run(tmp_path / "run", guesses([]))
    (run / "config.yaml").write_text(text)
    assert reading.read(run).problems == ("config.yaml holds no keys",)
