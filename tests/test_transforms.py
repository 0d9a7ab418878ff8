"""Evaluation is torchvision's recipe to the pixel; training draws depend on (seed, epoch, position) alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from sft_dist import loading, transforms
from sft_dist.config import Data
from sft_dist.datasets import Split
from sft_dist.schedule import Pick
from sft_dist.tasks import Sample

SIZES = {"wide": (300, 500), "high": (500, 300), "square": (400, 400), "small": (10, 17), "tiny": (1, 1), "long": (8, 300)}


def an_image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def a_photo(height: int, width: int) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows % 256, columns % 256, (rows + columns) % 256]).to(torch.uint8)


def digits(**keys: object) -> Data:
    return Data(name="digits", **keys)


@pytest.mark.parametrize("shape", ["wide", "high", "small"])
def test_evaluation_is_resize_256_and_centre_crop_224(shape: str) -> None:
    image = an_image(*SIZES[shape])
    ours = transforms.evaluation(digits())(image)
    theirs = v2.functional.center_crop(v2.functional.resize(image, [256], antialias=True), [224])
    assert torch.equal(ours, theirs)


def test_evaluation_is_close_to_what_pillow_makes() -> None:
    photo = a_photo(300, 500)
    ours = transforms.evaluation(digits())(photo)
    image = Image.fromarray(photo.permute(1, 2, 0).numpy()).resize((int(500 * 256 / 300), 256), Image.Resampling.BILINEAR)
    left, top = round((image.width - 224) / 2), round((256 - 224) / 2)
    theirs = torch.from_numpy(np.array(image.crop((left, top, left + 224, top + 224)))).permute(2, 0, 1)
    assert (ours.int() - theirs.int()).abs().float().mean() < 0.5


@pytest.mark.parametrize(
    ("keys", "zoom"),
    [
        ({"size": 96}, 110),
        ({"size": 96, "resize": 96}, 96),
        ({"size": 96, "augment": "none"}, 96),
        ({"size": 32, "augment": "padded_crop"}, 32),
    ],
)
def test_the_shorter_side_before_the_centre_crop(keys: dict[str, object], zoom: int) -> None:
    image = an_image(200, 300)
    theirs = v2.Compose([v2.Resize(zoom, antialias=True), v2.CenterCrop(keys["size"])])
    assert torch.equal(transforms.evaluation(digits(**keys))(image), theirs(image))


@pytest.mark.parametrize("augment", ["resized_crop", "padded_crop", "none"])
@pytest.mark.parametrize("shape", SIZES)
def test_every_image_comes_out_square_and_uint8(augment: str, shape: str) -> None:
    data = digits(size=24, augment=augment)
    for transform in (transforms.training(data), transforms.evaluation(data)):
        made = transform(an_image(*SIZES[shape]))
        assert (made.shape, made.dtype) == ((3, 24, 24), torch.uint8)


def test_no_augmentation_is_the_evaluation() -> None:
    data, image = digits(size=24, augment="none"), an_image(40, 50)
    assert torch.equal(transforms.training(data)(image), transforms.evaluation(data)(image))


def test_the_flip_follows_its_probability() -> None:
    image = an_image(24, 24)
    always = transforms.training(digits(size=24, augment="resized_crop", crop_scale=(1.0, 1.0), flip=1))
    never = transforms.training(digits(size=24, augment="resized_crop", crop_scale=(1.0, 1.0), flip=0))
    torch.manual_seed(0)
    flipped = always(image)
    torch.manual_seed(0)
    assert torch.equal(flipped.flip(2), never(image))


def test_padded_crop_moves_the_image_by_an_eighth_at_most() -> None:
    image, transform = torch.full((3, 24, 24), 255, dtype=torch.uint8), transforms.training(digits(size=24, augment="padded_crop"))
    torch.manual_seed(0)
    borders = [int((transform(image)[0].max(0).values == 0).sum()) for _ in range(200)]
    assert set(borders) == {0, 1, 2, 3}


def samples(seed: int = 0) -> loading.Samples:
    pictures = [an_image(40, 50, i) for i in range(8)]
    return loading.Samples(Split([str(i) for i in range(8)], [0] * 8, pictures.__getitem__), transforms.training(digits(size=24)), 24, seed)


def drawn(picks: list[Pick], seed: int = 0, workers: int = 0) -> list[Sample]:
    loader = DataLoader(samples(seed), batch_sampler=[[pick] for pick in picks], collate_fn=lambda batch: batch[0], num_workers=workers)
    return list(loader)


def test_a_training_image_is_the_same_in_every_process_and_order() -> None:
    picks = [Pick(epoch, position) for epoch in (0, 1) for position in range(8)]
    torch.manual_seed(1)
    here = drawn(picks)
    torch.manual_seed(2)
    elsewhere = drawn(picks[::-1], workers=2)[::-1]
    assert all(torch.equal(one.image, other.image) for one, other in zip(here, elsewhere, strict=True))


def test_epoch_position_and_seed_each_change_the_draw() -> None:
    [first, next_epoch], [other_seed, _] = drawn([Pick(0, 3), Pick(1, 3)]), drawn([Pick(0, 3), Pick(1, 3)], seed=1)
    assert not torch.equal(first.image, next_epoch.image)
    assert not torch.equal(first.image, other_seed.image)
    same = loading.Samples(Split(["a", "b"], [0, 0], lambda _: an_image(40, 50)), transforms.training(digits(size=24)), 24, 0)
    assert not torch.equal(same[Pick(0, 0)].image, same[Pick(0, 1)].image)
