"""Official checkpoints become networks with the official outputs, whole or not at all."""

import json

import numpy as np
import pytest
import torch
from support import bundle
from support.official import fill, from_torch, keys_of, rule, tf_shape
from torch import nn

from simclr.errors import DataError, RunError, SettingError
from simclr.models import ProjectionHead, load_encoder, load_supervised, resnet
from simclr.models.official.checkpoint import OBJECT_GRAPH
from simclr.models.official.convert import convert
from simclr.models.official.names import encoder_layers, head_layers, official_names, supervised_layers
from simclr.tasks.convert import Convert

FORMS = {"tf1_ckpt": (119, 72), "tf2_ckpt": (121, 76), "tf2_saved_model_variables": (121, 1)}


@pytest.fixture
def expected(golden, tmp_path):
    """A file of activations to verify against, as a user would have it."""

    def make(names=("final_avg_pool", "proj_head_output", "logits_sup"), **changed):
        arrays = golden("ckpt_small/expected.npz")
        images = np.random.RandomState(4242).rand(8, 32, 32, 3).astype(np.float32)
        np.savez(tmp_path / "expected.npz", **({"images": images} | {n: arrays[n] for n in names} | changed))
        return tmp_path / "expected.npz"

    return make


@pytest.mark.parametrize("form", FORMS)
def test_the_official_outputs_are_reproduced_from_every_form(form, shared, expected, tmp_path, capsys):
    names = ["final_avg_pool", "proj_head_output", *(["logits_sup"] if "tf2" in form else [])]
    out = tmp_path / "run"
    result = Convert(checkpoint=shared(f"golden/ckpt_small/{form}"), out=out, verify=expected(names), tolerance=2e-6)()
    assert (result["placed"], result["ignored"]) == FORMS[form]
    assert sorted(k for k in result if "/" in k) == sorted(f"difference/{name}" for name in names)
    printed = capsys.readouterr().out
    assert f"{result['placed']} variables: encoder 105, head 14" in printed
    assert f"ignored {result['ignored']} " in printed
    assert not (tmp_path / "run.partial").exists()

    encoder, head, card = load_encoder(out)
    assert card.encoder == {"name": "simclr_resnet18", "options": {"width": 0.125, "stem": "small"}}
    assert (card.features, card.image_size, card.channels) == (64, 32, 3)
    assert card.head == {"layers": 3, "out_features": 128, "hidden": 64}
    assert json.loads((out / "card.json").read_text())["format"] == 1
    modules = [encoder, head]
    if "tf2" in form:
        modules.append(load_supervised(out))
        assert card.supervised == {"classes": 10, "input": 0}
    for module in modules:
        for ours, key in keys_of(module).items():
            value = module.state_dict()[ours]
            np.testing.assert_array_equal(from_torch(value), rule(key, tf_shape(value)))


@pytest.mark.slow
def test_nothing_is_written_when_the_outputs_differ(shared, expected, golden, tmp_path):
    wrong = golden("ckpt_small/expected.npz")["logits_sup"] + np.float32(0.01)
    cases = [
        ({"logits_sup": wrong}, "logits_sup differs by"),
        ({"logits_sup": wrong[:4]}, "(4, 10)"),
        ({"images": np.zeros((8, 3, 32, 32), np.float32)}, "(8, 3, 32, 32)"),
        ({"names": ("logits_sup",)}, "final_avg_pool"),
    ]
    for arrays, message in cases:
        task = Convert(checkpoint=shared("golden/ckpt_small/tf2_ckpt"), out=tmp_path / "run", verify=expected(**arrays))
        with pytest.raises(DataError) as refused:
            task()
        assert refused.value.path == str(task.verify)
        assert message in str(refused.value)
        assert not (tmp_path / "run").exists()
    with pytest.raises(DataError):
        Convert(checkpoint=shared("golden/ckpt_small/tf1_ckpt"), out=tmp_path / "run", verify=expected())()
    (tmp_path / "expected.npz").write_bytes(b"text")
    with pytest.raises(DataError):
        Convert(checkpoint=shared("golden/ckpt_small/tf1_ckpt"), out=tmp_path / "run",
                verify=tmp_path / "expected.npz")()  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_damage_and_occupied_folders_leave_nothing_behind(shared, tmp_path):
    source = shared("golden/ckpt_small/tf2_ckpt")
    names = ("ckpt-4.index", "ckpt-4.data-00000-of-00001")
    for name in names:
        (tmp_path / name).write_bytes((source / name).read_bytes())
    draw = np.random.default_rng(1)
    for name in names:
        whole = (source / name).read_bytes()
        for at in draw.integers(0, len(whole), 12):
            for bad in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
                (tmp_path / name).write_bytes(bad)
                with pytest.raises(RunError):
                    Convert(checkpoint=tmp_path / "ckpt-4", out=tmp_path / "run")()
                assert {p.name for p in tmp_path.iterdir()} == set(names)
        (tmp_path / name).write_bytes(whole)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(SettingError) as refused:
        Convert(checkpoint=source, out=tmp_path / "full")()
    assert refused.value.field == "out"
    with pytest.raises(SettingError) as refused:
        Convert(checkpoint=source, out=tmp_path / "run", image_size=0)
    assert refused.value.field == "image_size"


