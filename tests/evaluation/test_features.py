"""Evaluation sees every readable image, in order, whatever the workers."""

import numpy as np
import pytest
import torch

from simclr.data import open_source
from simclr.evaluation.features import eval_batches
from simclr.views.preprocess import Preprocess

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*use of fork")


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_batches_come_in_order_without_unreadable_images(folder, workers):
    preprocess = Preprocess(8)
    batches = eval_batches(folder, preprocess, batch=10, workers=workers)
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
    found = list(eval_batches(source, Preprocess(32), batch=640))
    assert [len(images) for _, images in found] == [640, 640, 220]
    images = torch.cat([images for _, images in found])
    expected = torch.from_numpy(source.images).permute(0, 3, 1, 2) / 255
    assert (images - expected).abs().max() < 1e-6


def test_a_batch_that_cannot_be_read_at_all_is_left_out(folder):
    bad = [i for i in range(37) if folder.path(i) in ("05.png", "11.png", "23.png")]
    batches = eval_batches(folder.select(np.array([*bad, 0]), "all"), Preprocess(8), batch=3)
    assert [index.tolist() for index, _ in batches] == [[3]]
