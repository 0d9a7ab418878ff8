"""The faults that come from inside: each patches the process that it is called in, never what is on the disk."""

import ctypes
import dataclasses
import errno
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import waits

Patch = Callable[[int], None]


@dataclass(frozen=True)
class Fault:
    """What goes wrong: a name of INJECTIONS, on which rank (None: on every one), and in which step (1-based)."""

    what: str = "nothing"
    rank: int | None = None
    step: int = 0


def inject(fault: Fault) -> None:
    """Put a fault into this process, if it is of this process's rank."""
    if fault.rank in (None, int(os.environ.get("RANK", "0"))):
        INJECTIONS[fault.what](fault.step)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# --- in a training step --------------------------------------------------------------------------------------------------------------


def _following() -> Callable[[], int]:
    """A function that tells the step (1-based) that is being made; 0 before the first."""
    from sft_dist import loop

    now = [0]
    train_step = loop.train_step

    def following(*arguments: Any) -> Any:
        now[0] = arguments[4] + 1
        return train_step(*arguments)

    loop.train_step = following
    return lambda: now[0]


def _in_forward(step: int) -> None:
    import torch

    now = _following()

    def hook(module: Any, *_: Any) -> None:
        if now() == step and isinstance(module, torch.nn.Linear):
            die()

    torch.nn.modules.module.register_module_forward_hook(hook)


def _in_backward(step: int) -> None:
    import torch

    now = _following()

    def hook(module: Any, _: Any, output: Any) -> None:
        if now() == step and isinstance(module, torch.nn.Linear) and output.requires_grad:
            output.register_hook(lambda _: die())

    torch.nn.modules.module.register_module_forward_hook(hook)


def _in_update(step: int) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    now = _following()
    register_optimizer_step_post_hook(lambda *_: die() if now() == step else None)


def _with_loss(change: Callable[[Any], Any]) -> Patch:
    """Change the losses of each forward pass of one step."""

    def patch(step: int) -> None:
        from sft_dist.tasks import TASKS

        now = _following()
        task = TASKS["classify"]

        def loss(model: Any, batch: Any) -> Any:
            losses = task.loss(model, batch)
            return change(losses) if now() == step else losses

        TASKS["classify"] = dataclasses.replace(task, loss=loss)

    return patch


def _nan(losses: Any) -> Any:
    return losses._replace(total=losses.total * float("nan"))


def _gradient(factor: float) -> Callable[[Any], Any]:
    def change(losses: Any) -> Any:
        losses.total.register_hook(lambda gradient: gradient * factor)
        return losses

    return change


def _raise(_: Any) -> Any:
    raise ValueError("the first cause")


def _no_memory(_: Any) -> Any:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


# --- in a save -----------------------------------------------------------------------------------------------------------------------