def official_model(form, depth, width=0.125, head=None, classes=None, **options):
    """Variables of a network with rule weights under official names, and the networks themselves."""
    encoder = resnet(depth, width, **options)
    modules = [(encoder, encoder_layers(depth, encoder.sk_ratio > 0, encoder.se_ratio > 0, encoder.stem == "small"))]
    if head is not None:
        modules.append((ProjectionHead(encoder.num_features, **head),
                        head_layers(head.get("layers", 3), head.get("kept"))))  # fmt: skip
    if classes is not None:
        modules.append((nn.Linear(encoder.num_features, classes), supervised_layers()))
    values = {}
    for module, layers in modules:
        fill(module)
        module.eval()
        values |= {official: from_torch(module.state_dict()[ours])
                   for ours, official in official_names(layers, form).items()}  # fmt: skip
    return values, [module for module, _ in modules]


def stored(tmp_path, values, form):
    """The values as a checkpoint; object-based ones get keys that tell nothing, as SavedModels have."""
    if form == "tf2":
        keys = {path: f"trainable_variables_list/{i}/.ATTRIBUTES/VARIABLE_VALUE" for i, path in enumerate(values)}
        values = {keys[path]: value for path, value in values.items()} | {OBJECT_GRAPH: bundle.graph(keys)}
    bundle.write(tmp_path / "model.ckpt-1", values)
    return tmp_path / "model.ckpt-1"


@pytest.mark.parametrize(
    ("form", "depth", "options"),
    [
        ("tf2", 18, {"sk_ratio": 0.0625, "stem": "imagenet"}),
        ("tf2", 34, {"se_ratio": 0.25, "stem": "small"}),
        ("tf2", 50, {"sk_ratio": 0.0625, "se_ratio": 0.5, "stem": "imagenet"}),
        ("tf1", 50, {"sk_ratio": 0.0625, "stem": "small"}),
        ("tf1", 50, {"sk_ratio": 0.75, "stem": "imagenet"}),
        ("tf1", 101, {"stem": "imagenet"}),
    ],
)
def test_the_architecture_is_found_from_names_and_shapes(form, depth, options, tmp_path):
    values, (encoder, head) = official_model(form, depth, head={"layers": 2, "hidden": 24}, **options)
    found = convert(stored(tmp_path, values, form))
    assert found.card.encoder["name"] == f"simclr_resnet{depth}"
    for name, value in {"se_ratio": 0.0, **options, "width": 0.125}.items():
        assert getattr(found.encoder, name) == pytest.approx(value) or name == "stem"
    assert found.encoder.stem == options["stem"]
    assert found.card.image_size == (32 if options["stem"] == "small" else 224)
    assert found.head.config() == {"layers": 2, "out_features": 128, "hidden": 24}
    x = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(found.head(found.encoder(x)), head(encoder(x)))
    assert found.ignored == ([OBJECT_GRAPH] if form == "tf2" else [])


def test_the_copy_of_v2_checkpoints_is_chosen_explicitly(tmp_path):
    values, (encoder,) = official_model("tf1", 18, stem="small")
    moving = {f"ema_model/{name}": value * np.float32(0.5) for name, value in values.items()}
    state = {"global_step": np.array(3, np.int64), "contrastive_memory": np.zeros((4, 2), np.float32)}
    state |= {f"{name}/Momentum": value for name, value in values.items() if "moving" not in name}
    checkpoint = stored(tmp_path, values | moving | state, "tf1")
    trained, averaged = convert(checkpoint), convert(checkpoint, "ema")
    torch.testing.assert_close(trained.encoder.conv1.weight, encoder.conv1.weight)
    torch.testing.assert_close(averaged.encoder.conv1.weight, encoder.conv1.weight / 2)
    assert set(trained.ignored) == {*moving, *state}
    assert set(averaged.ignored) == {*values, *state}
    assert averaged.card.source["weights"] == "ema"
    with pytest.raises(RunError):
        convert(stored(tmp_path, values, "tf1"), "ema")
    tf2, _ = official_model("tf2", 18, stem="small")
    with pytest.raises(SettingError) as refused:
        convert(stored(tmp_path, tf2, "tf2"), "ema")
    assert refused.value.field == "weights"


def test_fine_tuned_checkpoints_keep_part_of_the_head_and_a_classifier(tmp_path):
    values, (encoder, head, classifier) = official_model(
        "tf1", 18, head={"layers": 3, "kept": 1}, classes=5, stem="small"
    )
    checkpoint = stored(tmp_path, values, "tf1")
    Convert(checkpoint=checkpoint, out=tmp_path / "run", supervised_input=1)()
    loaded, part, card = load_encoder(tmp_path / "run")
    assert part.config()["kept"] == 1
    assert card.supervised == {"classes": 5, "input": 1}
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        logits = load_supervised(tmp_path / "run")(part(loaded(x)))
        torch.testing.assert_close(logits, classifier(head(encoder(x))))
    with pytest.raises(SettingError) as refused:
        convert(checkpoint, supervised_input=2)
    assert refused.value.field == "supervised_input"


@pytest.mark.parametrize("form", ["tf1", "tf2"])
def test_every_variable_must_find_its_place(form, tmp_path):
    values, _ = official_model(form, 18, head={}, classes=5, stem="small")
    kernel = next(name for name in values if name.endswith("conv2d/kernel"))
    norm = next(name for name in values if name.endswith("gamma"))
    for changed in (
        {k: v for k, v in values.items() if k != kernel},
        {k: v for k, v in values.items() if k != norm},
        values | {kernel: values[kernel][..., :-1].copy()},
        values | {"stranger/kernel" if form == "tf1" else "model/resnet_model/dense/kernel": np.zeros(3, np.float32)},
        {k: v for k, v in values.items() if "linear_layer/" not in k or not k.endswith("bias")},
        {"other/weights": np.zeros(3, np.float32)},
    ):
        with pytest.raises(RunError) as refused:
            convert(stored(tmp_path, changed, form))
        assert "\n" not in str(refused.value)
