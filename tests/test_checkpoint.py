"""A checkpoint is whole or it is not there; what broke is told, and what was good stays."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from given import a_config
from safetensors import safe_open
from torch import Tensor, nn

from sft_dist import archive, checkpoint, manifest, optim, rundir
from sft_dist.checkpoint import About
from sft_dist.config import Config
from sft_dist.engine import Engine
from sft_dist.errors import ConfigError, MachineError
from sft_dist.plan import World
from sft_dist.progress import Progress
from sft_dist.rundir import RunDir
from sft_dist.saver import Saver, WriterError
from sft_dist.sharding import Tensors

ABOUT = About(("cat", "dog", "eel"), "0123456789abcdef")


class Small(nn.Module):
    """A convolution, a batch norm with its statistics, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(images)).mean((2, 3)))


def config_of(name: str = "adamw") -> Config:
    return a_config(optim__name=name, optim__lr=0.01, device="cpu", precision="fp64", model__train="all")


@pytest.fixture(scope="module")
def one_process() -> Iterator[Engine]:
    config = config_of()
    with Engine(config, World()) as engine:
        yield engine


@pytest.fixture
def engine(one_process: Engine) -> Engine:
    return fresh(one_process)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return rundir.create(a_config(run__dir=str(tmp_path)))


def fresh(engine: Engine, name: str = "adamw") -> Engine:
    """The engine with a model as it was drawn, and an optimizer that has not stepped."""
    torch.manual_seed(0)
    engine.prepare(Small(), lambda model: optim.build(model, config_of(name)))
    return engine


def train(engine: Engine, first: int, last: int) -> Engine:
    """Updates `first` to `last`, each on images of its own."""
    for step in range(first, last + 1):
        images = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        with engine.backward_pass(last=True) as backward:
            backward(nn.functional.cross_entropy(engine.wrapped(images), torch.tensor([0, 1, 2, 0])))
        engine.update()
    return engine


