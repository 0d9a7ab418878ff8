"""Files that are not what they were, folders that are not what the config says, and files that want to run code."""

import json
import os
import pickle
import shutil
import socket
import time
from pathlib import Path

import pytest
from harness import KILLED, first_line, image_config, largest_difference, litter, resume, rows, wait_until
from injections import Fault
from tidy import tidied

from sft_dist import manifest

pytestmark = pytest.mark.dist


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_one_flipped_byte_in_any_kind_of_file_is_named_and_the_run_goes_on_from_the_last_whole_checkpoint(shop, saw):
    checkpoints = shop.copy("stopped", "flipped") / "checkpoints"
    flip(checkpoints / "step-00000007" / "model.safetensors", -9)
    flip(checkpoints / "step-00000006" / "optim.safetensors", -9)
    flip(checkpoints / "step-00000005" / "state.json", 20)
    hashes = (checkpoints / "step-00000004" / manifest.NAME).read_bytes()
    flip(checkpoints / "step-00000004" / manifest.NAME, hashes.index(b'"sha256": "') + 12)
    said = resume(shop, "flipped", "save.keep=5")
    for step, file in ((7, "model.safetensors"), (6, "optim.safetensors"), (5, "state.json"), (4, "model.safetensors")):
        line = first_line(said, having=f"step-{step:08d}/{file}")
        assert "has sha256" in line
        assert "its manifest says" in line
    assert "going on from step-00000003" in said
    saw(f"{first_line(said, having='has sha256')}; going on from step-00000003")


def test_truncated_empty_and_missing_files_are_named_and_the_run_goes_on_from_the_last_whole_checkpoint(shop, saw):
    checkpoints = shop.copy("stopped", "cut") / "checkpoints"
    os.truncate(checkpoints / "step-00000007" / "model.safetensors", 100_000)
    os.truncate(checkpoints / "step-00000006" / "optim.safetensors", 0)
    (checkpoints / "step-00000005" / "model.safetensors").unlink()
    said = resume(shop, "cut", "save.keep=5")
    cut, empty, missing = (first_line(said, having=f"step-0000000{step}/") for step in (7, 6, 5))
    assert "has 100000 bytes, its manifest says" in cut
    assert "has 0 bytes" in empty
    assert missing.endswith("is missing")
    assert "going on from step-00000004" in said
    saw(f"{cut}; {empty}; {missing}; going on from step-00000004")


def test_without_a_manifest_or_a_pointer_the_newest_whole_checkpoint_is_found(shop, saw):
    checkpoints = shop.copy("stopped", "garbled") / "checkpoints"
    (checkpoints / "step-00000007" / manifest.NAME).unlink()
    (checkpoints / "step-00000006" / manifest.NAME).write_text('{"format": 1, "files": {"model')
    (checkpoints / "latest").write_text("step-00000099\n")
    said = resume(shop, "garbled", "save.keep=5")
    assert "MANIFEST.json cannot be read (FileNotFoundError" in said
    assert "MANIFEST.json cannot be read (JSONDecodeError" in said
    assert "going on from step-00000005" in said
    shop.copy("stopped", "pointless")
    (shop.path("pointless") / "checkpoints" / "latest").write_text("step-00000099\n")
    line = first_line(resume(shop, "pointless", "save.keep=5"), having="checkpoints/latest does not name")
    saw(f"{first_line(said, having='JSONDecodeError')}; going on from step-00000005; {line}")


@pytest.fixture(scope="module")
def calm(workshop, request):
    """The keys of a run without dropout, whose draws belong to a layout: `calm-whole` is of one process, `calm` of two that are killed."""
    keys = ("model.dropout=none", "train.deterministic=false")
    with tidied(request, workshop.folder / "runs"):
        codes, said = workshop.run("calm-whole", *keys, world=1)
        assert codes == [0], said
        stopped = workshop.start("calm", *keys, "save.every=1 steps", "save.background=false", fault=Fault("killed in forward", step=6))
        assert stopped.wait_for_the_dead() == [KILLED, KILLED]
        yield keys


@pytest.mark.parametrize(("world", "strategy"), [(1, "ddp"), (3, "ddp"), (2, "fsdp"), (2, "zero1")])
def test_a_resume_on_another_world_or_strategy_draws_the_same_curve(shop, calm, saw, world, strategy):
    name = f"calm-{world}-{strategy}"
    shop.copy("calm", name)
    codes, said = shop.run(name, *calm, f"shard.strategy={strategy}", world=world)
    assert codes == [0] * world, said
    worst = largest_difference(rows(shop.path("calm-whole")), rows(shop.path(name)))
    assert worst < (1e-5 if strategy.startswith("zero") else 1e-9)
    assert litter(shop.path(name)) == []
    saw(f"2 ranks, ddp -> {world}, {strategy}: the curve differs by {worst:.1g}")


