"""What a run shows at its end is what its files say: the worst answers first, no more than were asked for, and no secret."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from given_runs import TRUTHS, a_run, guesses, write
from given_tasks import a_boxed_run, a_masked_run

from sft_dist import finale, pulse
from sft_dist.errors import InfrastructureError
from sft_dist.finale import Finale
from sft_dist.overlaps import Found, Objects
from sft_dist.pulse import Pulse
from sft_dist.rundir import RunDir


def a_prediction(name: str, label: int, *probs: float) -> dict[str, object]:
    return {"id": name, "label": label, "probs": list(probs)}


def test_the_surest_mistake_comes_first_and_the_surest_right_answer_last(tmp_path: Path) -> None:
    run = RunDir(a_run(tmp_path / "one", guesses([])))
    write(
        run.predictions / "step-00000004.jsonl",
        a_prediction("sure.png", 0, 0.9, 0.1, 0.0),
        a_prediction("doubtful.png", 1, 0.3, 0.4, 0.3),
        a_prediction("close.png", 2, 0.4, 0.6, 0.0),
        a_prediction("far.png", 2, 0.8, 0.1, 0.1),
    )
    shown = finale.look(run, 3, [])
    assert shown.samples == [
        ("far.png", "eel", "cat", 0.8, 0.1), ("close.png", "eel", "dog", 0.6, 0.0), ("doubtful.png", "dog", "dog", 0.4, 0.4),
    ]  # fmt: skip
    assert (list(shown.classes), list(shown.truths), list(shown.guesses)) == (["cat", "dog", "eel"], [0, 1, 2, 2], [0, 1, 1, 0])
    assert finale.look(run, 0, []).samples == []


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    run = RunDir(a_run(tmp_path / "one", guesses([0])))
    assert len(finale.look(run, 100, []).truths) == len(TRUTHS)
    file = run.predictions / "step-00000004.jsonl"
    file.write_text(file.read_text()[:-5] + '\n{"id": 3}\n\0')
    assert len(finale.look(run, 100, []).truths) == len(TRUTHS) - 1
    file.unlink()
    assert finale.look(run, 100, []) == Finale(["cat", "dog", "eel"], (), (), [])
    run.scores.write_text("[]")
    assert finale.look(run, 100, []) == Finale()


def test_a_secret_in_the_name_of_a_sample_or_of_a_class_is_taken_out(tmp_path: Path) -> None:
    run = RunDir(a_run(tmp_path / "one", guesses([])))
    write(
        run.predictions / "step-00000004.jsonl",
        a_prediction("https://me:canary1@host/a.png", 1, 0.2, 0.8),
        a_prediction("canary2/b.png", 0, 0.7, 0.3),
    )
    run.scores.write_text(json.dumps({"best": {"step": 4, "per_class": {"canary2": {}, "dog\x1b[2J": {}}}}))
    assert [(row[0], row[1]) for row in finale.look(run, 100, ["canary2"]).samples] == [
        ("(redacted)/b.png", "(redacted)"), ("https://(redacted)@host/a.png", "dog\\x1b[2J"),
    ]  # fmt: skip


def test_a_file_of_an_export_that_holds_a_secret_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff\0")
    (tmp_path / "README.md").write_text("plain")
    (tmp_path / "config.yaml").write_text("notes: canary1")
    assert [file.name for file in finale.free_of(["canary1"], tmp_path)] == ["README.md", "model.safetensors"]


def test_an_export_that_cannot_be_made_says_why_and_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    run = RunDir(a_run(tmp_path / "one", guesses([])))
    shutil.rmtree(run.checkpoints / "step-00000004")
    with pytest.raises(InfrastructureError, match=r"^it is not exported: .* has no checkpoint yet$"):
        finale.export(run, tmp_path / "model", limit_s=120)
    with pytest.raises(InfrastructureError, match=r"^its export took longer than 0 s$"):
        finale.export(run, tmp_path / "model", limit_s=0.05)


def test_an_export_beside_a_rank_does_not_speak_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its agent, which reads its pulse, nor who looks for what it died of must take the other process for the rank."""
    (tmp_path / "attempt").mkdir()
    places = {"SFT_PULSE": tmp_path, "SFT_ATTEMPT": tmp_path / "attempt", "TORCHELASTIC_ERROR_FILE": tmp_path / "attempt" / "error.json"}
    for name, path in places.items():
        monkeypatch.setenv(name, str(path))
    monkeypatch.setenv("RANK", "0")
    Pulse.of(os.environ).at("end", 40)
    with pytest.raises(InfrastructureError, match="is not the folder of a run"):
        finale.export(RunDir(tmp_path / "nowhere"), tmp_path / "to", 60)
    beat = pulse.read(tmp_path / "0")
    assert beat is not None and (beat.pid, beat.step, beat.phase) == (os.getpid(), 40, "end")
    assert list((tmp_path / "attempt").iterdir()) == []


