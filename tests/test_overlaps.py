"""mIoU is scikit-learn's, mAP is pycocotools', and what resampling says of differences in them is scipy's, on random and on real images."""

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, stats
from sklearn.metrics import jaccard_score
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier

from sft_dist.compare import resampling
from sft_dist.compare.overlaps import mean_ap, pixels, ranked
from sft_dist.compare.resampling import Evidence, Score
from sft_dist.overlaps import Found, Objects, confusion

Masks = NDArray[np.int64]
Scene = tuple[list[Objects], list[list[Found]]]
VOID = 255


def tables(truths: Sequence[Masks], said: Sequence[Masks], classes: int) -> NDArray[np.int64]:
    """One run's evidence: 1 x images x 3 x classes."""
    found = np.array([[confusion(there, guess, classes) for there, guess in zip(truths, said, strict=True)]])
    return np.stack([np.einsum("rikk->rik", found), found.sum(2), found.sum(3)], axis=2)


def sklearns(truths: Sequence[Masks], said: Sequence[Masks]) -> float:
    there, guess = np.concatenate([mask.ravel() for mask in truths]), np.concatenate([mask.ravel() for mask in said])
    return float(jaccard_score(there[there != VOID], guess[there != VOID], average="macro"))


def drawn_masks(random: np.random.Generator, images: int, classes: int = 4, right: Sequence[float] = (0.8, 0.8)) -> list[list[Masks]]:
    """Masks of 12 x 10 pixels of unequal classes, some of them void, and what each run says."""
    shares = 1 / np.arange(1, classes + 1)
    truths = [random.choice([*range(classes), VOID], (12, 10), p=[*(0.9 * shares / shares.sum()), 0.1]) for _ in range(images)]
    said = [
        [np.where((random.random((12, 10)) < good) & (truth != VOID), truth, random.integers(0, classes, (12, 10))) for truth in truths]
        for good in right
    ]
    return [truths, *said]


