"""Run folder: nothing in it is lost, and nothing else is changed."""

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import yaml

from simclr.errors import RunError, SettingError
from simclr.runs.machine import Machine
from simclr.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class Task:
    command: ClassVar[str] = "train"
    data: str = "here"
    lr: float = 0.1
    areas: tuple[float, float] = (0.1, 1.0)
    machine: Machine = Machine()


@dataclass(frozen=True, kw_only=True)
class SimpleTask:
    command: ClassVar[str] = "train"
    data: Any


def test_saved_settings_are_a_recipe(tmp_path):
    Run.start(tmp_path / "run", Task())
    saved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert saved["areas"] == [0.1, 1.0]
    assert saved["machine"]["devices"] == 1


def test_a_changed_setting_is_refused_by_name_and_where_it_runs_is_not(tmp_path):
    Run.start(tmp_path, Task()).save({"step": 1})
    Run.start(tmp_path, Task(machine=Machine(devices=2, workers=0)))
    for task, name in ((Task(lr=0.2), "lr"), (Task(machine=Machine(precision="64")), "machine.precision")):
        with pytest.raises(RunError) as refused:
            Run.start(tmp_path, task)
        assert refused.value.names == (name,)


def test_a_setting_that_came_later_had_its_default_in_an_older_run(tmp_path):
    Run.start(tmp_path, Task()).save({"step": 1})
    saved = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    del saved["lr"], saved["machine"]["precision"]
    for task, name in ((Task(lr=0.2), "lr"), (Task(machine=Machine(precision="64")), "machine.precision")):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(saved))
        with pytest.raises(RunError) as refused:
            Run.start(tmp_path, task)
        assert refused.value.names == (name,)
    Run.start(tmp_path, Task())


def test_before_its_first_checkpoint_a_run_takes_other_settings(tmp_path):
    Run.start(tmp_path, Task(lr=4096.0)).log(step=1)
    Run.start(tmp_path, Task(lr=0.2))
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["lr"] == 0.2


def test_images_that_have_changed_are_noticed(tmp_path):
    Run.start(tmp_path, Task(), data={"images": 300, "fingerprint": "a"}).save({"step": 1})
    Run.start(tmp_path, Task(), data={"images": 300, "fingerprint": "a"})
    for images, fingerprint, name in ((150, "a", "images"), (300, "b", "fingerprint")):
        with pytest.raises(RunError) as refused:
            Run.start(tmp_path, Task(), data={"images": images, "fingerprint": fingerprint})
        assert refused.value.names == (name,)


def test_the_same_images_may_lie_at_another_path(tmp_path):
    images = {"images": 300, "fingerprint": "a"}
    Run.start(tmp_path / "run", Task(data="photos"), data=images).save({"step": 1})
    for path in ("photos/", "/mnt/photos"):
        Run.start(tmp_path / "run", Task(data=path), data=images)
    with pytest.raises(RunError) as refused:
        Run.start(tmp_path / "run", Task(data="others"), data={"images": 300, "fingerprint": "b"})
    assert refused.value.names == ("data",)


def test_labels_that_were_recorded_are_compared_and_older_runs_have_none(tmp_path):
    images = {"images": 300, "fingerprint": "a"}
    Run.start(tmp_path / "old", Task(), data=images).save({"step": 1})
    Run.start(tmp_path / "old", Task(), data={**images, "labels": "x"})
    Run.start(tmp_path / "new", Task(), data={**images, "labels": "x"}).save({"step": 1})
    with pytest.raises(RunError) as refused:
        Run.start(tmp_path / "new", Task(), data={**images, "labels": "y"})
    assert refused.value.names == ("labels",)


def test_images_in_memory_are_named_alike_in_every_process(tmp_path):
    class Photographs:
        pass

    Run.start(tmp_path, SimpleTask(data=Photographs())).save({"step": 1})
    Run.start(tmp_path, SimpleTask(data=Photographs()))
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["data"] == "Photographs"


