"""Steps that go wrong: numbers, images, workers, memory, and a rank that raises."""

import json
import os
import signal
import struct
import zlib

import pytest
from harness import children, first_line, image_config, largest_difference, litter, resume, rows, wait_until, whole_steps
from injections import Fault
from ranks import logged
from waits import WAITS

pytestmark = pytest.mark.dist


def test_nan_on_one_rank_stops_all_alike_and_names_rank_and_samples(shop, saw):
    codes, said = shop.run("nan", fault=Fault("NaN loss", rank=1, step=6))
    assert codes == [1, 1], said
    line = first_line(said, having="its share of the loss is nan")
    assert line.startswith("rank 1: ")
    assert "over the training samples" in line
    assert "last good checkpoint: step-00000004" in said
    assert said.count("its share of the loss is nan") == 1
    saw(f"{first_line(said, having='step 6: loss nan')}; {line}")
    resume(shop, "nan")


def test_an_infinite_gradient_on_one_rank_stops_all_alike_with_the_limit(shop, saw):
    codes, said = shop.run("infinite", fault=Fault("infinite gradient", rank=1, step=6))
    assert codes == [1, 1], said
    line = first_line(said, having="gradient norm")
    assert "(train.clip: 1.0)" in line
    assert "the loss is finite, the gradient is not" in said
    saw(line)
    resume(shop, "infinite")


def test_a_huge_gradient_on_one_rank_is_clipped_alike_on_all_and_logged(shop, saw):
    codes, said = shop.run("huge", fault=Fault("huge gradient", rank=1, step=6))
    assert codes == [0, 0], said
    norms = {step: row["train/grad_norm"] for (step, kind), row in rows(shop.path("huge")).items() if kind == "train"}
    assert norms[6] > 1e9
    assert norms[7] < 1e3  # clipped in step 6, the weights are still sane
    saw(f"logged train/grad_norm {norms[6]:.1e} in step 6, clipped to 1.0; {norms[7]:.1f} in step 7")


def png_header(side: int) -> bytes:
    """A PNG that claims to have a side of so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", b"")
        + chunk(b"IEND", b"")
    )


def test_odd_images_are_read_and_broken_ones_are_all_named_once(shop, saw, images):
    import numpy as np
    from PIL import Image

    odd = images / "train" / "a"
    Image.new("RGB", (1, 1)).save(odd / "pixel.png")
    Image.new("CMYK", (20, 20)).save(odd / "cmyk.jpg")
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(odd / "sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(odd / "turned.jpg", exif=exif)
    codes, said = shop.run("odd", "train.duration=2 steps", config=image_config(shop, images))
    assert codes == [0, 0], said
    whole = (odd / "00.png").read_bytes()
    broken = {"cut.png": whole[:40], "text.png": b"hello", "empty.png": b"", "bomb.png": png_header(60_000)}
    for name, content in broken.items():
        (odd / name).write_bytes(content)
    codes, said = shop.run("broken", "train.duration=2 steps", config=image_config(shop, images))
    assert codes == [2, 2], said
    for name in broken:
        assert said.count(f"unreadable sample train/a/{name}") == 1, said
    assert "decompression bomb" in said
    saw(f"1 pixel, CMYK, 16 bits, turned: read; {first_line(said, having='bomb.png')}")


def test_a_killed_data_worker_ends_the_run_at_once_and_is_named_with_its_samples(shop, saw):
    name = "worker"
    ranks = shop.start(name, "data.workers=1", fault=Fault("waits", rank=1, step=6))
    wait_until(lambda: logged(shop.path(name), 5) and WAITS in ranks.said(1))
    [worker] = children(ranks.pid(1))
    os.kill(worker, signal.SIGKILL)
    assert ranks.wait() == [75, 75], ranks.said()
    line = first_line(ranks.said(1), having="a data worker died")
    assert f"pid {worker}" in line or f"pid(s) {worker}" in line
    where = first_line(ranks.said(1), having="over the training samples")
    saw(f"{line.replace(str(worker), '4711')}; {where}")
    resume(shop, name, "data.workers=1")


def test_a_rank_that_raises_takes_the_others_along_and_its_error_is_on_the_screen(shop, saw):
    codes, said = shop.run("raises", fault=Fault("raises", rank=1, step=6))
    assert codes == [75, 1], said
    assert "ValueError: the first cause" in said
    assert "step 6, rank 1" in said
    saw(f"rank 1: {first_line(said, having='ValueError: the first')}; rank 0: {first_line(said, having='another rank was lost')}")
    resume(shop, "raises")


def test_a_rank_with_fewer_batches_waits_for_nobody(shop, saw):
    uneven = ("batch.total=11", "model.dropout=none", "train.deterministic=false")  # 6 and 5 samples: 2 passes and 1
    codes, said = shop.run("uneven-1", *uneven, world=1)
    assert codes == [0], said
    codes, said = shop.run("uneven-2", *uneven)
    assert codes == [0, 0], said
    assert "[2, 1]" in json.dumps(json.loads((shop.path("uneven-2") / "plan.json").read_text())["passes_per_rank"])
    worst = largest_difference(rows(shop.path("uneven-1")), rows(shop.path("uneven-2")))
    assert worst < 1e-9
    saw(f"2 passes on rank 0, 1 on rank 1: the curve differs from one process's by {worst:.1g}")


def test_full_shared_memory_is_told_with_what_helps(shop, saw):
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small /dev/shm")
    codes, said = shop.run("shm", "data.workers=1", "data.size=96", fault=Fault("no shared memory"))
    assert codes == [78, 78], said
    line = first_line(said, having="shared memory (/dev/shm) has 0.1 MiB free")
    assert "use fewer data.workers" in line
    saw(line)


def test_out_of_memory_names_the_batch_and_leaves_no_half_save(shop, saw):
    codes, said = shop.run("memory", fault=Fault("out of memory", rank=1, step=7))
    assert codes == [75, 78], said
    line = first_line(said, having="out of GPU memory")
    assert "use a smaller batch.micro" in line
    where = first_line(said, having="micro-batches of 5 over the training samples")
    saw(f"{line}; {where}")
    assert max(whole_steps(shop.path("memory"))) in (4, 6)  # of step 6 only if it had landed
    resume(shop, "memory", "batch.micro=5")
    assert litter(shop.path("memory")) == []
