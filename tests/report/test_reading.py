"""Any run folder can be read, whatever is missing or damaged."""

import json

import pytest
from support.runs_written import IMAGES, KNN, STEPS, lines, row, write_run

from simclr.errors import RunError
from simclr.optim import total_steps
from simclr.report.reading import find_runs, is_run, read_run


def test_truncated_lines_are_counted_and_the_others_kept(tmp_path):
    path = write_run(tmp_path / "run", finished=False) / "metrics.jsonl"
    whole = path.read_text().splitlines()
    path.write_text("\n".join([whole[0], whole[1][:20], "[1, 2]", '{"no": "step"}', "", *whole[2:], '{"step": 2']))
    folder = read_run(tmp_path / "run")
    assert folder.truncated == 4
    assert [line["step"] for line in folder.lines] == [10, *range(30, STEPS, 10)]


def test_an_unfinished_run_knows_how_far_it_is(tmp_path):
    folder = read_run(write_run(tmp_path / "run", log=lines(50), finished=False))
    assert (folder.step, folder.steps, folder.finished) == (50, total_steps(IMAGES, 64, 10), False)
    assert folder.epoch == IMAGES / 64


def test_the_batch_of_few_labelled_images_is_cut_to_them(tmp_path):
    files = {"data": {"images": 45}, "result": None, "knn": None}
    folder = read_run(write_run(tmp_path / "run", kind="finetune", start={"processes": 2}, **files))
    assert folder.kind == "finetune"
    assert folder.batch == 44


def test_the_last_check_which_stands_in_the_result_alone_is_part_of_the_log(tmp_path):
    log = [*lines(), {"step": 100, "knn_top1": 0.4, "health_rankme_h": 30.0}]
    result = {"task": "pretrain", "steps": STEPS, "step": STEPS, "knn_top1": 0.5, "health_rankme_h": 31.0, "loss": 2.0}
    folder = read_run(write_run(tmp_path / "run", log=log, result=result))
    assert folder.series("knn_top1") == [(100, 0.4), (STEPS, 0.5)]
    assert folder.last("health_rankme_h") == 31.0


def test_a_run_that_is_being_extended_is_not_finished(tmp_path):
    result = {"task": "pretrain", "steps": STEPS, "step": STEPS, "knn_top1": 0.5}
    settings = {"extend": [5, 5]}
    folder = read_run(write_run(tmp_path / "run", settings=settings, log=lines(200), result=result))
    assert (folder.step, folder.steps, folder.finished) == (200, total_steps(IMAGES, 64, 20), False)
    assert [line["step"] for line in folder.lines] == sorted(line["step"] for line in folder.lines)
    done = result | {"steps": folder.steps, "step": folder.steps}
    assert read_run(write_run(tmp_path / "done", settings=settings, log=lines(folder.steps), result=done)).finished


def test_a_converted_checkpoint_is_a_run_without_training(tmp_path):
    card = {"encoder": {"name": "simclr_resnet50"}, "image_size": 224, "features": 2048,
            "source": {"checkpoint": "model.ckpt-250228", "format": "tf1"}}  # fmt: skip
    (tmp_path / "card.json").write_text(json.dumps(card))
    folder = read_run(tmp_path)
    assert (folder.kind, folder.trained, folder.finished, folder.steps) == ("encoder", False, True, None)


def test_files_that_are_no_json_are_named_and_left_out(tmp_path):
    path = write_run(tmp_path / "run")
    (path / "environment.json").write_text("[{")
    (path / "recipe.yaml").write_text("a: [")
    folder = read_run(path)
    assert sorted(folder.unreadable) == ["environment.json", "recipe.yaml"]
    assert folder.recipe == {}
    assert len(folder.measurements) == 1


def test_measurements_below_and_older_ones_are_found_and_other_json_is_not(tmp_path):
    path = write_run(tmp_path / "run", linear=None)
    (path / "knn.1.json").write_text(json.dumps(KNN))
    (path / "notes.json").write_text('{"results": "none"}')
    (path / "finetune-0.1").mkdir()
    fine = {"task": "finetune", "settings": {"data": "labelled"}, "results": [row(protocol="fine-tuned")]}
    (path / "finetune-0.1" / "result.json").write_text(json.dumps(fine))
    found = [(m.file, m.command, m.older) for m in read_run(path).measurements]
    assert found == [("knn.json", "knn", False), ("finetune-0.1/result.json", "finetune", False),
                     ("knn.1.json", "knn", True)]  # fmt: skip


def test_bad_files_are_read_with_their_commas_and_line_breaks(tmp_path):
    path = write_run(tmp_path / "run")
    (path / "bad_files.csv").write_bytes(b'path,reason\n"a,b\nc.jpg",empty file\ncaf\xe9.jpg,cut off\n')
    assert read_run(path).bad == [("a,b\nc.jpg", "empty file"), ("caf\ufffd.jpg", "cut off")]


def test_a_folder_of_runs_stands_for_all_of_them(tmp_path):
    for name in ("b", "a"):
        write_run(tmp_path / name)
    (tmp_path / "other").mkdir()
    assert find_runs([tmp_path]) == [tmp_path / "a", tmp_path / "b"]
    assert find_runs([tmp_path / "b", tmp_path]) == [tmp_path / "b", tmp_path / "a"]
    assert find_runs([tmp_path / "a" / "encoder.safetensors"]) == [tmp_path / "a"]
    assert not is_run(tmp_path)
    for name in ("other", "nowhere"):
        with pytest.raises(RunError) as refused:
            find_runs([tmp_path / name])
        assert refused.value.path == str(tmp_path / name)


def test_the_members_of_a_study_are_runs_and_the_fine_tuning_of_a_run_is_not_one(tmp_path):
    members = [write_run(tmp_path / "study" / label / f"seed-{k}") for label in ("a", "b") for k in (0, 1)]
    assert find_runs([tmp_path / "study"]) == members
    photos = write_run(tmp_path / "runs" / "photos")
    write_run(photos / "finetune-0.1", kind="finetune")
    assert find_runs([tmp_path / "runs"]) == [photos]


def test_settings_that_an_old_recipe_lacks_are_the_defaults(tmp_path):
    settings = read_run(write_run(tmp_path / "run")).settings
    assert settings["micro_batch"] == 0
    assert settings["views.blur"] == 0.5
    assert settings["temperature"] == 0.5
    assert settings["encoder_options.width"] == 0.5
    assert "encoder_options" not in settings
