"""torchvision's Faster R-CNN with a loss that adds: that of each image is what torchvision gives for it alone, whatever shares its batch."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import concat_box_prediction_layers

from sft_dist import models
from sft_dist.config import Config
from sft_dist.schedule import draw_seed

Target = dict[str, Tensor]
"""boxes: float of n x 4, in pixels of the image as the model sees it. labels: int64 of n, from 1; 0 is the background."""
Size = tuple[int, int]
OFFERS = ("loss_objectness", "loss_rpn_box_reg")  # torchvision's names
BOXES = ("loss_classifier", "loss_box_reg")


class Truths(NamedTuple):
    """What a batch is learned from, one entry an image. draws: seeds of the anchors and proposals that are sampled."""

    targets: Sequence[Target]
    draws: Sequence[int]


def build(config: Config, classes: Sequence[str], weights: bool = True) -> tuple[nn.Module, list[str]]:
    """The detector of a config for `classes` and the background, frozen as asked for, and what there is to say of its weights.

    Its batch norms are plain ones, which `model.norm` rules as in every network, where torchvision puts FrozenBatchNorm2d into one that
    starts from weights; names and shapes are the same. (Only the epsilon of 0 that torchvision sets for one old set of weights is not.)
    """
    torch.manual_seed(draw_seed("model", config.train.seed))
    parts = models.network(config, len(classes))
    assert isinstance(parts, GeneralizedRCNN)
    model, told = models.furnish(Detector(parts), config, classes, weights)
    model.register_forward_pre_hook(models.normalise(config.data.mean, config.data.std))
    return model, told


class Detector(GeneralizedRCNN):  # type: ignore[misc]  # torchvision has no types there
    """A network of torchvision with another forward pass over the same parts, so that all names of parameters are torchvision's.

    Every part runs once a batch, as often on each rank however many images it has: sharded parameters are gathered part by part.
    """

    def __init__(self, parts: GeneralizedRCNN) -> None:
        super().__init__(parts.backbone, parts.rpn, parts.roi_heads, parts.transform)
        generator = self.rpn.anchor_generator
        assert isinstance(generator, AnchorGenerator)
        with torch.device("cpu"):  # anchors are no parameters, and nobody fills them where the model is built on the meta device
            sizes = zip(generator.sizes, generator.aspect_ratios, strict=True)
            generator.cell_anchors = [generator.generate_anchors(scales, ratios) for scales, ratios in sizes]

    def forward(self, images: Tensor, sizes: Sequence[Size], truths: Truths | None = None) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """The losses of torchvision by name, each summed over the images, if the truths are given; else what is found in each image.

        images: n x 3 x height x width, normalised, of which only `sizes` (height, width), from the upper left corner, is picture.
        """
        features = {level: feature.to(images.dtype) for level, feature in self.backbone(images).items()}  # bf16 is too coarse for anchors
        offers = self._offer(images, features, sizes)
        if truths is None:
            found = self.roi_heads.postprocess_detections(*self._judge(images, features, offers.proposals), offers.proposals, list(sizes))
            return [{"boxes": boxes, "scores": scores, "labels": labels} for boxes, scores, labels in zip(*found, strict=True)]
        losses, chosen = [], []
        for place, (target, draw) in enumerate(zip(truths.targets, truths.draws, strict=True)):
            target = {"boxes": target["boxes"].to(images.dtype), "labels": target["labels"]}
            torch.manual_seed(draw)
            losses.append(self._offers_losses(offers, place, target))
            chosen.append(self._chosen(offers.proposals[place], target, sizes[place]))
        verdicts = self._judge(images, features, [each.proposals for each in chosen])
        parts = (torch.split(each, [len(one.labels) for one in chosen]) for each in verdicts)
        for each, logits, deltas in zip(chosen, *parts, strict=True):
            losses.append(dict(zip(BOXES, fastrcnn_loss(logits, deltas, [each.labels], [each.deltas]), strict=True)))
        return {name: torch.stack([each[name] for each in losses if name in each]).sum() for name in (*OFFERS, *BOXES)}

    def _offer(self, images: Tensor, features: Mapping[str, Tensor], sizes: Sequence[Size]) -> "_Offers":
        """As torchvision's RegionProposalNetwork.forward."""
        maps, (height, width) = list(features.values()), images.shape[-2:]
        scores, deltas = self.rpn.head(maps)
        anchors = self.rpn.anchor_generator(ImageList(images, [(height, width)] * len(images)), maps)
        per_level = [int(score[0].numel()) for score in scores]
        scores, deltas = (each.to(images.dtype) for each in concat_box_prediction_layers(scores, deltas))
        boxes = self.rpn.box_coder.decode(deltas.detach(), anchors).view(len(images), -1, 4)
        proposals, _ = self.rpn.filter_proposals(boxes, scores, list(sizes), per_level)
        return _Offers(anchors[0], scores.view(len(images), -1), deltas.view(len(images), -1, 4), proposals)

    def _offers_losses(self, offers: "_Offers", place: int, target: Target) -> dict[str, Tensor]:
        """Of one image; its anchors are sampled. torchvision's labels are fp32, and would make the loss of fp64 scores fp32 too."""
        labels, boxes = self.rpn.assign_targets_to_anchors([offers.anchors], [target])
        exact = [each.to(offers.scores.dtype) for each in labels]
        wanted = self.rpn.box_coder.encode(boxes, [offers.anchors])
        return dict(zip(OFFERS, self.rpn.compute_loss(offers.scores[place], offers.deltas[place], exact, wanted), strict=True))

    def _chosen(self, proposals: Tensor, target: Target, size: Size) -> "_Chosen":
        """The proposals of one image that are learned from, sampled. In one without objects and proposals, where torchvision's loss of this
        image alone is 0 / 0, all of it is the proposal."""
        if not len(proposals) and not len(target["boxes"]):
            proposals = proposals.new_tensor([[0, 0, size[1], size[0]]])
        [kept], _, [labels], [deltas] = self.roi_heads.select_training_samples([proposals], [target])
        return _Chosen(kept, labels, deltas)

    def _judge(self, images: Tensor, features: Mapping[str, Tensor], proposals: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits and box deltas of all proposals. The pool takes the strides of its features from the first shape that it is told, for good:
        that is the padded one, the same for all images."""
        shapes = [(images.shape[-2], images.shape[-1])] * len(images)
        pooled = self.roi_heads.box_head(self.roi_heads.box_roi_pool(dict(features), list(proposals), shapes))
        logits, deltas = self.roi_heads.box_predictor(pooled)
        return logits.to(images.dtype), deltas.to(images.dtype)


class _Offers(NamedTuple):
    """What the first stage says. anchors: a x 4. scores: n x a. deltas: n x a x 4. proposals: m x 4 each image."""

    anchors: Tensor
    scores: Tensor
    deltas: Tensor
    proposals: list[Tensor]


class _Chosen(NamedTuple):
    """Proposals of one image with what is to be said of them: m x 4, m, m x 4."""

    proposals: Tensor
    labels: Tensor
    deltas: Tensor
