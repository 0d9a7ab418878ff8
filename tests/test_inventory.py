"""What a run's checkpoints are told to be, and which of them a rule lets go. Small folders with real manifests; no torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from given import a_config

from sft_dist import inventory, manifest, parse, rundir
from sft_dist.cli import main
from sft_dist.errors import ConfigError, MachineError
from sft_dist.inventory import Rule
from sft_dist.rundir import RunDir

STEPS = (100, 200, 300, 400, 500, 600)


def make_checkpoint(run: RunDir, step: int, size: int = 1000) -> Path:
    folder = run.checkpoints / f"step-{step:08d}"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(size))
    (folder / "state.json").write_text("{}")
    manifest.write(folder, step, {name: manifest.entry(folder / name) for name in ("model.safetensors", "state.json")})
    return folder


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Six checkpoints; the second is the best; each third step was evaluated."""
    config = a_config(run__dir=str(tmp_path))
    run = rundir.create(config)
    run.config.write_text(parse.to_yaml(config))
    for step in STEPS:
        make_checkpoint(run, step)
    (run.checkpoints / "latest").write_text("step-00000600\n")
    (run.checkpoints / "best").write_text("step-00000200\n")
    rows = [
        {"step": 200, "kind": "train", "epoch": 2.0, "train/loss": 0.5},
        {"step": 200, "kind": "eval", "epoch": 2.0, "val/loss": 0.4, "val/top1": 0.75, "train/mean_loss": 0.5},
        {"step": 400, "kind": "train", "epoch": 4.0, "train/loss": 0.5},
    ]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.scores.write_text(json.dumps({"best": {"step": 200, "val/top1": 0.75}, "test": {"step": 200, "test/top1": 0.5, "samples": 4}}))
    return run


def damage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\1" + bytes(999))


def names(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir() if path.is_dir())


def left(run: RunDir) -> list[int]:
    return [inventory.step_of(folder) for folder in inventory.steps(run)]


def tree(path: Path) -> dict[str, tuple[bytes | None, int]]:
    return {str(p.relative_to(path)): (p.read_bytes() if p.is_file() else None, p.stat().st_mtime_ns) for p in path.rglob("*")}


def ends(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code of a command, and all that it printed."""
    try:
        main(["ckpt", *arguments])
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    told = capsys.readouterr()
    return code, told.out + told.err


def test_a_line_tells_step_epoch_size_scores_and_marks(run: RunDir) -> None:
    [first, second, *_, sixth] = inventory.items(run)
    manifest_bytes = (run.checkpoints / "step-00000200" / "MANIFEST.json").stat().st_size
    assert (second.name, second.step, second.epoch, second.bytes, second.marks) == (
        "step-00000200", 200, 2.0, 1002 + manifest_bytes, ("best",)
    )  # fmt: skip
    assert second.scores == {"val/loss": 0.4, "val/top1": 0.75, "test/top1": 0.5}
    assert (first.epoch, first.scores, first.marks, sixth.marks) == (None, {}, (), ("latest",))
    line = inventory.describe(inventory.items(run))[1]
    assert line.startswith("step-00000200  epoch 2  ")
    assert line.endswith("val/loss 0.4000  val/top1 0.7500  test/top1 0.5000  (best)")


def test_what_was_set_aside_is_listed_too(run: RunDir) -> None:
    (run.checkpoints / "step-00000300").rename(run.checkpoints / "damaged-step-00000300")
    (run.checkpoints / ".unfinished-step-00000700").mkdir()
    found = inventory.items(run)
    assert [(item.name, item.step, item.marks) for item in found[-2:]] == [
        (".unfinished-step-00000700", None, ("unfinished",)),
        ("damaged-step-00000300", None, ("damaged",)),
    ]
    assert inventory.describe(found)[-1] == f"7 folders, {sum(item.bytes for item in found) / 2**20:.1f} MiB"


def test_the_same_as_json(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = ends(capsys, "ls", str(run.path), "--json")
    found = json.loads(told)
    assert code == 0
    assert [item["step"] for item in found] == list(STEPS)
    assert found[1]["scores"]["val/top1"] == 0.75


def test_verify_names_file_expected_and_actual_hash_and_changes_nothing(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run.checkpoints / "step-00000300"
    damage(folder)
    (run.checkpoints / ".unfinished-step-00000700").mkdir()
    before = tree(run.path)
    code, told = ends(capsys, "verify", str(run.path))
    assert code == 1
    expected, actual = (manifest.sha256(run.checkpoints / name / "model.safetensors")[:12] for name in ("step-00000200", "step-00000300"))
    assert f"step-00000300  damaged\n  - {folder}/model.safetensors has sha256 {actual}..., its manifest says {expected}..." in told
    assert told.count("whole") == 5
    assert tree(run.path) == before
    assert ends(capsys, "verify", str(run.path), "--checkpoint", "best") == (0, "step-00000200  whole\n")
    assert ends(capsys, "verify", str(run.path), "--checkpoint", "step-00000300")[0] == 1


@pytest.mark.parametrize(
    ("rule", "stay"),
    [
        (Rule(keep=1), [200, 600]),
        (Rule(keep=3), [200, 400, 500, 600]),
        (Rule(keep=9), list(STEPS)),
        (Rule(every_nth=300), [200, 300, 600]),
        (Rule(before=400), [200, 400, 500, 600]),
        (Rule(before=100), list(STEPS)),
        (Rule(keep=2, every_nth=300), [200, 300, 500, 600]),
        (Rule(keep=1, before=301), [200, 400, 500, 600]),
        (Rule(damaged=True), list(STEPS)),
    ],
)
def test_a_rule_leaves_what_it_says_and_the_best_and_the_latest(run: RunDir, rule: Rule, stay: list[int]) -> None:
    gone = inventory.prune(run, rule)
    assert left(run) == stay
    assert [item.name for item in gone] == [f"step-{step:08d}" for step in STEPS if step not in stay]
    assert all(item.bytes > 1000 for item in gone)
    assert names(run) == [f"step-{step:08d}" for step in stay]  # and nothing half deleted


def test_a_dry_run_tells_the_same_and_deletes_nothing(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(run.path)
    code, told = ends(capsys, "prune", str(run.path), "--keep", "4", "--dry-run")
    size = sum(path.stat().st_size for path in (run.checkpoints / "step-00000100").iterdir())
    assert (code, told) == (0, f"would delete step-00000100, {size} bytes\nwould delete 1 folder, {size} bytes\n")
    assert tree(run.path) == before
    assert ends(capsys, "prune", str(run.path), "--keep", "4")[1] == told.replace("would delete", "deleted")


def test_the_newest_whole_one_stays_where_the_latest_is_damaged(run: RunDir) -> None:
    for step in (500, 600):
        damage(run.checkpoints / f"step-{step:08d}")
    (run.checkpoints / "best").unlink()
    inventory.prune(run, Rule(keep=1))
    assert left(run) == [400, 600]


def test_without_a_whole_one_nothing_goes(run: RunDir) -> None:
    for step in STEPS:
        damage(run.checkpoints / f"step-{step:08d}")
    (run.checkpoints / "damaged-step-00000050").mkdir()
    for rule in (Rule(keep=1), Rule(damaged=True)):
        with pytest.raises(ConfigError, match=r"has no whole checkpoint; nothing is deleted"):
            inventory.prune(run, rule)
    assert left(run) == list(STEPS)


def test_damaged_ones_go_only_if_they_are_asked_for(run: RunDir) -> None:
    (run.checkpoints / "step-00000300").rename(run.checkpoints / "damaged-step-00000300")
    inventory.prune(run, Rule(keep=4))
    assert "damaged-step-00000300" in names(run)
    assert [item.name for item in inventory.prune(run, Rule(damaged=True))] == ["damaged-step-00000300"]
    assert names(run) == [f"step-{step:08d}" for step in (200, 400, 500, 600)]


def test_a_run_that_is_alive_is_left_alone(run: RunDir, tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from sft_dist import locks, rundir
with locks.hold(rundir.RunDir(Path({str(run.path)!r}))):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(MachineError, match=rf"is in use by process {holder.pid} on "):
            inventory.prune(run, Rule(keep=1))
        assert left(run) == list(STEPS)
        holder.communicate("")
    inventory.prune(run, Rule(keep=1))
    assert left(run) == [200, 600]


def test_a_deletion_that_was_cut_short_is_never_taken_for_a_checkpoint(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(_: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("shutil.rmtree", dies)
    with pytest.raises(MachineError, match="Input/output error"):
        inventory.prune(run, Rule(keep=5))
    assert ".unfinished-old-step-00000100" in names(run)
    assert left(run) == [200, 300, 400, 500, 600]


@pytest.mark.parametrize("command", ["ls", "verify", "export", "prune"])
@pytest.mark.parametrize(("what", "told"), [("nowhere", "is not the folder of a run"), ("empty", "has no checkpoint yet")])
def test_what_is_no_run_or_has_no_checkpoint_is_said_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, what: str, told: str
) -> None:
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "empty" / "config.yaml").write_text("task: classify\n")
    code, screen = ends(capsys, command, str(tmp_path / what))
    assert code == 2
    assert screen.startswith("sft-dist: cannot run this\n  - ")
    assert told in screen and len(screen.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["verify", "--checkpoint", "step-00000001"], "has no checkpoint 'step-00000001'; it has step-00000100, step-00000200, step-"),
        (["verify", "--checkpoint", "../../x"], "has no checkpoint '../../x'"),
        (["prune"], "nothing says which checkpoints may go; use --keep, --every-nth, --before or --damaged"),
        (["prune", "--keep", "0"], "0 is not in the range x>=1"),
    ],
)
def test_mistakes_end_with_code_2(run: RunDir, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    command, *rest = arguments
    code, screen = ends(capsys, command, str(run.path), *rest)
    assert code == 2
    assert told in screen
    assert left(run) == list(STEPS)


def test_looking_and_pruning_need_no_torch(run: RunDir) -> None:
    calls: list[Any] = [["ls", str(run.path)], ["verify", str(run.path)], ["prune", str(run.path), "--keep", "1"]]
    program = f"""
import sys
from sft_dist.cli import main
for call in {calls!r}:
    try: main(["ckpt", *call])
    except SystemExit as end: assert not end.code, end.code
print("torch" in sys.modules, "numpy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
