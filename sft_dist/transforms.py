"""What an image goes through before the model: torchvision's transforms on uint8; the model itself normalises."""

from torchvision import tv_tensors
from torchvision.transforms import v2

from sft_dist.config import Data


def training(data: Data) -> v2.Compose:
    """uint8 image of 3 x any x any -> uint8 image of 3 x size x size, with random crop and flip; draws from torch's generator."""
    if data.augment == "none":
        return evaluation(data)
    if data.augment == "resized_crop":
        crop = [v2.RandomResizedCrop(data.size, scale=data.crop_scale, antialias=True)]
    else:
        crop = [v2.Resize(data.size, antialias=True), v2.CenterCrop(data.size), v2.RandomCrop(data.size, padding=data.size // 8)]
    return v2.Compose([*crop, v2.RandomHorizontalFlip(data.flip)])


def evaluation(data: Data) -> v2.Compose:
    """uint8 image of 3 x any x any -> uint8 image of 3 x size x size: resize the shorter side, cut out the centre."""
    zoom = round(data.size * 256 / 224) if data.augment == "resized_crop" else data.size
    return v2.Compose([v2.Resize(data.resize or zoom, antialias=True), v2.CenterCrop(data.size)])


def joint_training(data: Data, void: int) -> v2.Compose:
    """tv_tensors.Image and Mask -> both of size x size, cropped and flipped by the same draws; of the mask, nearest pixels.

    What `padded_crop` pads is black in the image and `void` in the mask.
    """
    middle = [v2.Resize(data.size, antialias=True), v2.CenterCrop(data.size)]
    if data.augment == "none":
        return v2.Compose(middle)
    if data.augment == "resized_crop":
        crop = [v2.RandomResizedCrop(data.size, scale=data.crop_scale, antialias=True)]
    else:
        crop = [*middle, v2.RandomCrop(data.size, padding=data.size // 8, fill={tv_tensors.Image: 0, tv_tensors.Mask: void})]
    return v2.Compose([*crop, v2.RandomHorizontalFlip(data.flip)])


def whole(data: Data) -> v2.Resize:
    """uint8 image of 3 x any x any -> the whole of it, with its shorter side `data.resize` or, where that is null, `data.size` pixels."""
    return v2.Resize(data.resize or data.size, antialias=True)
