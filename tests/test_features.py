"""Features are what the head gets; their components and neighbours are those of scikit-learn."""

import numpy as np
import torch
import torchvision
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from sft_dist.report import features


def clouds() -> tuple[features.Features, np.ndarray]:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 20)
    return random.normal(size=(60, 12)) + 2 * np.eye(12)[labels], labels


def test_components_are_those_of_scikit_learn() -> None:
    rows, _ = clouds()
    points, explained = features.principal(rows)
    theirs = PCA(2).fit(rows)
    assert np.allclose(np.abs(points), np.abs(theirs.transform(rows)))
    assert np.allclose(explained, theirs.explained_variance_ratio_)


def test_neighbours_are_those_of_scikit_learn() -> None:
    rows, labels = clouds()
    _, near = NearestNeighbors(n_neighbors=2, metric="cosine").fit(rows).kneighbors(rows)
    assert features.neighbours(rows, labels) == np.mean(labels[near[:, 1]] == labels)


def test_features_are_what_the_head_gets() -> None:
    model = torchvision.models.mobilenet_v2(num_classes=3).eval()
    images = torch.randn(5, 3, 32, 32)
    found = features.of(model, "mobilenet_v2", [images[:2], images[2:]])
    with torch.no_grad():
        assert torch.allclose(model.classifier[1](torch.tensor(found).float()), model(images), atol=1e-5)
    assert found.shape == (5, 1280) and not model.classifier[1]._forward_pre_hooks


def test_rows_that_are_all_alike_have_no_variance_and_no_error() -> None:
    found = features.described(np.ones((3, 1)), np.array([0, 1, 1]))
    assert found.points == ((0, 0),) * 3 and found.explained == (0, 0)
    assert features.neighbours(np.zeros((1, 4)), np.array([0])) == 0