def pycocotools(objects: Sequence[Objects], found: Sequence[Found]) -> float:
    """COCO's mAP of one run, by COCO's own code."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def wide(box: NDArray[np.float64]) -> list[float]:
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    known, said = [], []
    for image, (there, those) in enumerate(zip(objects, found, strict=True)):
        crowd = [False] * len(there.labels) if there.crowd is None else there.crowd
        for box, label, many in zip(there.boxes, there.labels, crowd, strict=True):
            area = (box[2] - box[0]) * (box[3] - box[1])
            known.append({"image_id": image, "category_id": label, "bbox": wide(box), "area": area, "iscrowd": int(many)})
        for box, label, score in zip(those.boxes, those.labels, those.scores, strict=True):
            said.append({"image_id": image, "category_id": label, "bbox": wide(box), "score": score})
    truths = COCO()
    truths.dataset = {
        "images": [{"id": image} for image in range(len(objects))],
        "categories": [{"id": label} for label in sorted({each["category_id"] for each in known})],
        "annotations": [each | {"id": number} for number, each in enumerate(known, 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truths.createIndex()
        judge = COCOeval(truths, truths.loadRes(said), "bbox")
        judge.params.areaRng, judge.params.areaRngLbl, judge.params.maxDets = (
            [[0, 1e10]],
            ["all"],
            [100],
        )  # the others for themselves cost time
        judge.evaluate()
        judge.accumulate()
    precisions = judge.eval["precision"][:, :, :, 0, -1]  # thresholds x recalls x classes; -1 for classes without an object
    return float(precisions[precisions > -1].mean())


def boxes(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    corners = random.integers(0, 56, (count, 2))
    return np.concatenate([corners, corners + random.integers(4, 24, (count, 2))], 1).astype(float)


def drawn_boxes(
    random: np.random.Generator,
    images: int,
    classes: int = 3,
    objects: int = 8,
    false: int = 4,
    shaken: Sequence[float] = (1.0, 1.0),
    grain: int = 2**20,
) -> Scene:
    """Objects, as many as `objects` in an image or none, and what runs find: most objects, moved a little (pixels), and some that is not there.

    Scores are in steps of 1 / grain: a small one makes ties.
    """
    scene: list[Objects] = []
    found: list[list[Found]] = [[] for _ in shaken]
    for _ in range(images):
        count = int(random.integers(0, objects + 1))
        scene.append(Objects(boxes(random, count), random.integers(0, classes, count)))
        for run, far in enumerate(shaken):
            seen, wrong = random.random(count) < 0.85, int(random.integers(0, false + 1))
            near = scene[-1].boxes[seen] + np.round(4 * random.normal(0, far, (seen.sum(), 4))) / 4
            near = np.concatenate([np.minimum(near[:, :2], near[:, 2:]), np.maximum(near[:, :2], near[:, 2:])], 1)
            labels = np.where(random.random(seen.sum()) < 0.9, scene[-1].labels[seen], random.integers(0, classes, seen.sum()))
            scores = np.concatenate([random.integers(grain // 4, grain, seen.sum()), random.integers(0, 3 * grain // 4, wrong)]) / grain
            mixed = random.permutation(len(scores))
            there, what = np.concatenate([near, boxes(random, wrong)]), np.concatenate([labels, random.integers(0, classes, wrong)])
            found[run].append(Found(there[mixed], what[mixed], scores[mixed]))
    return scene, found


def scored(evidence: Evidence, score: Score) -> float:
    return float(score(np.asarray(evidence.sum(0))[None])[0])


@pytest.mark.parametrize("images", [1, 5, 40])
def test_a_difference_in_miou_is_scikit_learns(images: int) -> None:
    truths, one, other = drawn_masks(np.random.default_rng(images), images, right=(0.6, 0.9))
    found = pixels(tables(truths, one, 4), tables(truths, other, 4))
    assert found.value == pytest.approx(sklearns(truths, other) - sklearns(truths, one), abs=1e-12)


def test_a_class_that_no_pixel_is_or_is_said_to_be_is_left_out_of_miou_and_one_that_is_only_said_is_not() -> None:
    truth, said, right = np.array([[0, 0, 1, 1]]), np.array([[0, 0, 1, 2]]), np.array([[0, 0, 1, 1]])
    assert pixels(tables([truth], [right], 4), tables([truth], [said], 4)).value == pytest.approx((1 + 1 / 2 + 0) / 3 - 1)


def test_pixels_of_no_class_are_left_out() -> None:
    assert confusion(np.array([[0, 1, 1], [2, 255, -1]]), np.array([[0, 0, 1], [0, 0, 0]]), 2).tolist() == [[1, 0], [1, 1]]


def test_a_pixel_that_is_said_to_be_of_no_class_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="a pixel is said to be of no class"):
        confusion(np.array([[0, 1]]), np.array([[0, 4]]), 4)


@pytest.mark.parametrize(
    ("images", "classes", "objects", "false", "grain"),
    [(1, 1, 3, 2, 2**20), (30, 3, 8, 4, 2**20), (30, 5, 8, 4, 16), (6, 1, 30, 300, 2**20), (12, 2, 12, 100, 64)],
    ids=["one image", "several classes", "ties", "more than 100 in an image", "crowded, with ties"],
)
@pytest.mark.parametrize("crowds", [0.0, 0.3])
def test_map_is_that_of_pycocotools(images: int, classes: int, objects: int, false: int, grain: int, crowds: float) -> None:
    random = np.random.default_rng(images + classes)
    scene, runs = drawn_boxes(random, images, classes, objects, false, grain=grain)
    scene[0] = Objects(boxes(random, 1), np.array([0]))
    if crowds:
        scene[1:] = [Objects(each.boxes, each.labels, random.random(len(each.labels)) < crowds) for each in scene[1:]]
    evidence, score = ranked(scene, runs)
    assert [scored(each, score) for each in evidence] == pytest.approx([pycocotools(scene, run) for run in runs], abs=1e-12)


def test_classes_may_bear_any_numbers() -> None:
    scene, [run] = drawn_boxes(np.random.default_rng(8), 10, shaken=(1.0,))
    numbers = np.array([1, 90, 17])
    named = [Objects(each.boxes, numbers[each.labels]) for each in scene]
    renamed = [Found(each.boxes, numbers[each.labels], each.scores) for each in run]
    [one], score = ranked(scene, [run])
    [other], other_score = ranked(named, [renamed])
    assert scored(other, other_score) == pytest.approx(scored(one, score))
    assert scored(other, other_score) == pytest.approx(pycocotools(named, renamed))


def test_of_two_objects_that_a_box_overlaps_alike_it_takes_the_last_as_in_pycocotools() -> None:
    """The second box overlaps the first object alone, and gets it."""
    scene = [Objects(np.array([[0.0, 0, 8, 10], [2, 0, 10, 10]]), np.array([0, 0]))]
    found = [Found(np.array([[0.0, 0, 10, 10], [0, 0, 6, 10]]), np.array([0, 0]), np.array([0.9, 0.8]))]
    evidence, score = ranked(scene, [found])
    assert scored(evidence[0], score) == pytest.approx(pycocotools(scene, found))
    assert scored(evidence[0], score) == pytest.approx((6 * 1 + 1 * 51 / 101) / 10)


def test_a_box_without_area_is_an_object_that_is_never_found_and_one_that_ends_before_it_begins_is_a_mistake() -> None:
    scene = [Objects(np.array([[0.0, 0, 9, 9], [5, 5, 5, 5]]), np.array([0, 0]))]
    found = [Found(np.array([[5.0, 5, 5, 5], [0, 0, 9, 9]]), np.array([0, 0]), np.array([0.5, 0.9]))]
    evidence, score = ranked(scene, [found])
    assert scored(evidence[0], score) == pytest.approx(51 / 101)
    assert pycocotools(scene, found) == pytest.approx(51 / 101)
    with pytest.raises(AssertionError, match="a box ends before it begins"):
        ranked(scene, [[Found(np.array([[9.0, 0, 0, 9]]), np.array([0]), np.array([0.9]))]])


def test_drawn_and_swapped_images_sum_up_to_the_map_of_these_images() -> None:
    """What resampling rests on: mAP, which ranks the detections of all images, is a function of counts that add over images."""
    random = np.random.default_rng(3)
    scene, runs = drawn_boxes(random, 12, classes=6, objects=3)  # so that some draws lack a class
    evidence, score = ranked(scene, runs)
    for _ in range(20):
        draw = random.integers(0, 12, 12)
        sides = random.integers(0, 2, 12)
        chosen = sum(evidence[side][[image]] for image, side in zip(draw, sides, strict=True))
        mixed = [runs[side][image] for image, side in zip(draw, sides, strict=True)]
        assert scored(chosen, score) == pytest.approx(pycocotools([scene[image] for image in draw], mixed), abs=1e-12)


def test_a_run_that_finds_nothing_scores_zero_and_one_that_finds_all_scores_one() -> None:
    scene, _ = drawn_boxes(np.random.default_rng(0), 8)
    everything = [Found(each.boxes, each.labels, np.ones(len(each.labels))) for each in scene]
    nothing = [Found(np.empty((0, 4)), np.empty(0, dtype=int), np.empty(0)) for _ in scene]
    found = mean_ap(scene, [nothing], [everything])
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))
    assert all(len(each.labels) for each in scene)
    assert found.p == pytest.approx(2 / 2**8, abs=error(2 / 2**8))  # only to swap none or all eight is as far apart
    for same in (nothing, everything):
        unchanged = mean_ap(scene, [same], [same])
        assert (unchanged.value, unchanged.low, unchanged.high, unchanged.p) == (0, 0, 0, 1)


def over_all_swaps(score: Callable[[NDArray[np.int64]], float], images: int) -> float:
    """scipy's p over all swaps of so many images. score: of the images of one side, of which those of the other run are told as negative."""

    def statistic(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
        return abs(score(other) - score(one))

    sides = np.arange(1, images + 1), -np.arange(1, images + 1)
    test = stats.permutation_test(sides, statistic, permutation_type="samples", vectorized=False, alternative="greater", n_resamples=np.inf)
    return float(test.pvalue)


def error(p: float) -> float:
    """Four standard errors of a p value from random swaps."""
    return 4 * float(np.sqrt(p * (1 - p) / resampling.SWAPS))


def test_the_permutation_test_of_miou_is_scipys_over_all_swaps() -> None:
    truths, one, other = drawn_masks(np.random.default_rng(2), 7, right=(0.7, 0.72))
    theirs = over_all_swaps(lambda images: sklearns(truths, [one[i - 1] if i > 0 else other[-i - 1] for i in images]), 7)
    found = pixels(tables(truths, one, 4), tables(truths, other, 4))
    assert 0.02 < theirs < 0.9
    assert (found.test, found.p) == ("permutation", pytest.approx(theirs, abs=error(theirs)))


def test_the_permutation_test_of_map_is_scipys_over_all_swaps() -> None:
    scene, (one, other) = drawn_boxes(np.random.default_rng(2), 7, shaken=(1.6, 1.0))
    theirs = over_all_swaps(lambda images: pycocotools(scene, [one[i - 1] if i > 0 else other[-i - 1] for i in images]), 7)
    found = mean_ap(scene, [one], [other])
    assert 0.02 < theirs < 0.9
    assert (found.test, found.p) == ("permutation", pytest.approx(theirs, abs=error(theirs)))


def scipys_interval(difference: Callable[[NDArray[np.int64]], float], images: int, draws: int) -> tuple[float, float]:
    interval = stats.bootstrap(
        (np.arange(images),), difference, n_resamples=draws, method="percentile", vectorized=False, rng=np.random.default_rng(0)
    ).confidence_interval
    return interval.low, interval.high


def test_the_bootstrap_of_miou_is_scipys_within_its_own_noise() -> None:
    truths, one, other = drawn_masks(np.random.default_rng(4), 30, right=(0.7, 0.75))

    def difference(images: NDArray[np.int64]) -> float:
        there = [truths[i] for i in images]
        return sklearns(there, [other[i] for i in images]) - sklearns(there, [one[i] for i in images])

    low, high = scipys_interval(difference, 30, 400)
    found = pixels(tables(truths, one, 4), tables(truths, other, 4))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.12 * (high - low))


