"""Command line: flags and positional words in any order, and one line for every mistake."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import simclr
from simclr.cli import PlainText, main
from simclr.cli.commands import COMMANDS
from simclr.cli.parsing import parse
from simclr.errors import RunError, SettingError
from simclr.runs.recipe import recipe_folder


def spoken(capsys, *words):
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


IMPORT_EVERYTHING = """
import json, sys
import simclr
for name in set(simclr.__all__) - {"SimCLRFeatures"}:  # which has an extra of its own
    getattr(simclr, name)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


@pytest.mark.slow
def test_import_loads_nothing_outside_the_declared_dependencies():
    spoken = subprocess.run([sys.executable, "-W", "ignore", "-c", IMPORT_EVERYTHING], capture_output=True, check=True)
    imported = set(json.loads(spoken.stdout))
    of_module = metadata.packages_distributions()
    installed = {_plain(d.name): d for d in metadata.distributions()}
    allowed, waiting = set(), {"simclr-toolkit"}
    while waiting:  # what a declared dependency itself requires comes with it
        name = waiting.pop()
        allowed.add(name)
        needs = installed[name].requires or []
        required = {_plain(re.match(r"[\w.-]+", need)[0]) for need in needs if "extra ==" not in need}
        waiting |= (required & installed.keys()) - allowed
    strangers = {d for module in imported for d in map(_plain, of_module.get(module, []))} - allowed
    optional = {"charset-normalizer"}  # imported by numpy.f2py where it is installed
    assert strangers - optional - {"setuptools", "pip", "jsonargparse", "docstring-parser", "typeshed-client"} == set()


