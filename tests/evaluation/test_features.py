"""Evaluation sees every readable image, in order, whatever the workers."""

import numpy as np
import pytest
import torch
from support.processes import in_processes

from simclr.data import open_source
from simclr.errors import DataError
from simclr.evaluation.features import EvalBatches, extract_together
from simclr.views.preprocess import Preprocess

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*use of fork")


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_batches_come_in_order_without_unreadable_images(folder, workers):
    preprocess = Preprocess(8)
    batches = EvalBatches(folder, preprocess, batch=10, workers=workers)
    found = list(batches)
    indices = np.concatenate([index for index, _ in found])
    names = [folder.path(i) for i in indices]
    assert names == [f"{k:02}.png" for k in range(37) if k not in (5, 11, 23)]
    assert [len(index) for index, _ in found] == [9, 9, 9, 7]
    assert batches.bad.keys() == {"05.png", "11.png", "23.png"}
    expected = torch.stack([preprocess(folder.read(i)) for i in indices])
    assert torch.equal(torch.cat([images for _, images in found]), expected)


def test_evaluation_of_images_in_memory():
    source = open_source("sample", "test")
    found = list(EvalBatches(source, Preprocess(32), batch=640))
    assert [len(images) for _, images in found] == [640, 640, 220]
    images = torch.cat([images for _, images in found])
    expected = torch.from_numpy(source.images).permute(0, 3, 1, 2) / 255
    assert (images - expected).abs().max() < 1e-6


def test_a_batch_that_cannot_be_read_at_all_is_left_out(folder):
    bad = [i for i in range(37) if folder.path(i) in ("05.png", "11.png", "23.png")]
    batches = EvalBatches(folder.select(np.array([*bad, 0]), "all"), Preprocess(8), batch=3)
    assert [index.tolist() for index, _ in batches] == [[3]]


def encoder():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


def extract_share(rank, world, kind, n, root):
    source = open_source(root, "all") if kind == "files" else open_source("sample", "test")
    source = source.select(np.arange(n), "all")
    (features,) = extract_together([encoder()], source, Preprocess(8), batch=4)
    labels = torch.empty(0) if features.labels is None else features.labels
    return features.features, features.indices, labels, sorted(features.bad)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "n", "world"), [("files", 30, 2), ("arrays", 13, 2), ("arrays", 3, 2)])
def test_processes_that_divide_the_images_have_the_features_of_one(folder, kind, n, world):
    """Three images are less than a batch: one of the processes has none."""
    expected = extract_share(0, 1, kind, n, str(folder.root))
    assert len(expected[0]) == n - (3 if kind == "files" else 0)
    for share in in_processes(extract_share, kind, n, str(folder.root), world=world):
        assert all(map(torch.equal, share[:3], expected[:3])) and share[3] == expected[3]


def fail_on_one(rank, world):
    source = open_source("sample", "test").select(np.arange(8), "all")
    network = encoder()
    if rank == 1:
        network.register_forward_hook(lambda *_: (_ for _ in ()).throw(DataError("x.tar", "it is truncated")))
    try:
        extract_together([network], source, Preprocess(8), batch=4)
    except DataError as error:
        return error.path
    return ""


@pytest.mark.slow
def test_an_error_of_one_process_is_raised_by_all():
    assert in_processes(fail_on_one) == ["x.tar", "x.tar"]