def test_the_bootstrap_of_map_is_scipys_within_its_own_noise() -> None:
    scene, (one, other) = drawn_boxes(np.random.default_rng(4), 20, shaken=(1.5, 1.0))

    def difference(images: NDArray[np.int64]) -> float:
        there = [scene[i] for i in images]
        return pycocotools(there, [other[i] for i in images]) - pycocotools(there, [one[i] for i in images])

    low, high = scipys_interval(difference, 20, 400)
    found = mean_ap(scene, [one], [other])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.12 * (high - low))


def test_seeds_are_compared_by_their_means_and_by_students_test() -> None:
    scene, runs = drawn_boxes(np.random.default_rng(6), 25, shaken=(2.5, 2.5, 2.5, 0.5, 0.5, 0.5))
    scores = [pycocotools(scene, run) for run in runs]
    found = mean_ap(scene, runs[:3], runs[3:])
    assert found.value == pytest.approx(np.mean(scores[3:]) - np.mean(scores[:3]))
    assert found.test == "bootstrap t" and found.low > 0 and found.p < 0.01
    truths, *said = drawn_masks(np.random.default_rng(6), 25, right=(0.7, 0.7, 0.8, 0.8))
    one, other = (np.concatenate([tables(truths, run, 4) for run in side]) for side in (said[:2], said[2:]))
    masks = pixels(one, other)
    assert masks.value == pytest.approx(
        np.mean([sklearns(truths, run) for run in said[2:]]) - np.mean([sklearns(truths, run) for run in said[:2]])
    )
    assert masks.test == "bootstrap t" and masks.low > 0 and masks.p < 0.01


