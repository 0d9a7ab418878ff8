"""`digits`: 1,797 real handwritten digits of 8 x 8 pixels that travel with the package, for demos and tests.

Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, CC BY 4.0; the same
images as sklearn.datasets.load_digits.
"""

from pathlib import Path
from typing import Any

from sft_dist.config import Data
from sft_dist.datasets.splits import Split, Splits, choose_classes, choose_split, draw_splits

CLASSES = tuple("0123456789")


def check(data: Data) -> None:
    choose_classes(CLASSES, data)


def load(data: Data) -> Splits:
    pixels, labels = grey(), _stored("labels")

    def read(i: int) -> Any:
        import torch

        return torch.from_numpy(pixels[i]).expand(3, 8, 8)

    whole = Split([f"digits/{i:04d}" for i in range(len(labels))], labels.tolist(), read)
    return draw_splits(whole, None, None, CLASSES, data)


def grey() -> Any:
    """All images as uint8 of n x 8 x 8: the 17 levels of grey spread over 0 to 255; without torch."""
    import numpy as np

    return (_stored("images").astype(np.uint16) * 255 // 16).astype(np.uint8)


def load_split(data: Data, name: str, classes: tuple[str, ...]) -> Split:
    return choose_split(load(data), name, classes)


def _stored(name: str) -> Any:
    import numpy as np

    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        return file[name]