def test_half_a_line_at_the_end_of_the_log_is_no_obstacle(tmp_path):
    run = Run.start(tmp_path, Task())
    run.log(step=1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    assert run.metrics() == [{"step": 1}]
    run.truncate_log(1)
    run.log(step=2)
    assert [line["step"] for line in run.metrics()] == [1, 2]


def test_unreadable_images_of_an_earlier_start_are_kept(tmp_path):
    odd = "caf\udce9.jpg"  # a name that is no text
    Run.start(tmp_path, Task()).record_unreadable({"a.jpg": "empty", odd: "broken, cut off"})
    run = Run.start(tmp_path, Task())
    run.record_unreadable({"b.jpg": "empty"})
    assert run.bad == {"a.jpg": "empty", odd: "broken, cut off", "b.jpg": "empty"}


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError) as refused:
        Run.start(tmp_path, Task(), fresh=True)
    assert refused.value.path == str(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_fresh_deletes_the_run_and_nothing_else(tmp_path, capsys):
    run = Run.start(tmp_path, Task())
    run.log(step=1, loss=2.0)
    run.save({"step": 1})
    run.release()
    (tmp_path / "notes.md").write_text("mine")
    again = Run.start(tmp_path, Task(lr=0.2), fresh=True)
    assert again.metrics() == []
    assert again.restore() is None
    assert (tmp_path / "notes.md").read_text() == "mine"
    assert "from before: notes.md" in capsys.readouterr().out


def test_a_broken_checkpoint_falls_back_to_the_one_before(tmp_path):
    run = Run.start(tmp_path, Task())
    run.save({"step": 1, "x": torch.ones(1000)})
    run.save({"step": 2, "x": torch.ones(1000)})
    last = tmp_path / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:500])
    assert run.restore()["step"] == 1
    (tmp_path / "checkpoints" / "previous.pt").write_bytes(b"")
    with pytest.raises(RunError) as refused:
        run.restore()
    assert refused.value.names == ("last.pt", "previous.pt")


@pytest.mark.parametrize("error", [OSError("disk full"), RuntimeError("[enforce fail at inline_container.cc:672]")])
def test_a_crash_while_saving_leaves_the_previous_checkpoint(tmp_path, monkeypatch, error):
    """torch turns the error of a write into one of its own."""
    run = Run.start(tmp_path, Task())
    run.save({"step": 1})

    class Full:
        def write(self, content):
            raise OSError("full")

    def crash(state, file):
        file.file = Full()
        with contextlib.suppress(OSError):
            file.write(b"half a checkpoint")
        raise error

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="partial") as failed:
        run.save({"step": 2})
    assert failed.value.__cause__ is error
    assert run.restore()["step"] == 1


def test_metrics_of_steps_to_be_repeated_are_forgotten(tmp_path):
    run = Run.start(tmp_path, Task())
    for step in (1, 2, 3):
        run.log(step=step)
    run.truncate_log(2)
    assert [line["step"] for line in run.metrics()] == [1, 2]


def test_only_the_writing_process_writes(tmp_path):
    run = Run.start(tmp_path / "run", Task(), writes=False)
    run.log(step=1)
    run.save({"step": 1})
    run.finish({})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("field", "value"), [("devices", 0), ("nodes", 0), ("workers", -2)])
def test_impossible_machines_are_refused_by_name(field, value):
    with pytest.raises(SettingError) as refused:
        dataclasses.replace(Machine(), **{field: value})
    assert refused.value.field == f"machine.{field}"


SMALL = ["environment.json", "data.json", "result.json", "recipe.yaml", "metrics.jsonl", "bad_files.csv"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1, 2", b"null\n"])
@pytest.mark.parametrize("name", SMALL)
def test_a_damaged_small_file_stops_no_run(tmp_path, name, content):
    run = Run.start(tmp_path, Task(), data={"images": 3, "fingerprint": "a"})
    run.log(step=1)
    run.record_unreadable({"a.jpg": "empty"})
    run.save({"step": 1})
    run.release()
    (tmp_path / name).write_bytes(content)
    run = Run.start(tmp_path, Task(), data={"images": 3, "fingerprint": "a"})
    assert run.restore()["step"] == 1
    assert run.result is None
    run.truncate_log(1)
    run.log(step=2)
    run.record_unreadable({"b.jpg": "empty"})
    assert [line["step"] for line in run.metrics()][-1] == 2
    assert "b.jpg" in run.bad
    if name.endswith((".json", ".yaml")):
        assert (tmp_path / f"{name}.damaged").read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"other weights", None])
def test_a_run_whose_weights_are_not_what_it_wrote_is_not_finished(tmp_path, content):
    run = Run.start(tmp_path, Task())
    run.save({"step": 1})
    weights = tmp_path / "encoder.safetensors"
    weights.write_bytes(b"weights")
    run.finish({"top1": 0.5})
    assert Run(tmp_path).result == {"top1": 0.5}
    weights.unlink() if content is None else weights.write_bytes(content)
    assert Run(tmp_path).result is None
