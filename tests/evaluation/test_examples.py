"""Test images that are kept beside a result: their predictions, their map and their neighbours."""

import json
from base64 import b64decode

import numpy as np
import pytest
import torch
from support.evaluated import squares, write_arrays, write_encoder

from simclr.data import open_source
from simclr.errors import SettingError
from simclr.evaluation.examples import MAPPED, Examples, examples_of, read_examples, save_examples, with_features
from simclr.evaluation.features import Features
from simclr.evaluation.projection import pca
from simclr.runs.machine import Device
from simclr.tasks.knn import Knn
from simclr.tasks.linear import Linear


@pytest.fixture
def measured(tmp_path):
    """The test split of a data set, its features, and scores of three classes."""
    source = open_source(str(write_arrays(tmp_path / "data.npz")), "test")
    features = torch.randn(len(source), 5, generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(source.labels)
    return source, Features(features, labels, torch.arange(len(source)), {}), features[:, :3].exp()


def test_predictions_are_those_of_the_scores(measured):
    source, tested, scores = measured
    examples = examples_of("data", source, tested, scores)
    assert examples.predicted.tolist() == scores.argmax(1).tolist()
    assert examples.confidence == pytest.approx((scores / scores.sum(1, keepdim=True)).max(1).values.numpy())
    assert examples.names.tolist() == [source.path(i) for i in range(len(source))]
    assert examples.labels.tolist() == source.labels.tolist()


def test_neighbours_are_the_nearest_other_images_of_images_of_different_classes(measured):
    source, tested, scores = measured
    examples = with_features(examples_of("data", source, tested, scores), tested.features, seed=0)
    unit = torch.nn.functional.normalize(tested.features.double()).numpy()
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    for query, rows, values in zip(examples.queries, examples.neighbours, examples.cosines, strict=True):
        assert rows.tolist() == np.argsort(-cosines[query])[: len(rows)].tolist()
        assert values == pytest.approx(cosines[query][rows], abs=1e-6)
    assert len(set(examples.queries.tolist())) == len(examples.queries)
    assert sorted(examples.labels[examples.queries[:3]].tolist()) == [0, 1, 2]


def test_the_map_has_the_principal_components_of_at_most_ten_thousand_images(measured):
    source, tested, scores = measured
    examples = with_features(examples_of("data", source, tested, scores), tested.features, seed=0)
    assert examples.mapped.tolist() == list(range(len(source)))
    assert examples.points == pytest.approx(pca(tested.features)[0], abs=1e-6)
    many = torch.randn(3 * MAPPED, 2)
    labels = np.zeros(len(many), np.int64)
    large = with_features(examples._replace(labels=labels, names=labels.astype(str)), many, seed=0)
    assert len(large.points) == len(large.mapped) == MAPPED
    assert (np.diff(large.mapped) >= 2).all()


def test_features_without_a_map_leave_the_predictions(measured):
    source, tested, scores = measured
    examples = examples_of(None, source, tested, scores)
    for features in (torch.full((60, 5), torch.nan), torch.zeros(60, 1)):
        assert len(with_features(examples, features, seed=0).points) == 0
    assert examples.data == ""


def test_a_file_is_read_as_written_and_a_damaged_one_is_left_out(measured, tmp_path):
    source, tested, scores = measured
    examples = with_features(examples_of("data", source, tested, scores), tested.features, seed=0)
    save_examples(examples, tmp_path / "knn.json")
    read = read_examples(tmp_path / "knn.json")
    assert all(np.array_equal(a, b) for a, b in zip(read, examples, strict=True))
    for name, value in (("labels", examples.labels[1:]), ("predicted", examples.predicted + 3),
                        ("neighbours", examples.neighbours - 100)):  # fmt: skip
        save_examples(examples._replace(**{name: value}), tmp_path / "knn.json")
        assert read_examples(tmp_path / "knn.json") is None
    (tmp_path / "knn.npz").write_bytes(b"PK")
    assert read_examples(tmp_path / "knn.json") is read_examples(tmp_path / "none.json") is None


@pytest.mark.slow
@pytest.mark.parametrize("task", [Knn, Linear])
def test_a_measurement_keeps_the_images_of_its_figure(task, tmp_path):
    run, data = write_encoder(tmp_path / "run"), str(write_arrays(tmp_path / "data.npz"))
    (result,) = task(run=run, data=data, baselines=False)()["results"]
    examples = read_examples(run / f"{task.command}.json")
    assert isinstance(examples, Examples)
    assert (examples.labels == examples.predicted).mean() == pytest.approx(result["value"])
    hits = np.unpackbits(np.frombuffer(b64decode(result["hits"]), np.uint8))[:60]
    assert hits.tolist() == (examples.labels == examples.predicted).tolist()
    assert examples.labels.tolist() == squares(60, 1)[1].tolist()
    assert json.loads((run / f"{task.command}.json").read_text())["settings"]["data"] == examples.data


@pytest.mark.slow
@pytest.mark.parametrize("command", [Knn, Linear])
def test_a_result_is_not_written_in_the_place_of_its_images(command, encoder, data, tmp_path):
    for name in ("r.npz", "r.NPZ"):
        with pytest.raises(SettingError) as refused:
            command(run=encoder, data=str(data), baselines=False, out=tmp_path / name, machine=Device(workers=0))()
        assert refused.value.field == "out"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", [Knn, Linear])
def test_a_file_of_the_user_beside_the_result_is_kept(command, encoder, data, tmp_path):
    def measure(out):
        command(run=encoder, data=str(data), baselines=False, out=out, machine=Device(workers=0))()

    for content in (data.read_bytes(), b"notes"):
        (tmp_path / "photos.npz").write_bytes(content)
        with pytest.raises(SettingError) as refused:
            measure(tmp_path / "photos.json")
        assert refused.value.field == "out"
        assert (tmp_path / "photos.npz").read_bytes() == content
    for _ in range(2):  # images of an older result are replaced
        measure(tmp_path / "own.json")
    assert read_examples(tmp_path / "own.json") is not None