def test_a_resume_with_another_model_class_count_or_optimizer_is_refused_with_the_keys(shop, saw):
    shop.copy("stopped", "other")
    changes = ("model.name=mobilenet_v2", "data.classes=['3', '5']", "optim.name=sgd")
    codes, said = shop.run("other", *changes, world=1)
    assert codes == [2], said
    for line in ("model.name: 'mobilenet_v3_small' -> 'mobilenet_v2'", "data.classes:", "optim.name: 'adamw' -> 'sgd'"):
        assert line.replace("'", "") in said.replace("'", "")
    saw(
        f"{first_line(said, having='holds a run of another config')}; {first_line(said, having='model.name')}; {first_line(said, having='optim.name')}"
    )
    resume(shop, "other")


def test_a_resume_on_a_changed_data_set_is_refused_with_both_fingerprints(shop, saw, images):
    config = image_config(shop, images)
    codes, said = shop.run("grown", "train.duration=2 steps", world=1, config=config)
    assert codes == [0], said
    shutil.copy(images / "train" / "a" / "00.png", images / "train" / "a" / "99.png")
    codes, said = shop.run("grown", "train.duration=3 steps", world=1, config=config)
    assert codes == [2], said
    line = first_line(said, having="was trained on other data")
    assert line.count("fingerprint") == 2
    saw(line)


def test_two_starts_on_one_folder_lock_the_second_out_by_name(shop, saw):
    first = shop.start("twice", fault=Fault("the disk waits", rank=0, step=4))
    wait_until(lambda: list((shop.path("twice") / "checkpoints").glob(".unfinished-step-00000004*")))
    codes, said = shop.run("twice")
    first.let_go()
    assert codes == [78, 78], said
    line = first_line(said, having="is in use by")
    assert f"process {first.pid(0)} on {socket.gethostname()}" in line
    assert first.wait() == [0, 0], first.said()
    saw(line.replace(str(first.pid(0)), "4711").replace(socket.gethostname(), "node1"))


def test_a_clock_that_goes_backwards_breaks_nothing(shop, saw):
    run = shop.copy("stopped", "back-in-time")
    for age, path in enumerate(sorted((run / "checkpoints").glob("step-*"))):
        os.utime(path, (time.time() - 10_000 * age,) * 2)  # the newest looks oldest
    codes, said = shop.run("back-in-time", fault=Fault("the clock goes backwards"))
    assert codes == [0, 0], said
    assert "resumed at step 7" in said
    resume(shop, "back-in-time")
    saw("resumed at step 7, the newest by its number and the oldest by its date")


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_files_that_want_to_run_code_are_refused_and_their_payload_does_nothing(shop, saw, tmp_path):
    prey = tmp_path / "payload-was-here"
    weights = tmp_path / "evil.pth"
    weights.write_bytes(pickle.dumps(Bomb(prey), protocol=2))
    codes, said = shop.run("evil-weights", f"model.weights={weights}", world=1)
    assert codes == [2], said
    saw(first_line(said, having="is not opened"))

    config = tmp_path / "evil.yaml"
    config.write_text(f"task: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{prey}']]\n")
    codes, said = shop.run("evil-config", world=1, config=config)
    assert codes == [2], said
    saw(first_line(said, having="python/object"))

    run = shop.copy("stopped", "evil-manifest")
    outside = shop.path("stopped") / "checkpoints" / "step-00000003" / "model.safetensors"
    newest = run / "checkpoints" / "step-00000007" / manifest.NAME
    content = json.loads(newest.read_text())
    entry = manifest.entry(outside)._asdict()
    content["files"]["../../../stopped/checkpoints/step-00000003/model.safetensors"] = entry
    newest.write_text(json.dumps(content))
    said = resume(shop, "evil-manifest", "save.keep=5")
    assert "going on from step-00000006" in said
    saw(first_line(said, having="is not a plain file name"))

    run = shop.copy("stopped", "evil-checkpoint")
    folder = run / "checkpoints" / "step-00000007"
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(prey), protocol=2))
    content = json.loads((folder / manifest.NAME).read_text())
    content["files"]["model.safetensors"] = manifest.entry(folder / "model.safetensors")._asdict()
    (folder / manifest.NAME).write_text(json.dumps(content))
    said = resume(shop, "evil-checkpoint", "save.keep=5")
    assert "Traceback" not in said
    assert "going on from step-00000006" in said
    saw(f"pickle as a checkpoint: {first_line(said, having='is not a safetensors file')}")
    assert not prey.exists()
