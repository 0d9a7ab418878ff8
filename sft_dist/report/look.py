"""Looking into a run's data and model once more, for its report: what there is goes into files, so that the page needs neither again."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sft_dist import archive, checkpoint, datasets, parse
from sft_dist.config import Config
from sft_dist.datasets import Splits
from sft_dist.errors import SftError
from sft_dist.history import reading
from sft_dist.loading import Samples
from sft_dist.report import exhibits, features, gradcam, segments
from sft_dist.report.answers import Answer
from sft_dist.report.exhibits import Balance, Cam, Drawn, Drift, Embedding, Exhibits
from sft_dist.report.scene import Scene, picture_of, samples_of, save, spread
from sft_dist.report.study import Study, study
from sft_dist.rundir import RunDir, read_json, step_name
from sft_dist.schedule import Pick
from sft_dist.tasks import TASKS

SEEN, EPOCHS = 6, 3  # training samples that are shown, and how often each
LOOKED = 8  # wrong answers, and as many right ones, under Grad-CAM
MAPPED = 500  # validation samples of the embedding
AT_ONCE = 32  # images of a forward pass, at most


def look(folder: Path, at: str) -> list[str]:
    """Write the exhibits of a run, each kind as soon as it is made; what was made, in words. Raises ConfigError without a whole checkpoint."""
    run, record = RunDir(folder), reading.read(folder)
    looked = study(record, at)
    found = checkpoint.named(run, "best" if looked.step is None else step_name(looked.step))
    config = parse.load(run.config)
    splits, classes = datasets.load(config.data), checkpoint.classes_of(found)
    (folder / exhibits.FOLDER).mkdir(mode=0o777 if config.run.shared else 0o700, exist_ok=True)
    made = Exhibits(step=int(found.name.removeprefix("step-")), start=_start(config), classes=classes)
    if splits.fingerprint != read_json(found / "state.json").get("fingerprint"):
        made = _with(made, told=("the data is not what the run learned from, so nothing is shown of it",))
        exhibits.write(folder, made)
        return list(made.told)
    scene, told = _scene(config, folder, found, splits, looked)
    made = _with(made, told=tuple(told))
    for title, makes in SECTIONS[config.task].items():
        made = _shown(title, makes, scene, made)
        exhibits.write(folder, made)
    return [f"looked into {found.name}: {exhibits.FOLDER}/{exhibits.FILE} and {len(exhibits.pictures(made))} pictures", *made.told]


def change(start: Sequence[Tensor], end: Sequence[Tensor]) -> float | None:
    """How far weights moved, relative to their size at the start; None where they were all zero then and have moved."""
    was = sum(float(a.detach().double().square().sum()) for a in start)
    moved = sum(float((b.detach().double() - a.detach().double()).square().sum()) for a, b in zip(start, end, strict=True))
    return None if not was and moved > 0 else (moved / (was or 1.0)) ** 0.5


def _shown(title: str, makes: Callable[[Scene], dict[str, Any]], scene: Scene, made: Exhibits) -> Exhibits:
    """The exhibits with those of one more section; without them, and a word of why, where there are no numbers to show."""
    try:
        shown = makes(scene)
        return _with(made, **{**shown, "told": (*made.told, *shown.get("told", ()))})
    except (ArithmeticError, ValueError, RuntimeError) as error:
        reason = "the weights are not finite" if isinstance(error, ValidationError) else next(iter(str(error).splitlines()), "")
        return _with(made, told=(*made.told, f"no {title}: {reason}"))


def _scene(config: Config, folder: Path, found: Path, splits: Splits, looked: Study) -> tuple[Scene, list[str]]:
    """Both models, on the CPU: a GPU may still be full of the run itself."""
    config = config.model_copy(update={"model": config.model.model_copy(update={"activation_checkpointing": False})})
    build = TASKS[config.task].build
    after, _ = build(config, splits.classes, weights=False)
    drawn = {name: parameter.detach().clone() for name, parameter in after.named_parameters()}
    before: nn.Module | None = None
    told = []
    try:
        before, _ = build(config, splits.classes)
        before.eval()
    except SftError as error:
        told = [f"the weights at the start cannot be had again, so nothing is compared with them: {'; '.join(error.problems)}"]
    start = dict(before.named_parameters()) if before else {}
    fresh = frozenset(name for name, parameter in start.items() if torch.equal(parameter, drawn[name]))
    after.load_state_dict(dict(archive.weights(found)))
    return Scene(config, folder, splits.classes, splits, looked, before, after.eval(), fresh), told


def _start(config: Config) -> str:
    """What the weights were before, in words."""
    name = config.model.weights
    return "random weights" if name == "none" else f"the weights {name if name.startswith('run:') else Path(name).name}"


def _with(made: Exhibits, **found: Any) -> Exhibits:
    return made.model_copy(update=found)


def _balance(scene: Scene) -> dict[str, Any]:
    train, val = Counter(scene.splits.train.labels), Counter(scene.splits.val.labels)
    return {"balance": tuple(Balance(name=name, train=train[i], val=val[i]) for i, name in enumerate(scene.classes))}


def _augmented(scene: Scene) -> dict[str, Any]:
    """Some training samples, as evaluation would show them and as they were drawn in the first epochs: the same draws, by the same seeds."""
    split = scene.splits.train
    plain, drawn = (samples_of(scene, split, training) for training in (False, True))
    shown = []
    for number, place in enumerate(spread(len(split), SEEN)):
        looks = [plain[Pick(0, place)], *(drawn[Pick(epoch, place)] for epoch in range(EPOCHS))]
        if not any(sample.problem for sample in looks):
            names = [save(scene.folder, f"seen-{number}-{i}", picture_of(sample.image)) for i, sample in enumerate(looks)]
            truth = scene.classes[split.labels[place]] if split.labels else ""
            shown.append(Drawn(id=split.names[place], truth=truth, plain=names[0], drawn=tuple(names[1:])))
    return {"augmented": tuple(shown)}


def _drift(scene: Scene) -> dict[str, Any]:
    """By layer, in the order of the model: a layer is the module that holds a weight and its bias."""
    if scene.before is None:
        return {}
    start, end = dict(scene.before.named_parameters()), dict(scene.after.named_parameters())
    layers: dict[str, list[str]] = {}
    for name in start:
        layers.setdefault(name.removesuffix(".weight").removesuffix(".bias"), []).append(name)
    found = []
    for layer, names in layers.items():
        found.append(
            Drift(
                layer=layer,
                elements=sum(start[name].numel() for name in names),
                change=change([start[name] for name in names], [end[name] for name in names]),
                learning=any(end[name].requires_grad for name in names),
                fresh=all(name in scene.fresh for name in names),
            )
        )
    return {"drift": tuple(found)}


def _cams(scene: Scene) -> dict[str, Any]:
    """The worst mistakes, and right answers from the least sure to the surest."""
    right = [one for one in scene.looked.doubtful if one.right]
    chosen = [*scene.looked.worst[:LOOKED], *(right[i] for i in spread(len(right), LOOKED))]
    places = {name: i for i, name in enumerate(scene.splits.val.names)}
    there = [one for one in chosen if one.id in places and {one.said, one.truth} <= set(scene.classes)]
    samples = samples_of(scene, scene.splits.val)
    read = [(one, sample.image) for one in there if not (sample := samples[Pick(0, places[one.id])]).problem]
    name = scene.config.model.name
    layer = gradcam.layer(scene.after, name, read[0][1][None]) if read else None
    if not layer:
        return (
            {
                "told": (
                    f"no Grad-CAM: images of {scene.config.data.size} pixels leave no map of {gradcam.SMALLEST} x {gradcam.SMALLEST} places",
                )
            }
            if read
            else {}
        )

    def seen(image: Tensor, of: str) -> Tensor:
        return gradcam.maps(scene.after, name, layer, image[None], [scene.classes.index(of)])[0]

    return {"layer": layer, "cams": tuple(_cam(scene.folder, i, one, image, seen) for i, (one, image) in enumerate(read))}


def _cam(folder: Path, number: int, one: Answer, image: Tensor, seen: Callable[[Tensor, str], Tensor]) -> Cam:
    said, truth = (save(folder, f"cam-{number}-{which}", picture_of(image, seen(image, of))) if which == "said" or not one.right else None
                   for which, of in (("said", one.said), ("truth", one.truth)))  # fmt: skip
    plain = save(folder, f"cam-{number}", picture_of(image))
    return Cam(id=one.id, truth=one.truth, said=one.said, confidence=one.confidence, plain=plain, for_said=str(said), for_truth=truth)


def _embedding(scene: Scene) -> dict[str, Any]:
    if scene.before is None:
        return {}
    split = scene.splits.val
    places = spread(len(split), MAPPED)
    samples = samples_of(scene, split)
    labels = np.array([split.labels[place] for place in places])

    def described(model: nn.Module) -> Any:
        return features.described(features.of(model, scene.config.model.name, _batches(samples, places)), labels)

    return {"embedding": Embedding(labels=tuple(labels.tolist()), before=described(scene.before), after=described(scene.after))}


def _batches(samples: Samples, places: Sequence[int]) -> Iterator[Tensor]:
    for first in range(0, len(places), AT_ONCE):
        yield torch.stack([samples[Pick(0, place)].image for place in places[first : first + AT_ONCE]])


Section = Callable[[Scene], dict[str, Any]]
ALWAYS: dict[str, Section] = {"augmented samples": _augmented, "change of the weights": _drift}
SECTIONS: dict[str, dict[str, Section]] = {
    "classify": {"class balance": _balance, **ALWAYS, "Grad-CAM": _cams, "embedding": _embedding},
    "segment": {**ALWAYS, "masks": segments.drawn},
    "detect": ALWAYS,
}
"""Task -> what is looked for."""
