"""What bad input gets, through the door: an error that names key, file or rank and what to do, the right exit code, nothing lost."""

import json
import os
import subprocess

import pytest
from ranks import Job, free_port, output, run_ranks, start, wait

pytestmark = pytest.mark.dist

CONFIG = {
    "task": "classify",
    "data": {"name": "digits", "size": 16, "augment": "none", "flip": 0, "classes": ["0", "1"], "per_class": 20, "workers": 0},
    "model": {"name": "resnet18", "weights": "none", "train": "all", "norm": "train"},
    "batch": {"total": 8, "micro": 4},
    "train": {"duration": "6 steps"},
    "save": {"every": "2 steps"},
    "device": "cpu",
    "report": {"write": "none"},
}


@pytest.fixture(scope="module")
def folder(folder):
    (folder / "config.yaml").write_text(json.dumps({**CONFIG, "run": {"dir": str(folder / "runs"), "name": "good"}}))
    return folder


@pytest.fixture(scope="module")
def images(folder):
    """An ImageFolder of two classes whose last training image of class b is cut short."""
    from PIL import Image

    for split, count in (("train", 12), ("val", 4)):
        for shade, name in ((40, "a"), (200, "b")):
            (folder / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                image = Image.new("RGB", (20, 20), (shade + i, 90, 40))
                image.save(folder / "images" / split / name / f"{i:02d}.png")
    broken = folder / "images" / "train" / "b" / "11.png"
    broken.write_bytes(broken.read_bytes()[:40])
    return folder / "images"


@pytest.fixture(scope="module")
def exits(folder, images):
    """Case -> (exit code, what was said), made one after the other in one process."""
    import torch
    import torchvision

    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), folder / "other.pth")
    on_images = ("data.name=folder", f"data.root={images}", "data.classes=null", "data.per_class=null")
    cases = {
        "good": (),
        "another config": ("optim.lr=0.5",),
        "no CUDA": ("device=cuda", "run.name=cuda"),
        "weights of another architecture": (f"model.weights={folder / 'other.pth'}", "model.norm=frozen", "run.name=other"),
        "unknown model": ("model.name=resnet19", "run.name=model"),
        "too few samples": ("batch.total=100", "run.name=few"),
        "NaN loss": ("optim.lr=1e30", "run.name=nan"),
        "unreadable image": (*on_images, "run.name=unreadable"),
        "no steps": ("train.duration=0.01 epochs", "run.name=none"),
    }
    jobs = [Job(str(folder / "config.yaml"), overrides) for overrides in cases.values()]
    assert run_ranks(1, jobs, folder / "one", call="ranks:note_exits", SFT_TEST_EXITS=str(folder / "exits")) == [0], output(
        folder / "one", 1
    )
    return dict(zip(cases, json.loads((folder / "exits-0").read_text()), strict=True))


@pytest.mark.parametrize(
    ("case", "code", "said"),
    [
        ("good", 0, []),
        ("another config", 2, ["holds a run of another config", "optim.lr: 0.001 -> 0.5", "run.name="]),
        ("no CUDA", 78, ["device = cuda", "use device: cpu"]),
        ("weights of another architecture", 2, ["other.pth", "does not fit the model", "0 of 122 tensors match"]),
        ("unknown model", 2, ["model.name = 'resnet19'", "resnet18"]),
        ("too few samples", 2, ["batch.total = 100", "40 training samples", "use batch.total <= 40"]),
        ("NaN loss", 1, ["step ", "learning rate 1e+30", "use a lower optim.lr", "last good checkpoint: none yet"]),
        ("unreadable image", 2, ["unreadable sample train/b/11.png", "images/train/b/11.png cannot be decoded"]),
        ("no steps", 2, ["train.duration = 0.01 epochs", "less than one step"]),
    ],
)
def test_error_names_the_cause_and_the_remedy(exits, case, code, said):
    found, text = exits[case]
    assert found == code, text
    for part in said:
        assert part in text
    assert "Traceback" not in text


def test_a_failed_run_says_so_in_its_folder(exits, folder):
    outcome = json.loads((folder / "runs" / "nan" / "outcome.json").read_text())
    assert (outcome["outcome"], outcome["attempt"], outcome["error"]["type"], outcome["error"]["rank"]) == ("failed", 1, "DivergedError", 0)
    assert not any((folder / "runs" / "nan" / "checkpoints").glob("step-*"))