def test_draws_of_boxes_are_the_same_each_time_and_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, (one, other) = drawn_boxes(np.random.default_rng(5), 12)
    whole = mean_ap(scene, [one], [other])
    monkeypatch.setattr(resampling, "CELLS", 50_000)
    pieces = mean_ap(scene, [one], [other])
    assert (pieces.low, pieces.high, pieces.p) == pytest.approx((whole.low, whole.high, whole.p))


def alarms(compare: Callable[[np.random.Generator], float], repeats: int) -> int:
    random = np.random.default_rng(0)
    return sum(compare(random) < 0.05 for _ in range(repeats))


def test_equal_recipes_are_rarely_told_apart_and_different_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "SWAPS", 199)
    monkeypatch.setattr(resampling, "BOOTSTRAPS", 20)

    def by_boxes(random: np.random.Generator, shaken: tuple[float, float] = (1.5, 1.5)) -> float:
        scene, (one, other) = drawn_boxes(random, 15, shaken=shaken)
        return mean_ap(scene, [one], [other]).p

    def by_masks(random: np.random.Generator, right: tuple[float, float] = (0.8, 0.8)) -> float:
        truths, one, other = drawn_masks(random, 15, right=right)
        return pixels(tables(truths, one, 4), tables(truths, other, 4)).p

    for compare in (by_boxes, by_masks):
        assert alarms(compare, 100) <= 11  # of 100 with 5 %: 5, and 2.8 standard errors
    assert alarms(lambda random: by_boxes(random, (2.5, 1.0)), 10) == 10
    assert alarms(lambda random: by_masks(random, (0.75, 0.85)), 10) == 10


