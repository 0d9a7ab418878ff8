"""A save is a copy that the step waits for, and a write that it does not; what goes wrong behind is told in front."""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from given import a_config
from safetensors.torch import load_file
from torch import Tensor, nn

from sft_dist import archive, checkpoint, manifest, optim, rundir
from sft_dist.checkpoint import About
from sft_dist.engine import Engine
from sft_dist.errors import ConfigError, InfrastructureError, MachineError
from sft_dist.manifest import Entry
from sft_dist.plan import World
from sft_dist.progress import Progress
from sft_dist.rundir import RunDir
from sft_dist.saver import Saver, WriterError

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def one_process() -> Iterator[Engine]:
    with Engine(a_config(device="cpu", precision="fp64"), World()) as engine:
        yield engine


@pytest.fixture
def engine(one_process: Engine) -> Engine:
    """A small model whose optimizer has stepped once."""
    torch.manual_seed(0)
    one_process.prepare(nn.Linear(3, 2), lambda model: optim.build(model, a_config(optim__name="adamw", optim__lr=0.1)))
    step(one_process)
    return one_process


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return rundir.create(a_config(run__dir=str(tmp_path)))


def step(engine: Engine) -> None:
    with engine.backward_pass(last=True) as backward:
        backward(engine.wrapped(torch.ones(1, 3, dtype=torch.float64)).square().sum())
    engine.update()


def saver_of(run: RunDir, engine: Engine, landed: Callable[[Progress, float], None] = lambda *_: None, **settings: object) -> Saver:
    config = a_config(**{f"save__{key}": value for key, value in {"background": True, **settings}.items()})
    return Saver(run, engine, config.save, About(("cat", "dog"), "0123456789abcdef"), landed)


def folder(run: RunDir, number: int) -> Path:
    return run.checkpoints / f"step-{number:08d}"


