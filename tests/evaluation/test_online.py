"""The k-NN check during training: it reads no query's neighbour twice and leaves the encoder as it was."""

import numpy as np
import pytest
import torch
from support.evaluated import SIZE, fingerprint, squares

from simclr.data import open_source
from simclr.evaluation import online
from simclr.evaluation.online import KnnCheck
from simclr.models import create_encoder
from simclr.views.preprocess import Preprocess


def labelled(n, **options):
    return open_source(list(zip(*squares(n, 0, **options), strict=True)), "all")


def names(source):
    return {source.path(i) for i in range(len(source))}


@pytest.mark.parametrize("n", [50, 120])
def test_a_fifth_of_the_sample_are_queries_and_none_of_them_is_in_the_bank(n, monkeypatch):
    monkeypatch.setattr(online, "KNN_IMAGES", 100)
    check = KnnCheck.of(labelled(n), Preprocess(SIZE))
    assert len(check.queries) == min(n, 100) // 5
    assert len(check.queries) + len(check.bank) == min(n, 100)
    assert not names(check.queries) & names(check.bank)


def test_an_encoder_in_training_stays_in_training_and_nothing_of_it_moves():
    encoder = create_encoder("simclr_resnet10", SIZE, {"width": 0.125}).train()
    before = fingerprint(encoder)
    check = KnnCheck.of(labelled(60), Preprocess(SIZE))
    first = check(encoder, torch.device("cpu"))
    assert all(module.training for module in encoder.modules())
    assert fingerprint(encoder) == before
    encoder.eval()
    assert check(encoder, torch.device("cpu")) == first  # measured in evaluation mode, whatever the mode
    assert not encoder.training


def test_labels_that_nothing_shows_are_at_chance():
    encoder = create_encoder("simclr_resnet10", SIZE, {"width": 0.125})
    found = KnnCheck.of(labelled(600, random_labels=True), Preprocess(SIZE))(encoder, torch.device("cpu"))
    assert abs(found["knn_top1"] - 1 / 3) < 0.15  # 3.5 standard deviations


def test_images_without_labels_have_no_check():
    images, labels = squares(9, 0)
    assert KnnCheck.of(open_source(list(images), "all"), Preprocess(SIZE)) is None
    some = open_source([(image, int(label) if k < 6 else None) for k, (image, label) in
                        enumerate(zip(images, labels, strict=True))], "all")  # fmt: skip
    check = KnnCheck.of(some, Preprocess(SIZE))
    assert np.concatenate([check.bank.labels, check.queries.labels]).min() >= 0
