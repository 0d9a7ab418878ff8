"""The program that goes with an export, for each kind of work: plain torch and torchvision, nothing of ours. Braces are filled in by `export`."""

CLASSIFY = """\
# python predict.py IMAGE prints the class of an image and its probability.
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torchvision.models import get_model
from torchvision.transforms import v2

classes = {classes}
model = get_model({model}, weights=None, num_classes={count}).eval()
model.load_state_dict(load_file(Path(__file__).with_name("model.safetensors")))
crop = [v2.PILToTensor(), v2.Resize({resize}, antialias=True), v2.CenterCrop({size})]
prepare = v2.Compose([*crop, v2.ToDtype(torch.float32, scale=True), v2.Normalize({mean}, {std})])
image = ImageOps.exif_transpose(Image.open(sys.argv[1]))
if image.mode.startswith("I"):  # 16 bits of grey, of which the model learned the upper byte; Pillow would clip them
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
with torch.inference_mode():
    logits = model(prepare(image.convert("RGB"))[None])[0]
probability, best = logits.softmax(0).max(0)
print(classes[best], f"{{probability:.4f}}")
"""

SEGMENT = """\
# python predict.py IMAGE MASK.png writes the class of each pixel as its number, and prints the share of each class.
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch.nn.functional import interpolate
from torchvision.models import get_model
from torchvision.transforms import v2

classes = {classes}
model = get_model({model}, weights=None, num_classes={count}, **{options}).eval()
model.load_state_dict(load_file(Path(__file__).with_name("model.safetensors")))
resize = [v2.PILToTensor(), v2.Resize({resize}, antialias=True)]
prepare = v2.Compose([*resize, v2.ToDtype(torch.float32, scale=True), v2.Normalize({mean}, {std})])
image = ImageOps.exif_transpose(Image.open(sys.argv[1]))
if image.mode.startswith("I"):  # 16 bits of grey, of which the model learned the upper byte; Pillow would clip them
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
with torch.inference_mode():
    logits = model(prepare(image.convert("RGB"))[None])["out"]
    logits = interpolate(logits, size=(image.height, image.width), mode="bilinear", align_corners=False)[0]
mask = logits.argmax(0).numpy()
Image.fromarray(mask.astype(np.uint8 if len(classes) <= 256 else np.uint16)).save(sys.argv[2])
for number, name in enumerate(classes):
    print(name, f"{{(mask == number).mean():.4f}}")
"""

DETECT = """\
# python predict.py IMAGE prints a line for each object: its class, its score, and left, top, right, bottom in pixels of the upright image.
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torchvision.models import get_model
from torchvision.transforms.v2 import functional

classes, size = {classes}, {size}
normalised = dict(image_mean={mean}, image_std={std}, min_size=size, max_size=size)
model = get_model({model}, weights=None, weights_backbone=None, num_classes={count} + 1, **normalised).eval()
model.load_state_dict(load_file(Path(__file__).with_name("model.safetensors")))
model.transform.size_divisible = size  # images are padded to a square
image = ImageOps.exif_transpose(Image.open(sys.argv[1]))
if image.mode.startswith("I"):  # 16 bits of grey, of which the model learned the upper byte; Pillow would clip them
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
image = functional.pil_to_tensor(image.convert("RGB"))
small = functional.resize(image, None, max_size=size, antialias=True)
zoom = torch.tensor([image.shape[2] / small.shape[2], image.shape[1] / small.shape[1]] * 2)
with torch.inference_mode():
    model([torch.zeros(3, size, size)])  # torchvision learns the strides of its features from the first image: it must fill the square
    [found] = model([small / 255])
for label, score, box in zip(found["labels"], found["scores"], found["boxes"] * zoom):
    print(classes[label - 1], f"{{score:.4f}}", *(f"{{edge:.1f}}" for edge in box.tolist()))
"""

PROGRAMS = {  # task -> the program, and what it is called with
    "classify": (CLASSIFY, "IMAGE"),
    "segment": (SEGMENT, "IMAGE MASK.png"),
    "detect": (DETECT, "IMAGE"),
}
