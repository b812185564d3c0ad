"""The command `convert` for files of other toolkits: a run folder, or one line and nothing."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from support.evaluated import write_arrays

from simclr.cli import main
from simclr.errors import DataError, RunError, SettingError
from simclr.models import create_encoder
from simclr.models.pretrained import load
from simclr.tasks.convert import Convert

pytestmark = pytest.mark.slow


@pytest.fixture
def checkpoint(tmp_path):
    """A small network under the names of lightly."""
    torch.manual_seed(0)
    options = {"width": 0.125, "pad": "torchvision", "stem": "small"}
    encoder = create_encoder("simclr_resnet10", 32, options).eval()
    state = {f"backbone.{name}": tensor for name, tensor in encoder.state_dict().items()}
    state |= {f"projection_head.layers.{k}.weight": torch.zeros(2, 2) for k in (0, 3)}
    torch.save({"state_dict": state}, tmp_path / "checkpoint.ckpt")
    return tmp_path / "checkpoint.ckpt", encoder


def test_a_run_folder_is_written_that_commands_take(checkpoint, tmp_path, capsys):
    path, encoder = checkpoint
    result = Convert(checkpoint=path, out=tmp_path / "run", normalisation="none")()
    assert result == {"placed": len(encoder.state_dict()), "ignored": 2}
    assert "projection_head (2)" in capsys.readouterr().out
    found = load(tmp_path / "run")
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(found.network(x), encoder(x))
    data = write_arrays(tmp_path / "squares.npz", train=30, test=20)
    assert main(["knn", str(tmp_path / "run"), str(data), "--baselines", "false"]) == 0
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 0


def test_a_folder_is_written_whole_and_nothing_beside_it_changes(checkpoint, tmp_path, monkeypatch):
    path, _ = checkpoint
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine.txt").write_text("mine")
    (tmp_path / "out").mkdir()
    Convert(checkpoint=path, out=tmp_path / "out")()
    assert (tmp_path / "out.partial" / "mine.txt").read_text() == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint.ckpt", "out", "out.partial"}
    assert (tmp_path / "out").stat().st_mode & 0o777 == (tmp_path / "out.partial").stat().st_mode & 0o777
    monkeypatch.chdir(tmp_path / "out.partial")
    with pytest.raises(SettingError) as refused:
        Convert(checkpoint=path, out=Path())()
    assert refused.value.field == "out"


def test_features_of_the_original_verify_the_conversion(checkpoint, tmp_path):
    path, encoder = checkpoint
    images = np.random.default_rng(0).random((3, 32, 32, 3), np.float32)
    with torch.no_grad():
        features = encoder(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    np.savez(tmp_path / "expected.npz", images=images, final_avg_pool=features)
    settings = dict(checkpoint=path, verify=tmp_path / "expected.npz")
    result = Convert(out=tmp_path / "run", normalisation="none", **settings)()
    assert result["difference/final_avg_pool"] < 1e-5
    with pytest.raises(DataError):  # the default of lightly is another
        Convert(out=tmp_path / "other", **settings)()
    assert not (tmp_path / "other").exists()


def test_a_model_of_timm_is_converted_by_its_name(tmp_path):
    torch.save(timm.create_model("test_resnet", num_classes=5).state_dict(), tmp_path / "weights.pth")
    named = f"timm:test_resnet:{tmp_path / 'weights.pth'}"
    for k, (checkpoint, encoder) in enumerate(((named, None), (tmp_path / "weights.pth", "test_resnet"))):
        Convert(checkpoint=type(tmp_path)(checkpoint), out=tmp_path / f"run{k}", encoder=encoder)()
        assert load(tmp_path / f"run{k}").card.encoder["name"] == "test_resnet"


def test_mistakes_are_one_line_and_leave_nothing(checkpoint, tmp_path):
    path, _ = checkpoint
    (tmp_path / "folder").mkdir()
    for settings in (
        {"encoder": "resnet18"}, {"encoder": "simclr_resnet18"}, {"encoder": "no_such_model"},
        {"encoder_options": {"width": 2}}, {"encoder_options": {"mean": [0.5]}},
        {"checkpoint": tmp_path / "missing.pth"}, {"checkpoint": tmp_path / "folder"},
        {"checkpoint": tmp_path / "folder", "encoder": "resnet18"},
    ):  # fmt: skip
        with pytest.raises((RunError, SettingError)) as refused:
            Convert(**{"checkpoint": path, "out": tmp_path / "run", **settings})()
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "run").exists()
