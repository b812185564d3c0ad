"""Scikit-learn transformer: images in, features of an encoder out."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from simclr.models.pretrained import Encoder, Images, load

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError("SimCLRFeatures needs scikit-learn: pip install 'simclr-toolkit[sklearn]'") from error


class SimCLRFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Features of a frozen encoder as a transformer of scikit-learn.

    X is what `Encoder.embed` takes: paths, PIL images, an array (N, H, W, C) or (N, H, W), a tensor (N, C, H, W), a
    data set; also a column of a table that holds paths. `fit` loads the encoder and computes nothing from X or y, so
    that no fold of a cross-validation sees another one. `Pipeline(..., memory=FOLDER)` keeps the features from one fit
    to the next.

    Parameters
    ----------
    run: folder of a run, or anything else that `simclr.load` takes, or an `Encoder`.
    layer: h, z, head.1, head.2, ... or block_group1 to block_group4.
    batch: number of images in a forward pass.
    device: that of the network, such as cuda.

    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> classifier = make_pipeline(simclr.SimCLRFeatures(run), LogisticRegression())
    >>> images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    >>> classifier.fit(images, [0, 1, 0, 1, 0, 1]).predict(images).shape
    (6,)
    """

    def __init__(self, run: str | Path | Encoder, *, layer: str = "h", batch: int = 256, device: str = "cpu") -> None:
        self.run = run
        self.layer = layer
        self.batch = batch
        self.device = device

    def fit(self, X: Images, y: Any = None) -> "SimCLRFeatures":
        """Load the encoder; X and y are ignored."""
        encoder = copy.deepcopy(self.run) if isinstance(self.run, Encoder) else load(self.run)
        self.encoder_ = encoder.to(self.device)
        self._n_features_out = self.encoder_.embed([], layer=self.layer, batch=self.batch).shape[1]
        return self

    def transform(self, X: Images) -> Float[np.ndarray, "n d"]:
        """Return the features (N, D) float32 of images."""
        check_is_fitted(self)
        if hasattr(X, "to_numpy"):  # a column, or a table of one column, of pandas or Polars
            X = X.to_numpy().ravel()
        return self.encoder_.embed(X, layer=self.layer, batch=self.batch)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags
