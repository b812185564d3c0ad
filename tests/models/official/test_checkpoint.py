"""The reader of TensorFlow's tensor bundles against real files, its own inverse, and damage."""

import csv
import shutil

import numpy as np
import pytest
from support import bundle
from support.official import rule

from simclr.errors import RunError
from simclr.models.official.checkpoint import OBJECT_GRAPH, Bundle, find_prefix
from simclr.models.official.crc32c import masked_crc32c

pytestmark = pytest.mark.slow

FORMS = ["tf1_ckpt", "tf2_ckpt", "tf2_saved_model_variables"]


def test_checksum_of_the_standard_example():
    crc = 0xE3069283  # of "123456789", RFC 3720's polynomial
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert masked_crc32c(np.frombuffer(b"123456789", np.uint8)) == masked


@pytest.mark.parametrize("form", FORMS)
def test_real_checkpoints_hold_the_listed_keys_shapes_and_values(form, shared):
    checkpoint = Bundle(find_prefix(shared(f"golden/ckpt_small/{form}")))
    with shared(f"golden/ckpt_small/{form}_keys.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    listed = {row.get("checkpoint_key") or row["tf1_name"]: row for row in rows}
    assert checkpoint.entries.keys() == listed.keys()
    compared = 0
    for key, row in listed.items():
        assert str(list(checkpoint.entries[key].shape)) == row["shape"]
        path = row.get("object_path") or row.get("tf2_object_path")
        if path and path.startswith("model/"):
            value = checkpoint.read(key)
            np.testing.assert_array_equal(value, rule(path, value.shape))
            compared += 1
    assert compared >= 119
    checkpoint.verify()


def test_what_is_written_is_read(tmp_path):
    values = {f"layer_{i}/kernel": np.full((i, 2), i, np.float32) for i in range(40)}
    values |= {"step": np.array(7, np.int64), "wide": np.arange(3.0), OBJECT_GRAPH: bundle.graph({"a/b": "step"})}
    for shards in (1, 3):
        bundle.write(tmp_path / "ckpt", values, shards)
        checkpoint = Bundle(tmp_path / "ckpt")
        for key in values.keys() - {OBJECT_GRAPH}:
            read = checkpoint.read(key)
            assert read.dtype == values[key].dtype
            np.testing.assert_array_equal(read, values[key])
        root, a, b = checkpoint.object_graph()
        assert (root.children, a.children, b.variable) == ({"a": 1}, {"b": 2}, "step")
        checkpoint.verify()


def read_all(prefix):
    checkpoint = Bundle(prefix)
    checkpoint.object_graph()
    checkpoint.verify()


@pytest.mark.parametrize("form", FORMS)
def test_every_damage_is_found(form, shared, tmp_path):
    prefix = find_prefix(shared(f"golden/ckpt_small/{form}"))
    index, data = f"{prefix.name}.index", f"{prefix.name}.data-00000-of-00001"
    originals = {name: (prefix.parent / name).read_bytes() for name in (index, data)}
    for name, content in originals.items():
        (tmp_path / name).write_bytes(content)
    read_all(tmp_path / prefix.name)
    draw = np.random.default_rng(0)
    for name, content in originals.items():
        size = len(content)
        offsets = {0, 1, size - 1, size - 8, size - 9, size - 30, size - 48, size - 49, *draw.integers(0, size, 16)}
        damaged = [
            content[:at] + bytes([content[at] ^ 1 << int(draw.integers(8))]) + content[at + 1 :] for at in offsets
        ]
        damaged += [content[:length] for length in (0, 1, 47, 48, size // 2, size - 1)]
        for bad in damaged:
            (tmp_path / name).write_bytes(bad)
            with pytest.raises(RunError) as refused:
                read_all(tmp_path / prefix.name)
            assert refused.value.path.startswith(str(tmp_path / prefix.name))
            assert "\n" not in str(refused.value)
        (tmp_path / name).write_bytes(content)
    (tmp_path / data).unlink()
    with pytest.raises(RunError) as refused:
        read_all(tmp_path / prefix.name)
    assert refused.value.path == str(tmp_path / data)


def test_checkpoints_are_found_by_folder_prefix_or_index(tmp_path):
    for number in (1, 2):
        bundle.write(tmp_path / f"ckpt-{number}", {"a": np.zeros(1)})
    assert find_prefix(tmp_path / "ckpt-1") == tmp_path / "ckpt-1"
    assert find_prefix(tmp_path / "ckpt-1.index") == tmp_path / "ckpt-1"
    with pytest.raises(RunError) as refused:
        find_prefix(tmp_path)
    assert refused.value.path == str(tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/ckpt-2"\n')
    assert find_prefix(tmp_path) == tmp_path / "ckpt-2"
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "ckpt-3"\n')
    with pytest.raises(RunError) as refused:
        find_prefix(tmp_path)
    assert refused.value.path == str(tmp_path / "checkpoint")
    saved = tmp_path / "saved_model" / "variables"
    saved.mkdir(parents=True)
    for suffix in ("index", "data-00000-of-00001"):
        shutil.copy(tmp_path / f"ckpt-1.{suffix}", saved / f"variables.{suffix}")
    assert find_prefix(saved.parent) == find_prefix(saved) == saved / "variables"
    with pytest.raises(RunError) as refused:
        find_prefix(tmp_path / "nothing")
    assert refused.value.path == str(tmp_path / "nothing")