def test_nothing_of_the_first_run_was_lost(exits, folder):
    assert json.loads((folder / "runs" / "good" / "outcome.json").read_text())["outcome"] == "done"
    assert json.loads((folder / "runs" / "good" / "env.json").read_text())["host"]
    assert not [path for path in (folder / "runs" / "good").iterdir() if path.stat().st_mode & 0o077 and path.parent.stat().st_mode & 0o077]


def test_an_unreadable_image_ends_both_ranks_alike(folder, images):
    on_images = (
        "data.name=folder",
        f"data.root={images}",
        "data.classes=null",
        "data.per_class=null",
        "train.duration=3 epochs",
        "data.workers=1",
    )
    jobs = [
        Job(str(folder / "config.yaml"), (*on_images, "run.name=both")),
        Job(str(folder / "config.yaml"), ("optim.lr=1e30", "run.name=nan2", "data.workers=1")),
        Job(str(folder / "config.yaml"), ("run.expect_world=3", "run.name=three")),
    ]
    log = folder / "two"
    assert run_ranks(2, jobs, log, call="ranks:note_exits", SFT_TEST_EXITS=str(folder / "exits-two")) == [0, 0], output(log, 2)
    per_rank = [json.loads((folder / f"exits-two-{rank}").read_text()) for rank in (0, 1)]
    assert [[code for code, _ in exits] for exits in per_rank] == [[2, 1, 78], [2, 1, 78]]
    assert "b/11.png" in per_rank[0][0][1]
    assert "last good checkpoint" in per_rank[0][1][1]
    assert "run.expect_world = 3, but 2 processes came" in per_rank[0][2][1]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 30 MiB; only root can mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_and_a_read_only_one_are_the_machines_fault(folder, small_disk):
    full = Job(str(folder / "config.yaml"), (f"run.dir={small_disk}", "run.name=full"))
    log = folder / "full"
    run_ranks(1, [full], log, call="ranks:note_exits", SFT_TEST_EXITS=str(folder / "exits-full"))
    [[code, said]] = json.loads((folder / "exits-full-0").read_text())
    assert code == 78, said
    assert "no space is left" in said
    assert "MiB needed" in said
    assert [path.name for path in (small_disk / "full" / "checkpoints").iterdir()] == []
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    read_only = Job(str(folder / "config.yaml"), (f"run.dir={small_disk}", "run.name=read-only"))
    run_ranks(1, [read_only], log, call="ranks:note_exits", SFT_TEST_EXITS=str(folder / "exits-full"))
    [[code, said]] = json.loads((folder / "exits-full-0").read_text())
    assert code == 78, said
    assert f"cannot write to {small_disk}" in said


def test_a_rank_that_reads_other_data_is_found_out_before_the_first_step(folder):
    """Rank 1 gets another config file under the same name, as on a node with an old copy."""
    other = folder / "other-node"
    other.mkdir()
    (other / "config.yaml").write_text((folder / "config.yaml").read_text().replace('"per_class": 20', '"per_class": 19'))
    jobs = {"0": folder / "config.yaml", "1": other / "config.yaml"}
    port = free_port()
    processes = [
        process
        for rank, config in jobs.items()
        for process in start(2, [Job(str(config), ("run.name=two-minds",), port=port)], folder / f"minds-{rank}", only=int(rank))
    ]
    assert wait(processes) == [78, 78]
    assert "rank 1 reads another config or other data than rank 0" in (folder / "minds-0-0").read_text()
    assert (folder / "minds-1-1").read_text().count("another config") == 0  # rank 0 speaks for all


def test_a_shorter_duration_than_what_is_made_is_refused(exits, folder):
    job = Job(str(folder / "config.yaml"), ("train.duration=3 steps",))
    run_ranks(1, [job], folder / "shorter", call="ranks:note_exits", SFT_TEST_EXITS=str(folder / "exits-shorter"))
    [[code, said]] = json.loads((folder / "exits-shorter-0").read_text())
    assert code == 2
    assert "is 3 steps, but" in said
    assert "has made 6" in said