class Os:
    """The module `os` (or `shutil`) as one room sees it, with some functions of our own."""

    def __init__(self, module: Any, **changed: Any) -> None:
        self.module = module
        vars(self).update(changed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def _named(step: int) -> str:
    return f"step-{step:08d}"


def _around_file(step: int, before: Callable[[], None] = lambda: None, after: Callable[[], None] = lambda: None) -> None:
    """Do something around each file that this rank writes into the checkpoint of a step; 0 is every step."""
    from sft_dist import archive

    write = archive.write

    def around(path: Path, tensors: Any) -> Any:
        ours = not step or _named(step) in path.parent.name
        if ours:
            before()
        entry = write(path, tensors)
        if ours:
            after()
        return entry

    archive.write = around


def _mid_file(step: int) -> None:
    from sft_dist import archive

    archive.CHUNK = 1 << 16

    def half() -> None:
        left = [10]

        def write(handle: int, data: Any) -> int:
            left[0] -= 1
            if not left[0]:
                die()
            return os.write(handle, data)

        archive.os = Os(os, write=write)

    _around_file(step, before=half)


def _before_manifest(step: int) -> None:
    from sft_dist import manifest

    write = manifest.write
    manifest.write = lambda folder, of, files: die() if of == step else write(folder, of, files)


def _before_rename(step: int) -> None:
    from sft_dist import checkpoint

    move = checkpoint._move_over
    checkpoint._move_over = lambda source, target: die() if target.name == _named(step) else move(source, target)


def _before_pointer(step: int) -> None:
    from sft_dist import checkpoint

    point = checkpoint.point
    checkpoint.point = lambda run, progress: die() if progress.step == step else point(run, progress)


def _in_retention(step: int) -> None:
    """Half of a checkpoint that is being deleted is gone."""
    from sft_dist import checkpoint, inventory

    delete = checkpoint._delete_old

    def rmtree(folder: Path, **_: Any) -> None:
        if folder.is_dir():  # what an attempt before left is looked for first
            next(iter(sorted(folder.iterdir()))).unlink()
            die()

    def deadly(run: Any, keep: int) -> None:
        if int((run.checkpoints / "latest").read_text()[5:]) >= step:
            inventory.shutil = Os(shutil, rmtree=rmtree)
        delete(run, keep)

    checkpoint._delete_old = deadly


def _writer_fails(error: BaseException) -> Patch:
    def patch(step: int) -> None:
        from sft_dist.saver import Saver

        write = Saver._write

        def failing(saver: Any, aside: Path, parts: Any) -> Any:
            if _named(step) in aside.name:
                raise error
            return write(saver, aside, parts)

        Saver._write = failing

    return patch


def _sleep(seconds: float) -> Patch:
    return lambda step: _around_file(step, before=lambda: time.sleep(seconds))


def _full_disk(step: int) -> None:
    """Fill the disk that the run is written to before this step, but for a MiB, and give it free again before the last step."""
    from sft_dist import loop

    train_step = loop.train_step

    def disturbed(*arguments: Any) -> Any:
        _, _, engine, plan, done, *_ = arguments
        filler = Path(engine.config.run.dir) / "filler"
        if done + 1 == step:
            free = os.statvfs(filler.parent).f_bavail * os.statvfs(filler.parent).f_frsize
            with suppress(OSError), filler.open("wb") as file:  # the run is writing, too
                file.write(b"\0" * max(0, free - (1 << 20)))
        if done + 1 == plan.total_steps:
            filler.unlink()
        return train_step(*arguments)

    loop.train_step = disturbed


# --- of the machine ------------------------------------------------------------------------------------------------------------------


def _small_shm(_: int) -> None:
    """A /dev/shm of 64 KiB, for this process and its children alone. Needs root."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, private, recursive = 0x20000, 1 << 18, 1 << 14
    for failed in (
        libc.unshare(new_mounts),
        libc.mount(b"none", b"/", None, private | recursive, None),
        libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=64k"),
    ):
        if failed:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _backward_clock(_: int) -> None:
    """Every look at the clock of the wall finds it an hour earlier."""
    start, looks = time.time(), [0]

    def earlier() -> float:
        looks[0] += 1
        return start - 3600.0 * looks[0]

    time.time = earlier


# --- restores that are broken on purpose, which the oracle must catch ----------------------------------------------------------------


def _order_restarts(_: int) -> None:
    from sft_dist import loading

    def windows(self: Any) -> Any:
        for step in range(self.plan.total_steps - self.start):
            yield from loading.window(step, self.rank, self.plan)

    loading.Windows.__iter__ = windows


def _augmentation_restarts(_: int) -> None:
    from sft_dist import loading

    draw = loading.draw_seed
    loading.draw_seed = lambda what, seed, _, position: draw(what, seed, 0, position)


def _dropout_restarts(step: int) -> None:
    from sft_dist import loop

    draw = loop.draw_seed
    loop.draw_seed = lambda what, seed, made, *where: draw(what, seed, made - step, *where)


def _rate_restarts(step: int) -> None:
    from sft_dist import loop

    factor = loop.lr_factor
    loop.lr_factor = lambda made, plan: factor(made - step, plan)


def _forgets(part: str) -> Patch:
    """One part of the optimizer's state begins at zero (the moving average: at the restored weights) again."""

    def patch(_: int) -> None:
        from sft_dist import optim

        load = optim.load_state_tensors

        def forgetful(optimizer: Any, module: Any, tensors: Any) -> None:
            weights = {name: parameter.detach() for name, parameter in module.named_parameters()}

            def value(name: str) -> Any:
                if not name.endswith(f"/{part}"):
                    return tensors[name]
                return weights[name.removesuffix("/ema")].clone() if part == "ema" else tensors[name] * 0

            load(optimizer, module, {name: value(name) for name in tensors})

        optim.load_state_tensors = forgetful

    return patch


def _forgets_weights(_: int) -> None:
    from sft_dist.engine import Engine, Tensors

    put = Engine.put

    def forgetful(engine: Any, tensors: Any) -> None:
        own = {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}
        put(engine, Tensors(own, tensors.optimizer))

    Engine.put = forgetful


def _forgets_means(_: int) -> None:
    from sft_dist import checkpoint

    restore = checkpoint.restore
    checkpoint.restore = lambda *arguments: dataclasses.replace(restore(*arguments), since_evaluation={})


STEP_POINTS = ("killed in forward", "killed in backward", "killed in the update")
SAVE_POINTS = (
    "killed in the middle of a file",
    "killed after a rank's file",
    "killed before the manifest",
    "killed before the rename",
    "killed before the pointer",
    "killed during retention",
)
BROKEN_RESTORES = (
    "the order of samples restarts",
    "augmentation restarts",
    "dropout restarts",
    "the learning rate restarts",
    "forgets the first moments",
    "forgets the second moments",
    "forgets the number of updates",
    "forgets the moving average",
    "forgets the weights",
    "forgets the sums since the last evaluation",
)
INJECTIONS: dict[str, Patch] = {
    "nothing": lambda _: None,
    "waits": waits.wait_in,
    "killed in forward": _in_forward,
    "killed in backward": _in_backward,
    "killed in the update": _in_update,
    "killed in the middle of a file": _mid_file,
    "killed after a rank's file": lambda step: _around_file(step, after=die),
    "killed before the manifest": _before_manifest,
    "killed before the rename": _before_rename,
    "killed before the pointer": _before_pointer,
    "killed during retention": _in_retention,
    "the writer fails": _writer_fails(OSError(errno.EIO, os.strerror(errno.EIO))),
    "the writer has a bug": _writer_fails(KeyError("a bug")),
    "the disk is slow": _sleep(2.0),
    "the disk is stuck": _sleep(600.0),
    "the disk waits": lambda step: _around_file(step, before=waits.wait),
    "the disk is full": _full_disk,
    "NaN loss": _with_loss(_nan),
    "infinite gradient": _with_loss(_gradient(float("inf"))),
    "huge gradient": _with_loss(_gradient(1e12)),
    "raises": _with_loss(_raise),
    "out of memory": _with_loss(_no_memory),
    "no shared memory": _small_shm,
    "the clock goes backwards": _backward_clock,
    "the order of samples restarts": _order_restarts,
    "augmentation restarts": _augmentation_restarts,
    "dropout restarts": _dropout_restarts,
    "the learning rate restarts": _rate_restarts,
    "forgets the first moments": _forgets("exp_avg"),
    "forgets the second moments": _forgets("exp_avg_sq"),
    "forgets the number of updates": _forgets("step"),
    "forgets the moving average": _forgets("ema"),
    "forgets the weights": _forgets_weights,
    "forgets the sums since the last evaluation": _forgets_means,
}
