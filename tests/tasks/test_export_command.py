"""The export command writes what the library of that name loads strictly."""

import pytest
import timm
import torch
from safetensors.torch import load_file

from simclr.models import Card, create_encoder, save_encoder
from simclr.tasks.export import Export


@pytest.fixture
def run(tmp_path):
    options = {"pad": "torch", "stem": "imagenet"}
    encoder = create_encoder("simclr_resnet50", 64, options)
    encoder(torch.rand(2, 3, 64, 64))
    card = Card(encoder={"name": "simclr_resnet50", "options": options}, features=2048, image_size=64,
                preprocess={"size": 64, "crop": 0.875})  # fmt: skip
    save_encoder(tmp_path / "run", encoder, None, card)
    return tmp_path / "run", encoder.eval()


def test_the_file_loads_strictly_and_gives_the_same_features(run):
    folder, encoder = run
    found = Export(run=folder, to="timm")()
    theirs = timm.create_model(found["name"], num_classes=0)
    theirs.load_state_dict(load_file(found["out"]), strict=True)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(x), encoder(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="exists already"):
        Export(run=folder, to="timm")()
