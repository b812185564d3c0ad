"""Devices and models of the evaluation protocol."""

import torch

from simclr.data import open_source
from simclr.evaluation.features import extract
from simclr.evaluation.protocol import by_preprocess, extract_features, fit_device, models_to_evaluate
from simclr.runs.machine import Device


def test_classifiers_are_fitted_on_cuda_if_the_features_fit_and_never_on_mps(monkeypatch):
    monkeypatch.setattr(Device, "kind", property(lambda self: self.accelerator))
    features = torch.zeros(1000, 256)  # 1 MB
    devices = {}
    for free in (1 << 30, 2 << 20):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, free))
        devices[free] = [fit_device(features, Device(accelerator=kind)) for kind in ("cuda", "mps", "cpu")]
    assert list(devices.values()) == [["cuda", "cpu", "cpu"], ["cpu", "cpu", "cpu"]]


def test_features_in_one_pass_are_those_of_each_model(encoder, data):
    (group,) = by_preprocess(models_to_evaluate(encoder, True))
    assert [model.role for model in group] == ["baseline", "baseline", "model"]
    source = open_source(str(data), "test")
    together = extract_features(group, source, Device(accelerator="cpu", workers=0))
    for model, features in zip(group, together, strict=True):
        assert torch.equal(features.features, extract(model.network, source, model.preprocess).features)