def everything(engine: Engine) -> dict[str, Tensor]:
    return {piece.name: piece.tensor.clone() for piece in engine.take()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def progress_at(step: int, best: int | None = None) -> Progress:
    return Progress(
        step=step, evaluated=step, best={"step": best, "val/top1": 0.5} if best else None, since_evaluation={"loss": 0.1 + step}
    )


def save(run: RunDir, engine: Engine, progress: Progress, keep: int) -> None:
    saver = Saver(run, engine, a_config(save__keep=keep).save, ABOUT, lambda *_: None)
    saver.save(progress)
    saver.finish()


def saved(run: RunDir, engine: Engine, *steps: int, best: int | None = None, keep: int = 9) -> None:
    """Train to each of the steps and save there; the optimizer starts anew."""
    fresh(engine)
    done = 0
    for step in steps:
        train(engine, done + 1, step)
        done = step
        save(run, engine, progress_at(step, best if best and best <= step else None), keep)


def names(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def folder(run: RunDir, step: int) -> Path:
    return run.checkpoints / f"step-{step:08d}"


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_restored_run_goes_on_to_the_same_bits(run: RunDir, one_process: Engine, kind: str) -> None:
    engine = train(fresh(one_process, kind), 1, 3)
    save(run, engine, progress_at(3, best=3), keep=1)
    at_save = everything(engine)
    uninterrupted = everything(train(engine, 4, 6))
    restored = fresh(engine, kind)
    assert checkpoint.restore(run, restored, ABOUT, folder(run, 3)) == progress_at(3, best=3)
    assert equal(everything(restored), at_save)
    assert equal(everything(train(restored, 4, 6)), uninterrupted)
    moments = {"adamw": ("exp_avg", "exp_avg_sq", "step"), "sgd": ("momentum_buffer",)}[kind]
    assert {name.split("/")[1] for name in at_save if "/" in name} == set(moments)


def test_a_checkpoint_is_four_files_without_pickle(run: RunDir, engine: Engine) -> None:
    saved(run, engine, 2, best=2)
    assert sorted(path.name for path in folder(run, 2).iterdir()) == [
        "MANIFEST.json",
        "model.safetensors",
        "optim.safetensors",
        "state.json",
    ]
    assert manifest.verify(folder(run, 2)) == []
    state = json.loads((folder(run, 2) / "state.json").read_text())
    assert state == {
        "format": 1,
        "step": 2,
        "classes": ["cat", "dog", "eel"],
        "fingerprint": "0123456789abcdef",
        "progress": {
            "step": 2, "evaluated": 2, "best": {"step": 2, "val/top1": 0.5}, "last": None, "worse_in_a_row": 0, "since_evaluation": {"loss": 2.1},
                "loss_scale": None, "good_steps": 0,
        },
    }  # fmt: skip
    with safe_open(folder(run, 2) / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(Small().state_dict())
    assert [(run.checkpoints / pointer).read_text() for pointer in ("latest", "best")] == ["step-00000002\n"] * 2
    assert names(run) == ["best", "latest", "step-00000002"]


def test_the_newest_and_the_best_stay(run: RunDir, engine: Engine) -> None:
    saved(run, engine, 1, 2, 3, 4, 5, best=2, keep=2)
    assert names(run) == ["best", "latest", "step-00000002", "step-00000004", "step-00000005"]
    save(run, engine, progress_at(6, best=6), keep=2)
    assert names(run) == ["best", "latest", "step-00000005", "step-00000006"]


def test_a_new_run_starts_from_nothing(run: RunDir, engine: Engine) -> None:
    assert checkpoint.newest(run) == (None, [])
    before = everything(engine)
    assert checkpoint.restore(run, engine, ABOUT, None) == Progress()
    assert equal(everything(engine), before)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit in the model": (
        lambda at: flip(at / "model.safetensors"),
        r"model.safetensors has sha256 \w{12}..., its manifest says \w{12}...",
    ),
    "a flipped bit in the optimizer": (lambda at: flip(at / "optim.safetensors"), r"optim.safetensors has sha256 .*, its manifest says .*"),
    "a model cut short": (lambda at: cut(at / "model.safetensors"), r"model.safetensors has \d+ bytes, its manifest says \d+"),
    "no optimizer": (lambda at: (at / "optim.safetensors").unlink(), r"optim.safetensors is missing"),
    "another state": (lambda at: (at / "state.json").write_text("{}"), r"state.json has 2 bytes, its manifest says \d+"),
    "no manifest": (lambda at: (at / "MANIFEST.json").unlink(), r"MANIFEST.json cannot be read \(FileNotFoundError: .*\)"),
    "half a manifest": (lambda at: cut(at / "MANIFEST.json"), r"MANIFEST.json cannot be read \(JSONDecodeError: .*\)"),
    "an empty folder": (lambda at: [path.unlink() for path in at.iterdir()], r"MANIFEST.json cannot be read \(FileNotFoundError: .*\)"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(run: RunDir, engine: Engine, damage: str) -> None:
    saved(run, engine, 1, 2)
    act, told = DAMAGE[damage]
    act(folder(run, 2))
    found, lines = checkpoint.newest(run)
    assert found == folder(run, 1)
    assert re.fullmatch(rf"damaged checkpoint: {folder(run, 2)}/{told}", lines[0])
    assert lines[1:] == ["going on from step-00000001"]
    assert names(run) == ["damaged-step-00000002", "latest", "step-00000001"]
    restored = fresh(engine)
    assert checkpoint.restore(run, restored, ABOUT, found).step == 1
    wanted = everything(restored)
    assert equal(everything(train(fresh(engine), 1, 1)), wanted)


def test_several_damaged_checkpoints_are_passed_over(run: RunDir, engine: Engine) -> None:
    saved(run, engine, 1, 2, 3, 4)
    for step in (2, 3, 4):
        cut(folder(run, step) / "model.safetensors")
    found, lines = checkpoint.newest(run)
    assert found == folder(run, 1)
    assert [line.split("/")[-2] for line in lines[:3]] == ["step-00000004", "step-00000003", "step-00000002"]
    saved(run, engine, 2)
    assert checkpoint.newest(run) == (folder(run, 2), [])


def test_without_any_whole_checkpoint_nothing_starts_anew_in_silence(run: RunDir, engine: Engine) -> None:
    saved(run, engine, 1, 2)
    for step in (1, 2):
        flip(folder(run, step) / "model.safetensors")
    for _ in range(2):  # the same command, started again
        with pytest.raises(MachineError) as caught:
            checkpoint.newest(run)
        assert caught.value.problems[-1] == (
            f"no whole checkpoint is left in {run.checkpoints}; restore one from a backup, or start another run.name"
        )
    saved(run, engine, 3)
    assert checkpoint.newest(run)[0] == folder(run, 3)


def test_what_lacks_nothing_but_its_name_gets_it(run: RunDir, engine: Engine) -> None:
    saved(run, engine, 1, 2)
    folder(run, 2).rename(run.checkpoints / ".unfinished-step-00000002")
    (run.checkpoints / "latest").write_text("step-00000001\n")
    told = ["checkpoints/latest does not name step-00000002, the newest whole checkpoint", "going on from step-00000002"]
    assert checkpoint.newest(run) == (folder(run, 2), told)
    assert names(run) == ["latest", "step-00000001", "step-00000002"]


def test_what_is_half_written_or_half_deleted_is_cleared(run: RunDir, engine: Engine) -> None:
    saved(run, engine, 1)
    for leftover in (".unfinished-step-00000002", ".unfinished-old-step-00000001", ".unfinished-old-damaged-step-00000001"):
        shutil.copytree(folder(run, 1), run.checkpoints / leftover)
    (run.checkpoints / ".unfinished-step-00000002" / "MANIFEST.json").unlink()
    shutil.copytree(folder(run, 1), run.checkpoints / ".unfinished-step-00000001")
    assert checkpoint.newest(run) == (folder(run, 1), [])
    assert names(run) == ["latest", "step-00000001"]


def test_a_step_can_be_saved_again(run: RunDir, engine: Engine) -> None:
    saved(run, engine, 1, 2)
    train(engine, 3, 3)
    save(run, engine, progress_at(2, best=2), keep=2)
    wanted = everything(engine)
    assert checkpoint.restore(run, fresh(engine), ABOUT, folder(run, 2)) == progress_at(2, best=2)
    assert equal(everything(engine), wanted)
    assert names(run) == ["best", "latest", "step-00000001", "step-00000002"]


class Killed(BaseException):
    """The process is gone from here on."""


class PowerCut:
    """Ends the process, as far as it can tell, before its nth change to the disk."""

    CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")

    def __init__(self) -> None:
        self.left: int | None = None
        self.struck = False
        sys.addaudithook(self.look)

    def look(self, event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if self.left is not None and (event in self.CHANGES or writes):
            if not self.left:
                self.struck = True  # from here on nothing changes the disk any more, on whatever thread
                raise Killed
            self.left -= 1

    def strikes(self, after: int, act: Callable[[], object]) -> bool:
        """Whether `act` was cut off after this many changes."""
        self.left, self.struck = after, False
        try:
            act()
        except (Killed, WriterError):  # a death on the thread of the writer is told by the other one
            if not self.struck:
                raise
        finally:
            self.left = None
        return self.struck


@pytest.fixture(scope="module")
def power() -> PowerCut:
    return PowerCut()


@pytest.mark.parametrize("again", [False, True], ids=["the next step", "the same step again"])
def test_a_death_before_any_change_to_the_disk_leaves_a_whole_checkpoint(
    tmp_path: Path, one_process: Engine, power: PowerCut, again: bool
) -> None:
    engine, before = one_process, rundir.create(a_config(run__dir=str(tmp_path), run__name="before"))
    saved(before, engine, 1, 2, best=1, keep=1)
    old = everything(engine)
    train(engine, 3, 3)
    new, step = everything(engine), 2 if again else 3
    outcomes = []
    for changes in range(100):
        run = RunDir(tmp_path / f"{again}-{changes}")
        shutil.copytree(before.path, run.path)
        engine.put(_split(new))
        cut_off = power.strikes(changes, lambda run=run: save(run, engine, progress_at(step, best=1), keep=1))
        if changes % 2:  # the next start dies as well
            power.strikes(changes % 7, lambda run=run: checkpoint.newest(run))
        found, _ = checkpoint.newest(run)
        assert found is not None
        assert checkpoint.restore(run, engine, ABOUT, found).step in (2, step)
        now = everything(engine)
        assert equal(now, old) or equal(now, new)
        assert manifest.verify(folder(run, 1)) == []  # the best one
        outcomes.append("new" if equal(now, new) else "old")
        if not cut_off:
            break
    assert outcomes == sorted(outcomes, reverse=True)  # once there, the new one stays
    assert outcomes.count("old") >= 3
    assert outcomes.count("new") >= 5


def _split(tensors: dict[str, Tensor]) -> Tensors:
    model, optimizer = ({n: t for n, t in tensors.items() if ("/" in n) is moments} for moments in (False, True))
    return Tensors(model, optimizer)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"cannot mount a small file system here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_full_disk_keeps_the_checkpoint_before_and_says_how_much_is_missing(small_disk: Path, engine: Engine) -> None:
    run = rundir.create(a_config(run__dir=str(small_disk)))
    saved(run, engine, 1)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - 8192)
    train(engine, 2, 2)
    told = rf"^cannot save a checkpoint in {run.checkpoints}: no space is left \(0.\d MiB needed, 0.\d MiB free\); step-00000001 is intact\. Make room"
    with pytest.raises(MachineError, match=told):
        save(run, engine, progress_at(2), keep=1)
    assert (names(run), manifest.verify(folder(run, 1))) == (["latest", "step-00000001"], [])
    filler.unlink()
    save(run, engine, progress_at(2), keep=1)
    assert (names(run), checkpoint.newest(run)) == (["latest", "step-00000002"], (folder(run, 2), []))


@pytest.mark.parametrize(
    ("error", "why", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left", "Make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space is left", "Make room"),
        (PermissionError(errno.EACCES, "Permission denied"), r"\[Errno 13\] Permission denied", "Mend that"),
    ],
)
def test_a_write_that_fails_is_the_machines_fault(
    run: RunDir, engine: Engine, monkeypatch: pytest.MonkeyPatch, error: Exception, why: str, remedy: str
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(archive, "write", fails)
    with pytest.raises(MachineError, match=rf"{why} \(0.0 MiB needed, \d+.\d MiB free\); there is no earlier checkpoint\. {remedy}"):
        save(run, engine, progress_at(1), keep=1)
    assert names(run) == []


@pytest.mark.parametrize("other", [About(ABOUT.classes, "fedcba9876543210"), About(("cat", "dog", "fox"), ABOUT.fingerprint)])
def test_a_run_on_other_data_is_not_gone_on_with(run: RunDir, engine: Engine, other: About) -> None:
    saved(run, engine, 1)
    before = everything(fresh(engine))
    told = rf"^{run.path} was trained on other data: 3 classes, fingerprint 0123456789abcdef; the data now has 3 classes, fingerprint {other.fingerprint}"
    with pytest.raises(ConfigError, match=told):
        checkpoint.restore(run, engine, other, folder(run, 1))
    assert equal(everything(engine), before)


def test_a_checkpoint_is_found_by_its_name(run: RunDir, engine: Engine) -> None:
    saved(run, engine, 1, 2, 3, best=2)
    assert [checkpoint.named(run, name) for name in ("best", "latest", "step-00000001")] == [folder(run, n) for n in (2, 3, 1)]
    for name in ("step-00000009", "step-1", "../checkpoints/step-00000001", "worst"):
        with pytest.raises(ConfigError, match=r"has no checkpoint '.*'; it has step-00000001, step-00000002, step-00000003$"):
            checkpoint.named(run, name)
    flip(folder(run, 2) / "model.safetensors")
    with pytest.raises(ConfigError, match=r"step-00000002 is damaged\n.*model.safetensors has sha256"):
        checkpoint.named(run, "best")
    with pytest.raises(ConfigError, match=r"has no checkpoint 'best'; it has none$"):
        checkpoint.named(RunDir(run.path / "nowhere"), "best")


def test_the_weights_alone_can_be_loaded_and_their_classes_told(run: RunDir, engine: Engine) -> None:
    saved(run, engine, 2)
    wanted = {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}
    checkpoint.load_model(folder(run, 2), fresh(engine))
    assert equal(dict(engine.module.state_dict()), wanted)
    assert checkpoint.classes_of(folder(run, 2)) == ("cat", "dog", "eel")


def test_pointers_follow_a_run_that_was_set_back(run: RunDir, engine: Engine) -> None:
    saved(run, engine, 1, 2, 3, best=3)
    checkpoint.point(run, progress_at(2, best=1))
    assert [run.pointed_to(name) for name in ("latest", "best")] == [folder(run, 2), folder(run, 1)]
    checkpoint.point(run, Progress())
    assert [run.pointed_to(name) for name in ("latest", "best")] == [None, None]
