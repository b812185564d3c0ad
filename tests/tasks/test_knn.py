"""k-NN accuracy."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
from support.processes import succeed

from simclr.errors import SettingError
from simclr.runs.machine import Device
from simclr.tasks.knn import Knn


def test_more_neighbours_than_images_are_refused(encoder, data):
    with pytest.raises(SettingError) as refused:
        Knn(run=encoder, data=str(data), k=500, machine=Device(workers=0))()
    assert refused.value.field == "k"
    assert "300" in str(refused.value)


def test_notebooks_show_the_figures_as_a_table(encoder, data, tmp_path):
    content = Knn(run=encoder, data=str(data), out=tmp_path / "knn.json", machine=Device(workers=0))()
    header, *rows = ElementTree.fromstring(content._repr_html_())
    figures = [[cell.text.strip() for cell in row] for row in rows]
    assert [row[0] for row in figures] == ["raw pixels", "untrained encoder", "pretrained encoder"]
    assert [row[4] for row in figures] == [f"{100 * row['value']:.1f} %" for row in content["results"]]
    assert len(header) == len(figures[0])


@pytest.mark.slow
@pytest.mark.parametrize("command", ["knn", "linear"])
def test_processes_that_divide_the_images_write_the_result_of_one(encoder, data, tmp_path, command):
    results = []
    for world in (1, 2):
        out = tmp_path / str(world) / "result.json"
        succeed([command, encoder, data, "--out", out, "--machine.workers", "0"], processes=world)
        results.append([(row["name"], row["hits"], row["value"]) for row in json.loads(out.read_text())["results"]])
        assert not [path for path in out.parent.iterdir() if path.stem == "result.1"]  # one process writes
    assert results[0] == results[1]