@pytest.mark.real
def test_two_pixel_classifiers_on_real_street_scenes_are_told_apart(real_data: Path) -> None:
    """Every second pixel of CamVid, by colour and place; class 11 is void."""

    def coloured(mask: Path) -> NDArray[np.float64]:
        image = np.asarray(Image.open(mask.parent.parent / "images" / f"{mask.stem}.jpg").convert("RGB"))[::2, ::2]
        rows, columns = np.indices(image.shape[:2])
        return np.dstack([image, rows, columns]).reshape(-1, 5).astype(float)

    def truth(mask: Path) -> Masks:
        classes = np.asarray(Image.open(mask))[::2, ::2].ravel().astype(np.int64)
        return np.where(classes < 11, classes, VOID)

    known, asked = (sorted((real_data / "camvid" / split / "masks").iterdir()) for split in ("train", "val"))
    colours, labels = (np.concatenate([read(mask) for mask in known[::25]]) for read in (coloured, truth))
    models: list[Any] = [GaussianNB(), DecisionTreeClassifier(max_depth=8, random_state=0)]
    fitted = [model.fit(colours[labels != VOID], labels[labels != VOID]) for model in models]
    truths, seen = [truth(mask) for mask in asked], [coloured(mask) for mask in asked]
    one, other = ([model.predict(image) for image in seen] for model in fitted)
    found = pixels(tables(truths, one, 11), tables(truths, other, 11))
    assert found.value == pytest.approx(sklearns(truths, other) - sklearns(truths, one), abs=1e-12)
    assert 0 < found.low < found.value < found.high and found.p < 0.001


CELLS = ("RBC", "WBC", "Platelets")


def cells(photo: Path) -> Objects:
    """What BCCD says is in a photo; some boxes have no area."""
    tree = ElementTree.parse(photo.parent.parent / "Annotations" / f"{photo.stem}.xml")
    there = [
        (CELLS.index(each.findtext("name", "")), [float(each.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")])
        for each in tree.iter("object")
    ]
    return Objects(np.array([box for _, box in there]), np.array([label for label, _ in there]))


def colours_of(photo: Path) -> NDArray[np.float64]:
    """At a quarter of the size: 120 x 160 pixels."""
    with Image.open(photo) as image:
        image.draft("RGB", (160, 120))
        return np.asarray(image.convert("RGB")).reshape(-1, 3).astype(float)


def blobs(model: Any, photo: Path) -> Found:
    """Connected pixels of one class, with their mean probability for a score."""
    sure = model.predict_proba(colours_of(photo)).reshape(120, 160, 4)
    said, there = sure.argmax(2), []
    for label in range(len(CELLS)):
        marks, _ = ndimage.label(said == label + 1)
        for number, (rows, columns) in enumerate(ndimage.find_objects(marks), 1):
            inside = marks[rows, columns] == number
            if inside.sum() >= 25:
                box = [4.0 * edge for edge in (columns.start, rows.start, columns.stop, rows.stop)]
                there.append((box, label, sure[rows, columns, label + 1][inside].mean()))
    return Found(np.array([box for box, *_ in there]).reshape(-1, 4), *(np.array([each[i] for each in there]) for i in (1, 2)))


@pytest.mark.real
def test_two_models_that_find_real_blood_cells_by_their_colour_are_told_apart(real_data: Path) -> None:
    splits = [(real_data / "bccd" / "ImageSets" / "Main" / f"{split}.txt").read_text().split() for split in ("train", "val")]
    known, asked = ([real_data / "bccd" / "JPEGImages" / f"{name}.jpg" for name in names] for names in splits)
    labels = []
    for photo in known[::10]:
        mask, there = np.zeros((120, 160), dtype=int), cells(photo)
        for place in np.argsort(there.labels, kind="stable"):
            left, top, right, bottom = (there.boxes[place] / 4).astype(int)
            mask[top:bottom, left:right] = there.labels[place] + 1
        labels.append(mask.ravel())
    models: list[Any] = [GaussianNB(), DecisionTreeClassifier(max_depth=8, random_state=0)]
    for model in models:
        model.fit(np.concatenate([colours_of(photo) for photo in known[::10]]), np.concatenate(labels))
    scene, (one, other) = [cells(photo) for photo in asked], ([blobs(model, photo) for photo in asked] for model in models)
    assert any((each.boxes[:, 2:] == each.boxes[:, :2]).any() for each in scene)
    found = mean_ap(scene, [one], [other])
    assert found.value == pytest.approx(pycocotools(scene, other) - pycocotools(scene, one), abs=1e-12)
    assert 0 < found.low < found.value < found.high and found.p < 0.001