def names(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def state(engine: Engine) -> dict[str, Tensor]:
    return {piece.name: piece.tensor.clone() for piece in engine.take()}


def stored(run: RunDir, number: int) -> dict[str, Tensor]:
    assert manifest.verify(folder(run, number)) == []
    return {**load_file(folder(run, number) / "model.safetensors"), **load_file(folder(run, number) / "optim.safetensors")}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


class Disk:
    """A disk that lets a write begin, and end only when it is told to; it may then refuse."""

    def __init__(self) -> None:
        self.write = archive.write
        self.began, self.may_end = threading.Event(), threading.Event()
        self.error: BaseException | None = None

    def __call__(self, path: Path, tensors: dict[str, Tensor]) -> Entry:
        self.began.set()
        assert self.may_end.wait(PATIENCE_S)
        if self.error:
            raise self.error
        return self.write(path, tensors)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    slow = Disk()
    monkeypatch.setattr(archive, "write", slow)
    yield slow
    slow.may_end.set()
    for thread in threading.enumerate():  # nothing of one test writes in the next
        if thread.name == "checkpoint writer":
            thread.join(PATIENCE_S)


def poll_until(saver: Saver, over: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not over():
        assert time.monotonic() < end, "nothing came of the save in flight"
        saver.poll()
        time.sleep(0.002)


def test_a_save_in_the_background_is_committed_by_polling_alone(run: RunDir, engine: Engine, disk: Disk) -> None:
    landed: list[Progress] = []  # the seconds are of no matter here
    saver = saver_of(run, engine, lambda progress, _: landed.append(progress))
    saver.save(Progress(step=1))
    assert disk.began.wait(PATIENCE_S)
    saver.poll()
    assert (names(run), landed) == ([".unfinished-step-00000001"], [])
    disk.may_end.set()
    poll_until(saver, lambda: not saver.flight)
    assert (names(run), landed) == (["latest", "step-00000001"], [Progress(step=1)])
    assert equal(stored(run, 1), state(engine))


def test_what_was_taken_is_written_even_if_the_weights_change_meanwhile(run: RunDir, engine: Engine, disk: Disk) -> None:
    saver = saver_of(run, engine)
    at_save = state(engine)
    saver.save(Progress(step=1))
    assert disk.began.wait(PATIENCE_S)
    step(engine)
    assert not equal(state(engine), at_save)
    disk.may_end.set()
    saver.finish()
    assert equal(stored(run, 1), at_save)


def test_without_background_a_save_is_over_when_it_returns(run: RunDir, engine: Engine) -> None:
    saver = saver_of(run, engine, background=False)
    saver.save(Progress(step=1))
    assert (names(run), saver.flight) == (["latest", "step-00000001"], None)


def test_the_next_save_waits_for_the_last(run: RunDir, engine: Engine, disk: Disk) -> None:
    saver = saver_of(run, engine)
    first = state(engine)
    saver.save(Progress(step=1))
    assert disk.began.wait(PATIENCE_S)
    timer = threading.Timer(0.2, disk.may_end.set)
    timer.start()
    step(engine)
    saver.save(Progress(step=2))
    assert disk.may_end.is_set()
    assert equal(stored(run, 1), first)
    saver.finish()
    assert equal(stored(run, 2), state(engine))
    assert names(run) == ["latest", "step-00000001", "step-00000002"]


def test_finishing_waits_for_the_commit_and_does_nothing_where_nothing_is_in_flight(run: RunDir, engine: Engine) -> None:
    landed: list[Progress] = []  # the seconds are of no matter here
    saver = saver_of(run, engine, lambda progress, _: landed.append(progress))
    saver.finish()
    saver.poll()
    saver.save(Progress(step=1))
    saver.finish()
    saver.finish(final=True)
    assert (names(run), landed) == (["latest", "step-00000001"], [Progress(step=1)])


def test_the_memory_of_the_copies_is_used_again(run: RunDir, engine: Engine) -> None:
    saver = saver_of(run, engine)
    saver.save(Progress(step=1))
    saver.finish()
    places = {key: copy.data_ptr() for key, copy in saver.buffers.items()}
    assert {name for _, name in places} == set(state(engine))
    step(engine)
    saver.save(Progress(step=2))
    saver.finish()
    assert {key: copy.data_ptr() for key, copy in saver.buffers.items()} == places
    assert equal(stored(run, 2), state(engine))


def fill_up(disk: Disk) -> None:
    disk.error = OSError(errno.ENOSPC, "No space left on device")
    disk.may_end.set()


def test_an_error_behind_is_raised_at_the_next_poll_with_its_cause_and_nothing_is_committed(
    run: RunDir, engine: Engine, disk: Disk
) -> None:
    landed: list[Progress] = []  # the seconds are of no matter here
    saver = saver_of(run, engine, lambda progress, _: landed.append(progress))
    saver.save(Progress(step=1))
    fill_up(disk)
    told = rf"^cannot save a checkpoint in {run.checkpoints}: no space is left \(0.0 MiB needed, \d+.\d MiB free\); there is no earlier checkpoint"
    with pytest.raises(MachineError, match=told) as caught:
        poll_until(saver, lambda: False)
    assert (caught.value.everywhere, saver.flight, names(run), landed) == (True, None, [], [])


def test_an_error_in_the_commit_is_raised_too_and_the_checkpoint_before_stays(run: RunDir, engine: Engine) -> None:
    saver = saver_of(run, engine)
    saver.save(Progress(step=1))
    saver.finish()
    saver.save(Progress(step=2))
    assert saver.flight
    saver.flight.work.thread.join(PATIENCE_S)
    (saver.flight.aside / "state.json").mkdir()  # where the commit wants to write a file
    with pytest.raises(MachineError, match=r"Is a directory: .*; step-00000001 is intact\. Mend that"):
        saver.finish()
    assert names(run) == ["latest", "step-00000001"]
    saver.save(Progress(step=3))
    saver.finish()
    assert names(run) == ["latest", "step-00000001", "step-00000003"]


def test_a_bug_in_the_writer_is_not_lost_with_its_thread(run: RunDir, engine: Engine, disk: Disk) -> None:
    saver = saver_of(run, engine)
    saver.save(Progress(step=1))
    disk.error = ValueError("seven")
    disk.may_end.set()
    with pytest.raises(WriterError, match=r"^a bug in the writer of a checkpoint\nTraceback(.|\n)*raise self.error\nValueError: seven"):
        saver.finish()
    assert (saver.flight, names(run)) == (None, [])


def test_a_bug_in_the_writer_ends_a_run_also_where_its_failures_may_be_gone_on_from(run: RunDir, engine: Engine, disk: Disk) -> None:
    saver = saver_of(run, engine, on_error="continue")
    saver.save(Progress(step=1))
    disk.error = ValueError("seven")
    disk.may_end.set()
    with pytest.raises(WriterError):
        poll_until(saver, lambda: not saver.flight)


def test_a_bug_in_the_commit_is_told_as_one(run: RunDir, engine: Engine) -> None:
    saver = saver_of(run, engine, lambda progress, _: progress.no_such_thing)
    saver.save(Progress(step=1))
    with pytest.raises(WriterError, match="AttributeError: 'Progress' object has no attribute 'no_such_thing'"):
        saver.finish()


def test_a_save_that_cannot_begin_is_the_machines_fault(run: RunDir, engine: Engine) -> None:
    run.checkpoints.rmdir()
    run.checkpoints.touch()
    with pytest.raises(MachineError, match=r"^cannot save a checkpoint in .*Not a directory"):
        saver_of(run, engine).save(Progress(step=1))


def test_a_save_that_failed_may_be_gone_on_from_with_a_warning(run: RunDir, engine: Engine, disk: Disk) -> None:
    saver = saver_of(run, engine, on_error="continue")
    saver.save(Progress(step=1))
    fill_up(disk)
    poll_until(saver, lambda: not saver.flight)
    [warning] = saver.warnings
    assert warning.startswith("training goes on without this checkpoint (save.on_error = continue): cannot save a checkpoint in ")
    assert names(run) == []
    disk.error = None
    saver.save(Progress(step=2))
    saver.finish(final=True)
    assert names(run) == ["latest", "step-00000002"]


def test_a_save_that_cannot_begin_may_be_gone_on_from_with_a_warning(run: RunDir, engine: Engine) -> None:
    run.checkpoints.rmdir()
    saver = saver_of(run, engine, on_error="continue")
    saver.save(Progress(step=1))
    [warning] = saver.warnings
    assert "No such file or directory" in warning
    run.checkpoints.mkdir()
    saver.save(Progress(step=2))
    saver.finish(final=True)
    assert names(run) == ["latest", "step-00000002"]


def test_the_last_save_must_land_even_where_others_may_fail(run: RunDir, engine: Engine, disk: Disk) -> None:
    saver = saver_of(run, engine, on_error="continue")
    saver.save(Progress(step=1))
    fill_up(disk)
    with pytest.raises(MachineError, match="no space is left"):
        saver.finish(final=True)
    assert saver.warnings == []


@pytest.mark.parametrize("background", [True, False])
def test_the_last_save_is_missed_also_where_its_failure_was_told_before(run: RunDir, engine: Engine, disk: Disk, background: bool) -> None:
    saver = saver_of(run, engine, on_error="continue", background=background)
    fill_up(disk)
    saver.save(Progress(step=1))
    poll_until(saver, lambda: saver.flight is None)
    assert len(saver.warnings) == 1
    with pytest.raises(MachineError, match="no space is left"):
        saver.finish(final=True)


def test_a_write_that_never_ends_is_told_after_the_limit(run: RunDir, engine: Engine, disk: Disk) -> None:
    saver = saver_of(run, engine, limit_s=1)
    started = time.monotonic()
    saver.save(Progress(step=1))
    told = rf"^the checkpoint of step-00000001 has not reached the disk of {run.checkpoints} in save.limit_s = 1 seconds; the file system is stuck"
    with pytest.raises(MachineError, match=told):
        saver.finish()
    assert 1 <= time.monotonic() - started < PATIENCE_S
    assert saver.flight is None


def test_a_write_that_never_ends_is_told_by_polling_too(run: RunDir, engine: Engine, disk: Disk) -> None:
    saver = saver_of(run, engine, limit_s=1)
    saver.save(Progress(step=1))
    with pytest.raises(MachineError, match=r"^the checkpoint of step-00000001 has not reached the disk"):
        poll_until(saver, lambda: False)


def test_a_commit_that_comes_to_life_after_the_limit_is_left_undone(run: RunDir, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    began, may_end, write = threading.Event(), threading.Event(), manifest.write

    def slow(folder: Path, at: int, files: dict[str, Entry]) -> None:
        began.set()
        assert may_end.wait(PATIENCE_S)
        write(folder, at, files)

    monkeypatch.setattr(manifest, "write", slow)
    saver = saver_of(run, engine, on_error="continue")
    saver.save(Progress(step=1))
    poll_until(saver, began.is_set)
    assert saver.flight
    stuck = saver.flight.work.thread
    saver.settings = saver.settings.model_copy(update={"limit_s": 1})
    saver.finish()
    assert len(saver.warned()) == 1
    may_end.set()
    stuck.join(PATIENCE_S)
    saver.save(Progress(step=2))
    saver.finish()
    assert [name for name in names(run) if not name.startswith(".")] == ["latest", "step-00000002"]
    assert run.pointed_to("latest") == run.checkpoints / "step-00000002"


def test_a_write_that_ends_after_the_limit_commits_nothing_and_spoils_no_later_save(run: RunDir, engine: Engine, disk: Disk) -> None:
    saver = saver_of(run, engine, limit_s=1, on_error="continue")
    early = state(engine)
    saver.save(Progress(step=1))
    assert disk.began.wait(PATIENCE_S)
    assert saver.flight
    stuck = saver.flight.work.thread
    saver.finish()
    step(engine)
    saver.settings = saver.settings.model_copy(update={"limit_s": 600})
    saver.save(Progress(step=1))  # the same step again
    disk.may_end.set()
    stuck.join(PATIENCE_S)
    saver.finish()
    assert not equal(early, state(engine))
    assert equal(stored(run, 1), state(engine))


@pytest.mark.parametrize("error", [ConfigError("unreadable", everywhere=True), MachineError("all of us", everywhere=True)], ids=repr)
def test_what_all_ranks_raise_lets_the_save_in_flight_land(run: RunDir, engine: Engine, error: Exception) -> None:
    saver = saver_of(run, engine)
    with pytest.raises(type(error), match=str(error)), saver.landing():
        saver.save(Progress(step=1))
        raise error
    assert names(run) == ["latest", "step-00000001"]


@pytest.mark.parametrize("error", [InfrastructureError("a peer was lost"), MachineError("only me"), KeyError("bug")], ids=repr)
def test_what_one_rank_raises_does_not_wait_for_the_save_in_flight(run: RunDir, engine: Engine, disk: Disk, error: Exception) -> None:
    saver = saver_of(run, engine)
    with pytest.raises(type(error)), saver.landing():
        saver.save(Progress(step=1))
        raise error
    assert saver.flight
    assert not saver.flight.work.over
    assert names(run) == [".unfinished-step-00000001"]
    disk.may_end.set()
    saver.flight.work.thread.join(PATIENCE_S)
    assert checkpoint.newest(run) == (None, [])


def test_without_an_error_landing_does_nothing(run: RunDir, engine: Engine) -> None:
    saver = saver_of(run, engine)
    with saver.landing():
        saver.save(Progress(step=1))
    saver.finish()
    assert names(run) == ["latest", "step-00000001"]