def test_of_masks_and_boxes_the_worst_images_come_first(tmp_path: Path) -> None:
    truths = [np.array([[0, 0, 1, 1]]), np.array([[0, 0, 1, 255]])]
    run = a_masked_run(tmp_path / "masks", truths, [np.array([[0, 0, 1, 1]]), np.array([[0, 0, 0, 0]])], ("road", "tree"))
    found = finale.look(RunDir(run), 9, [])
    assert (found.columns, found.classes, found.truths) == (("id", "iou", "pixel_accuracy"), (), ())
    assert found.samples == [("val/images/1.png", pytest.approx(1 / 3), pytest.approx(2 / 3)), ("val/images/0.png", 1.0, 1.0)]
    box, two = np.array([[0.0, 0, 9, 9]]), np.array([[0.0, 0, 9, 9], [20, 20, 29, 29]])
    scene = [Objects(box, np.array([0])), Objects(two, np.array([0, 1]))]
    run = a_boxed_run(tmp_path / "boxes", scene, [Found(box, np.array([0]), np.array([0.9]))] * 2)
    found = finale.look(RunDir(run), 9, [])
    assert found.columns == ("id", "f1", "objects", "found", "missed", "false")
    assert found.samples == [("JPEGImages/1.jpg", pytest.approx(2 / 3), 2, 1, 1, 0), ("JPEGImages/0.jpg", 1.0, 1, 1, 0, 0)]


def test_of_boxes_a_detection_counts_by_place_class_and_score_and_not_by_number(tmp_path: Path) -> None:
    """Five images with as many sure detections as objects, but the last, where nothing is and nothing is said."""
    here, there = np.array([[0.0, 0, 9, 9]]), np.array([[50.0, 50, 59, 59]])
    red, no_boxes = np.array([0]), np.empty((0, 4))
    both, crowd = np.concatenate([here, there]), np.array([True])
    scene = [
        Objects(here, red), Objects(here, red), Objects(both, np.array([0, 1])), Objects(here, red, crowd), Objects(no_boxes, np.array([], int)),
    ]  # fmt: skip
    found = [
        Found(there, red, np.array([0.9])), Found(here, red, np.array([0.4])), Found(both, np.array([1, 0]), np.array([0.9, 0.8])),
        Found(here, red, np.array([0.9])), Found(no_boxes, np.array([], int), np.array([])),
    ]  # fmt: skip
    samples = finale.look(RunDir(a_boxed_run(tmp_path / "boxes", scene, found)), 9, []).samples
    assert samples == [
        ("JPEGImages/2.jpg", 0.0, 2, 0, 2, 2), ("JPEGImages/0.jpg", 0.0, 1, 0, 1, 1), ("JPEGImages/1.jpg", 0.0, 1, 0, 1, 0),
        ("JPEGImages/3.jpg", 1.0, 0, 0, 0, 0), ("JPEGImages/4.jpg", 1.0, 0, 0, 0, 0),
    ]  # fmt: skip


def test_an_image_in_which_no_pixel_has_a_class_is_in_no_table(tmp_path: Path) -> None:
    truths = [np.array([[0, 0, 1, 1]]), np.array([[255, 255, 255, 255]])]
    run = a_masked_run(tmp_path / "masks", truths, [np.array([[0, 0, 1, 0]])] * 2, ("road", "tree"))
    assert [row[0] for row in finale.look(RunDir(run), 9, []).samples] == ["val/images/0.png"]