def _plain(name):
    return name.lower().replace("_", "-").replace(".", "-")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["pretrian", "x"], "there is no command pretrian; did you mean pretrain?"),
        (["pretrain", "sample", "--temprature", "1"], "pretrain has no setting temprature; did you mean temperature?"),
        (["pretrain", "sample", "--temp", "1"], "pretrain has no setting temp; did you mean temperature?"),
        (["pretrain", "sample", "--machine.devces", "2"],
         "pretrain has no setting machine.devces; did you mean machine.devices?"),
        (["pretrain", "sample", "--views.sise", "32"], "pretrain has no setting views.sise; did you mean views.size?"),
        (["pretrain", "sample", "extra"],
         "pretrain: unexpected argument 'extra'; settings are written --NAME VALUE, several values --NAME A,B"),
        (["pretrain", "sample", "-x"], "pretrain has no setting -x; settings are written --NAME VALUE"),
        (["pretrain", "sample", "--batch", "many"], "batch must be a whole number, got 'many'"),
        (["pretrain", "sample", "--batch"], "--batch needs a value: a whole number"),
        (["pretrain", "sample", "--batch", "--fresh"], "--batch needs a value: a whole number"),
        (["pretrain", "sample", "--loss", "nt"],
         "loss must be one of nt_xent, nt_logistic, margin_triplet, dcl, sogclr, supcon, got 'nt'"),
        (["pretrain", "sample", "--views.size", "big"], "views.size must be a whole number, got 'big'"),
        (["pretrain", "sample", "--views", "3"], "views is a group of settings, such as views.size"),
        (["pretrain", "sample", "--views.crop_area", "0.5"],
         "views.crop_area must be 2 values such as a,b, each a number, got '0.5'"),
        (["pretrain", "sample", "--encoder_options", "width"],
         "encoder_options must be a mapping such as '{name: value}', got 'width'"),
        (["pretrain", "sample", "--machine.devices", "0"], "machine.devices must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_in_one_line(words, line, capsys):
    assert spoken(capsys, *words) == (2, "", f"simclr: {line}\n")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["health", "runs/x", "sample", "--views.size", "big"], "views.size"),
        (["transfer", "runs/x", "a", "--protocols", "finetun"], "'finetun'"),
        (["pretrain"], "DATA"),
        (["scan", ""], "data"),
        (["pretrain", "sample", "--batch", "1"], "batch"),
        (["pretrain", "sample", "--lr", "inf"], "'inf'"),
        (["pretrain", "/nowhere/at/all"], "/nowhere/at/all"),
        (["pretrain", "sample", "--config", "smaple"], "'smaple'"),
        (["pretrain", "sample", "--config", "gone/sample.yaml"], "'gone/sample.yaml'"),
        (["pretrain", "sample", "--config", "sample", "--out", __file__], __file__),
        (["pretrain", "sample", "--config", "sample", "--machine.accelerator", "cpu", "--machine.precision", "16"],
         "machine.precision"),
        (["pretrain", "sample", "--config", "sample", "--encoder", "nosuch_network"], "nosuch_network"),
        (["recipes", "nosuch"], "'nosuch'"),
        (["knn", "/nowhere", "sample"], "/nowhere"),
    ],
)  # fmt: skip
def test_a_mistake_that_a_task_finds_is_one_line_that_names_it(words, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = spoken(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("simclr: ") and len(err.splitlines()) == 1
    assert named in err
    assert list(tmp_path.iterdir()) == []  # a refused command leaves nothing behind


def test_a_mistyped_setting_in_a_recipe_is_named_with_the_file(tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    for text, named in (
        ("temprature: 0.1\n", "temprature"),
        ("views: {sise: 3}\n", "views.sise"),
        ("- 1\n", ""),
        (": : {", ""),
    ):
        recipe.write_text(text)
        code, _, err = spoken(capsys, "pretrain", "sample", "--config", str(recipe))
        assert code == 2
        assert named in err and str(recipe) in err and len(err.splitlines()) == 1


def settings_of(capsys, *words):
    code, out, err = spoken(capsys, *words, "--print_config")
    assert code == 0, err
    return yaml.safe_load(out)


def test_flags_override_recipes_wherever_they_stand(tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("temperature: 0.5\nbatch: 32\nviews: {size: 48}\nencoder_options: {width: 2}\n")
    for words in (
        ["pretrain", "sample", "--temperature", "0.3", "--config", str(recipe)],
        ["pretrain", "--config", str(recipe), "--temperature=0.3", "sample"],
        ["pretrain", "--fresh", "sample", "--config", str(recipe), "--temperature", "0.3"],
    ):
        settings = settings_of(capsys, *words, "--encoder_options.stem", "small")
        assert (settings["data"], settings["temperature"], settings["batch"]) == ("sample", 0.3, 32)
        assert settings["views"]["size"] == 48
        assert settings["encoder_options"] == {"width": 2, "stem": "small"}


def test_a_printed_configuration_is_a_recipe(tmp_path, capsys):
    first = settings_of(capsys, "pretrain", "sample", "--config", "sample", "--lr", "0.7", "--machine.compile")
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(first))
    assert settings_of(capsys, "pretrain", "--config", str(tmp_path / "all.yaml")) == first
    study = settings_of(capsys, "study", "loss", "sample", "--config", "sample", "--seeds", "3", "--lr", "0.5")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    assert settings_of(capsys, "study", "--config", str(tmp_path / "study.yaml")) == study
    assert (study["lr"], study["seeds"], study["views"]["size"]) == (0.5, 3, 16)


@pytest.mark.parametrize("recipe", sorted(path.stem for path in recipe_folder().glob("*.yaml")))
def test_every_recipe_is_understood_and_says_what_to_expect(recipe, capsys):
    text = spoken(capsys, "recipes", recipe)[1]
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert any("Hardware:" in line for line in header)
    assert any("Expected:" in line or "Goal:" in line for line in header)
    command = re.search(r"simclr (\w+) ", "".join(header))[1]
    places = ["somewhere"] * len(COMMANDS[command].positional)
    code, out, err = spoken(capsys, command, *places, "--config", recipe, "--print_config")
    assert code == 0, err
    assert "seed:" in out


def test_a_switch_alone_is_on(capsys):
    for words in (["--fresh", "--batch", "32"], ["--machine.compile", "--fresh"], ["--fresh", "true"]):
        assert settings_of(capsys, "pretrain", "sample", *words)["fresh"] is True
    assert settings_of(capsys, "pretrain", "--machine.compile", "sample")["machine"]["compile"] is True
    assert settings_of(capsys, "pretrain", "sample", "--normalize", "false")["normalize"] is False


def test_a_list_needs_no_brackets(capsys):
    for word, expected in (("linear", ["linear"]), ("linear,scratch", ["linear", "scratch"])):
        settings = settings_of(capsys, "transfer", "runs/x", "--protocols", word, "a", "b")
        assert (settings["protocols"], settings["data"]) == (expected, ["a", "b"])


def test_policies_of_views_are_short_on_a_command_line_and_a_list_in_a_recipe(tmp_path):
    recipe = tmp_path / "crops.yaml"
    recipe.write_text("policies:\n  - {count: 2}\n  - {size: 96, crop_area: [0.1, 0.4]}\n")
    words = "{count: 2}, {size: 96, crop_area: [0.1, 0.4]}"
    found = [
        parse(
            simclr.Pretrain, "pretrain", ("data",), ["x", "--views.blur", "0", *more], suggestions=False
        ).view_policies
        for more in (["--policies", words], ["--policies", f"[{words}]"], ["--config", str(recipe)])
    ]
    small = simclr.Views(size=96, blur=0.0, crop_area=(0.1, 0.4))
    assert found == [(*[simclr.Views(size=224, blur=0.0)] * 2, small)] * 3


def test_a_default_warm_up_fits_a_short_run(capsys):
    settings_of(capsys, "pretrain", "sample", "--epochs", "3")


INTERRUPTED = """
import sys
from simclr.cli import PlainText, main
class Interrupting:
    def find_spec(name, *rest):
        if name == "torch":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting)
sys.exit(main(["knn", "runs/x", "sample"]))
"""


def test_an_interruption_while_torch_is_loaded_takes_one_line():
    result = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (130, "simclr: stopped\n")


@pytest.mark.parametrize(
    "words", [["--help"], ["pretrain", "--help"], ["explore", "--help"], ["--version"], ["recipes"]]
)
def test_output_that_nobody_reads_any_more_ends_quietly(words):
    reading, writing = os.pipe()
    os.close(reading)
    program = "import sys; from simclr.cli import program; sys.exit(program())"
    with open(writing, "wb") as output:
        result = subprocess.run([sys.executable, "-c", program, *words], stdout=output, stderr=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (0, b"")


def raising(error):
    def parse(*words):
        raise error

    return parse


def test_of_several_processes_the_first_reports_a_mistake_and_each_its_own_failure(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert spoken(capsys, "pretrain", "sample", "--batch", "1") == (2, "", "")
    missing = FileNotFoundError(2, "No such file or directory", "/nowhere/at/all")
    monkeypatch.setattr("simclr.cli.parsing.parse", raising(missing))
    assert spoken(capsys, "pretrain") == (1, "", "simclr: process 1: /nowhere/at/all: no such file or directory\n")


@pytest.mark.parametrize("error", [ValueError("operands could not be broadcast"), KeyError("x"), ZeroDivisionError()])
def test_an_internal_error_is_a_bug_and_keeps_its_traceback(error, monkeypatch, capsys):
    monkeypatch.setattr("simclr.cli.parsing.parse", raising(error))
    code, _, err = spoken(capsys, "pretrain", "sample")
    assert code == 70
    assert len(err.splitlines()) == 1 and type(error).__name__ in err
    file = Path(err.split("Traceback: ")[1].strip())
    assert "Traceback (most recent call last)" in file.read_text()
    file.unlink()


def test_debug_shows_the_traceback():
    with pytest.raises(SettingError) as refused:
        main(["pretrain", "sample", "--batch", "1", "--debug"])
    assert refused.value.field == "batch"


OF_RUNS = [name for name, command in COMMANDS.items() if "run" in command.positional]
REQUIRED = {"neighbours": ["--among", "sample"], "explore pick": ["--budget", "2"]}


@pytest.mark.parametrize("command", OF_RUNS)
def test_what_is_no_run_is_refused_before_anything_else(command, tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\n")
    (tmp_path / "images").mkdir()
    words = ["/nowhere"] * (len(COMMANDS[command].positional) - 1)
    for wrong in ("labels.csv", "images"):
        with pytest.raises(RunError) as refused:
            main([*command.split(), str(tmp_path / wrong), *words, *REQUIRED.get(command, []), "--debug"])
        assert refused.value.path == str(tmp_path / wrong)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "labels.csv"]


def test_an_unrelated_distribution_of_the_same_name_is_reported(monkeypatch, capsys):
    true = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.0.2" if name == "simclr" else true(name))
    code, _, err = spoken(capsys, "recipes")
    assert code == 1
    assert "pip uninstall simclr" in err


@pytest.mark.parametrize("option", ["pretrained", "checkpoint_path", "pretrained_cfg", "cache_dir"])
@pytest.mark.parametrize("name", ["resnet18", "simclr_resnet18"])
def test_a_recipe_decides_on_the_architecture_only(name, option, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"encoder": name, "encoder_options": {option: str(tmp_path / "weights.pth")}}))
    for command in ("pretrain", "distill"):
        task = getattr(simclr, command.capitalize())
        words = ["--teacher", "t"] if command == "distill" else []
        with pytest.raises(RunError) as refused:
            parse(task, command, ("data",), ["sample", "--config", str(recipe), *words])
        assert refused.value.path == str(recipe)
        assert refused.value.names == (f"encoder_options.{option}",)


def test_names_of_files_do_not_command_the_terminal(capsys):
    print("a\x1b]0;title\x07b\rc", file=PlainText(sys.stdout))
    assert not {"\x1b", "\x07", "\r"} & set(capsys.readouterr().out)
    code, _, err = spoken(capsys, "scan", "/nowhere/\x1b[31mred")
    assert code == 2
    assert "\x1b" not in err
