"""Names of runs on the command line, and where their results belong."""

from pathlib import Path

import pytest

from simclr.errors import RunError
from simclr.runs.recipe import is_import_path
from simclr.runs.results import NamedRun, named_run, provenance, require_run, run_folder, weights_path


@pytest.mark.parametrize(
    ("word", "named", "folder", "weights"),
    [
        ("runs/a", NamedRun(Path("runs/a")), "runs/a", "runs/a/encoder.safetensors"),
        ("a/encoder.safetensors", NamedRun(Path("a/encoder.safetensors")), "a", "a/encoder.safetensors"),
        ("timm:resnet18:w/x.pth", NamedRun(Path("w/x.pth"), "resnet18", is_timm=True), "runs/timm-resnet18", "w/x.pth"),
        ("timm:r:c:/x", NamedRun(Path("c:/x"), "r", is_timm=True), "runs/timm-r", "c:/x"),
        ("nets.small:make:runs/a", NamedRun(Path("runs/a"), "nets.small:make"), "runs/a", "runs/a/encoder.safetensors"),
        ("runs/a/h.onnx", NamedRun(Path("runs/a/h.onnx")), "runs/a/h.onnx", "runs/a/h.onnx"),
        ("2024:run:x", NamedRun(Path("2024:run:x")), "2024:run:x", "2024:run:x/encoder.safetensors"),
    ],
)
def test_a_word_names_a_folder_a_file_or_a_network_with_one(word, named, folder, weights):
    assert named_run(word) == named_run(Path(word)) == named
    assert run_folder(word) == Path(folder)
    assert weights_path(word) == Path(weights)


def test_what_is_no_finished_run_is_refused_and_what_it_is_is_said(tmp_path):
    for name in ("images", "begun", "run", "w"):
        (tmp_path / name).mkdir()
    for name in ("labels.csv", "begun/recipe.yaml", "run/card.json", "run/encoder.safetensors", "h.onnx", "x.pth",
                 "w/encoder.safetensors"):  # fmt: skip
        (tmp_path / name).touch()
    for run in ("run", "run/encoder.safetensors", "h.onnx"):
        require_run(tmp_path / run)
    require_run(f"timm:resnet18:{tmp_path / 'x.pth'}")
    problems = set()
    for wrong in ("images", "begun", "labels.csv", "nowhere", "w/encoder.safetensors"):
        with pytest.raises(RunError) as refused:
            require_run(tmp_path / wrong)
        assert refused.value.path == str(tmp_path / wrong)
        problems.add(refused.value.problem)
    assert len(problems) == 5


def test_a_model_of_timm_needs_a_file():
    for word in ("timm:resnet18", "timm:resnet18:"):
        with pytest.raises(RunError) as refused:
            named_run(word)
        assert refused.value.path == word


def test_the_hash_of_a_model_of_timm_is_that_of_its_file(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"weights")
    assert set(provenance(f"timm:resnet18:{tmp_path / 'x.pth'}")) == {"weights"}


def test_an_import_path_is_a_module_and_a_function():
    assert is_import_path("a:b") and is_import_path("a.b_1.c:_d")
    for name in ("resnet18", "hf-hub:timm/resnet18", "timm:resnet18", "a:b:c", "a.b", "1a:b", "a:b.c", "", None):
        assert not is_import_path(name)
