"""The transformer of scikit-learn gives the features of the encoder wherever scikit-learn takes a transformer."""

import pickle

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data
from support.evaluated import squares, write_encoder

import simclr
from simclr.data import open_source
from simclr.errors import SettingError
from simclr.evaluation.features import extract
from simclr.models import Card, create_encoder, save_encoder

SimCLRFeatures = simclr.SimCLRFeatures


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def images():
    return squares(30, 0)


def test_features_are_those_of_the_encoder_in_every_form_of_the_images(run, images, tmp_path):
    arrays = images[0][:6]
    expected = simclr.load(run).embed(arrays)
    paths = [str(tmp_path / f"{i}.png") for i in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    features = SimCLRFeatures(run).fit(arrays)
    table = pandas.DataFrame({"path": paths})
    for given in (arrays, list(arrays), paths, np.array(paths), table, table.path):
        np.testing.assert_array_equal(features.transform(given), expected)
    np.testing.assert_array_equal(SimCLRFeatures(simclr.load(run)).fit_transform(paths), expected)
    columns = make_column_transformer((SimCLRFeatures(run), ["path"]))
    np.testing.assert_array_equal(columns.fit_transform(table), expected)
    grey = arrays[..., 0]
    np.testing.assert_array_equal(SimCLRFeatures(run).fit_transform(grey), simclr.load(run).embed(list(grey)))
    of_linear = extract(simclr.load(run).network, open_source(arrays, "all"), simclr.load(run).preprocess)
    np.testing.assert_allclose(of_linear.features, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_names_of_features_follow_the_layer(run, images):
    for layer, width in (("h", 64), ("z", 8)):
        features = SimCLRFeatures(run, layer=layer).set_output(transform="pandas")
        table = features.fit_transform(images[0][:2])
        assert list(table) == list(features.get_feature_names_out()) == [f"simclrfeatures{i}" for i in range(width)]


def test_it_is_a_step_of_pipelines_cross_validation_and_searches(run, images):
    classifier = make_pipeline(SimCLRFeatures(run, batch=8), LogisticRegression(C=10.0, max_iter=1000))
    scores = cross_val_score(classifier, *images, cv=2)
    features = simclr.load(run).embed(images[0], batch=8)
    alone = cross_val_score(LogisticRegression(C=10.0, max_iter=1000), features, images[1], cv=2)
    np.testing.assert_allclose(scores, alone, atol=1e-6)
    search = GridSearchCV(classifier, {"simclrfeatures__layer": ["h", "head.1"]}, cv=2).fit(*images)
    assert search.best_params_["simclrfeatures__layer"] in ("h", "head.1")


def test_copies_are_unfitted_and_pickles_are_fitted(run, images):
    features = SimCLRFeatures(run, layer="z").fit(images[0])
    with pytest.raises(NotFittedError):
        clone(features).transform(images[0])
    assert clone(features).get_params() == features.get_params()
    copy = pickle.loads(pickle.dumps(features))
    np.testing.assert_array_equal(copy.transform(images[0]), features.transform(images[0]))


def test_wrong_settings_and_images_are_refused_by_name(run, images):
    for given, field in ((dict(layer="no such layer"), "layer"), (dict(batch=0), "batch")):
        with pytest.raises(SettingError) as refused:
            SimCLRFeatures(run, **given).fit(images[0])
        assert refused.value.field == field
    with pytest.raises(SettingError) as refused:
        SimCLRFeatures(run).fit(images[0]).transform(np.zeros((3, 5)))
    assert refused.value.field == "images"


class OfRows(SimCLRFeatures):
    """The transformer of the numbers that the checks of scikit-learn make: a row is an image of one line."""

    def fit(self, X, y=None):
        validate_data(self, X)
        return super().fit(X)

    def transform(self, X):
        check_is_fitted(self)
        rows = np.clip(30 * validate_data(self, X, reset=False) + 128, 0, 255).astype(np.uint8)
        return super().transform(np.repeat(rows[:, None, :, None], 3, axis=3))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


EXCLUDED = {
    "check_do_not_raise_errors_in_init_or_set_params": "types of arguments are checked in the tests of this package",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_checks_of_scikit_learn_pass_for_images_made_of_their_numbers(tmp_path):
    torch.manual_seed(0)
    network = create_encoder("simclr_convnet", 8, {"widths": [8], "features": 0}).eval()
    card = Card(encoder={"name": "simclr_convnet", "options": {"widths": [8], "features": 0}}, features=8, image_size=8,
                preprocess={"size": 8, "crop": 1.0})  # fmt: skip
    save_encoder(tmp_path, network, None, card)
    results = check_estimator(OfRows(tmp_path), expected_failed_checks=EXCLUDED, on_skip=None, on_fail=None)
    failed = {result["check_name"]: repr(result["exception"]) for result in results if result["status"] == "failed"}
    assert failed == {}
    assert sum(result["status"] == "passed" for result in results) > 40
