"""A look at every image of a data set, as the loader would read it, by several processes; without torch."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sft_dist.config import Data
from sft_dist.datasets import Splits, images

SIDE = 16  # pixels of the grey thumbnail by which pictures are compared
CHUNK = 32  # images that a process takes at a time
DEADLY = "the process that decoded it died: the file needs too much memory, or breaks the decoder"
ENDINGS = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
PLAIN = ("RGB", "L", "1")


@dataclass(frozen=True)
class Look:
    """What one image is. problem: why the loader could not read it; then nothing else is known.

    width, height: upright. pixels: a digest of what the model would be given. thumb: SIDE x SIDE bytes of grey. odd: what is unusual.
    """

    problem: str | None = None
    width: int = 0
    height: int = 0
    pixels: bytes = b""
    thumb: bytes = b""
    odd: tuple[str, ...] = ()


def take(splits: Splits, data: Data, workers: int) -> Iterator[Look]:
    """A look at each image: of the training, the validation and the test split, in their order. workers: processes; 0 is this one alone.

    Only files are looked at by others: data sets of other kinds are read as a run reads them, here.
    """
    parts = [split for split in (splits.train, splits.val, splits.test) if split]
    if data.name == "folder":
        paths = [Path(str(data.root)) / name for split in parts for name in split.names]
        yield from _by_several(paths, workers) if workers else map(look, paths)
        return
    for split in parts:
        for i in range(len(split)):
            yield _judged(partial(_of_tensor, split.read, i))


def look(path: Path) -> Look:
    """One file. Whatever it holds, this returns: formats and limits are the loader's."""
    return _judged(partial(_of_file, path))


def _by_several(paths: Sequence[Path], workers: int) -> Iterator[Look]:
    """In the order of the paths. A file that kills its process costs that process; it is found by taking its neighbours one by one."""
    chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
    done = 0
    while done < len(chunks):
        try:
            with _processes(min(workers, len(chunks))) as pool:
                for looks in pool.map(_look_at_all, chunks[done:]):
                    yield from looks
                    done += 1
        except BrokenProcessPool:
            yield from map(_alone, chunks[done])
            done += 1


def _alone(path: Path) -> Look:
    try:
        with _processes(1) as pool:
            return pool.submit(look, path).result()
    except BrokenProcessPool:
        return Look(DEADLY)


def _processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))  # a fork would copy locks that other threads hold


def _look_at_all(paths: Sequence[Path]) -> list[Look]:
    return [look(path) for path in paths]


def _judged(open_it: Callable[[], tuple[Any, tuple[str, ...]]]) -> Look:
    """The look at what opens as (image in colour, what is odd about its file)."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            image, odd = open_it()
        except Exception as error:  # ours bears Pillow's, which are of many kinds
            cause = error.__cause__ or error
            return Look(" ".join(str(cause).split()) or type(cause).__name__)
    odd += tuple(dict.fromkeys(f"Pillow warns: {' '.join(str(warning.message).split())}" for warning in told))
    if all(low == high for low, high in image.getextrema()):
        odd += ("it is of one colour",)
    return Look(
        width=image.width,
        height=image.height,
        pixels=hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()[:16],
        thumb=_thumb(image),
        odd=odd,
    )


def _of_file(path: Path) -> tuple[Any, tuple[str, ...]]:
    from PIL import Image

    if not path.is_file():
        raise ValueError("it is no regular file")  # a pipe would be waited for
    with Image.open(path, formats=images.FORMATS) as image:
        mode, kind, moves = image.mode, str(image.format), getattr(image, "is_animated", False)
    odd: tuple[str, ...] = () if path.suffix.lower() in ENDINGS[kind] else (f"it is a {kind} under the name of another format",)
    odd += () if mode in PLAIN else (f"its mode is {mode}, which is turned into RGB",)
    odd += ("it has several pictures, of which the first counts",) if moves else ()
    return images.decode(path), odd


def _of_tensor(read: Callable[[int], Any], position: int) -> tuple[Any, tuple[str, ...]]:
    from PIL import Image

    return Image.fromarray(read(position).permute(1, 2, 0).numpy()), ()


def _thumb(image: Any) -> bytes:
    from PIL import Image

    thumb: bytes = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX).tobytes()
    return thumb
