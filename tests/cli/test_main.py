"""The command line: quick, and one clear line for every mistake."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from simclr.cli import main
from simclr.cli.commands import COMMANDS
from simclr.runs.recipe import recipe_folder


def spoken(capsys, *words):
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def test_help_names_every_command_and_imports_nothing_heavy():
    check = "import sys; from simclr.cli import main; main(['--help']); print(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert all(command in out for command in COMMANDS)
    assert not {"torch", "numpy", "jsonargparse", "yaml", "timm"} & set(out.splitlines()[-1].split("'"))


IMPORT_EVERYTHING = """
import json, sys
import simclr
for name in simclr.__all__:
    getattr(simclr, name)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


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
    assert strangers - {"setuptools", "pip", "jsonargparse", "docstring-parser", "typeshed-client"} == set()


def _plain(name):
    return name.lower().replace("_", "-").replace(".", "-")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrian", "x"], "there is no command pretrian; did you mean pretrain?"),
        (["pretrain", "sample", "--temprature", "1"], "pretrain has no setting temprature; did you mean temperature?"),
        (["pretrain", "sample", "--machine.devces", "2"], "no setting machine.devces; did you mean machine.devices?"),
        (["pretrain", "sample", "--views.sise", "32"], "pretrain has no setting views.sise; did you mean views.size?"),
        (["pretrain", "sample", "extra"], "pretrain does not know what to do with 'extra'"),
        (["pretrain", "sample", "--batch", "many"], "batch must be a whole number; got many"),
        (["pretrain", "sample", "--batch"], "batch needs a value: a whole number"),
        (["pretrain", "sample", "--epochs", "ten"], "epochs must be a number; got ten"),
        (["pretrain", "sample", "--optimizer", "adm"], "optimizer must be one of lars, sgd, adamw; got adm"),
        (["pretrain", "sample", "--views.size", "big"], "views.size must be a whole number; got big"),
        (["pretrain", "sample", "--views", "3"], "views must be settings of its own, such as size; got 3"),
        (["pretrain", "sample", "--views.crop_area", "0.5"], "a list of 2 such as [a,b], each a number; got [0.5]"),
        (["pretrain", "sample", "--encoder_options", "width"], "encoder_options must be a mapping such as '{name: val"),
        (["health", "runs/x", "sample", "--views.size", "big"], "views.size must be a whole number; got big"),
        (["transfer", "runs/x", "a", "--protocols", "finetun"], "each one of linear, finetune, scratch; got finetun"),
        (["pretrain"], "pretrain needs data"),
        (["scan", ""], "data is an empty text; it can be a folder"),
        (["pretrain", "sample", "--batch", "1"], "batch must be at least 2"),
        (["pretrain", "/nowhere/at/all"], "'/nowhere/at/all' does not exist"),
        (["pretrain", "sample", "--config", "smaple"], "no file or recipe 'smaple'; did you mean sample? recipes are"),
        (["pretrain", "sample", "--config", "gone/sample.yaml"], "no file or recipe 'gone/sample.yaml'"),
        (["pretrain", "sample", "--out", __file__], "--out is a folder; "),
        (["pretrain", "sample", "--machine.accelerator", "cpu", "--machine.precision", "16"], "16, which needs a GPU"),
        (["recipes", "nosuch"], "there is no recipe 'nosuch'; there are"),
        (["knn", "/nowhere", "sample"], "/nowhere does not exist; name the folder of a finished run"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_in_one_line(words, message, capsys):
    code, _, err = spoken(capsys, *words)
    assert code == 2
    assert message in err
    assert err.startswith("simclr: ")
    assert len(err.splitlines()) == 1


def test_a_mistyped_setting_in_a_recipe_is_named(tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("temprature: 0.1\n")
    code, _, err = spoken(capsys, "pretrain", "sample", "--config", str(recipe))
    assert code == 2
    assert "pretrain has no setting temprature; did you mean temperature?" in err


def test_flags_override_recipes_wherever_they_stand(tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("temperature: 0.5\nbatch: 32\nviews: {size: 48}\n")
    code, out, _ = spoken(
        capsys, "pretrain", "sample", "--temperature", "0.3", "--config", str(recipe), "--print_config"
    )
    assert code == 0
    assert "temperature: 0.3" in out
    assert "batch: 32" in out
    assert "size: 48" in out


@pytest.mark.parametrize("recipe", sorted(path.stem for path in recipe_folder().glob("*.yaml")))
def test_every_recipe_is_understood_and_says_what_to_expect(recipe, capsys):
    text = spoken(capsys, "recipes", recipe)[1]
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert any("Hardware:" in line for line in header)
    assert any("Expected:" in line or "Goal:" in line for line in header)
    command = re.search(r"simclr (\w+) ", "".join(header))[1]
    places = ["somewhere"] * len(COMMANDS[command][1])
    code, out, err = spoken(capsys, command, *places, "--config", recipe, "--print_config")
    assert code == 0, err
    assert "seed:" in out


def test_a_switch_alone_is_on(capsys):
    for words in (["--fresh", "--batch", "32"], ["--machine.compile", "--fresh"], ["--fresh", "true"]):
        code, out, err = spoken(capsys, "pretrain", "sample", *words, "--print_config")
        assert code == 0, err
        assert "fresh: true" in out
    assert "compile: true" in spoken(capsys, "pretrain", "sample", "--machine.compile", "--print_config")[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_its_settings(command, capsys):
    code, out, _ = spoken(capsys, command, "--help")
    assert code == 0
    assert f"usage: simclr {command}" in out
    assert not re.search(r"required, type: [^)]*default", " ".join(out.split()))


def test_the_usage_tells_what_can_be_left_out(capsys):
    assert "usage: simclr recipes [NAME] [--SETTING" in spoken(capsys, "recipes", "--help")[1]
    assert "usage: simclr knn RUN DATA [--SETTING" in spoken(capsys, "knn", "--help")[1]


def test_a_list_needs_no_brackets(capsys):
    for word, expected in (("linear", "- linear\n"), ("linear,scratch", "- linear\n- scratch\n")):
        out = spoken(capsys, "transfer", "runs/x", "a", "b", "--protocols", word, "--print_config")[1]
        assert f"protocols:\n{expected}mean_per_class" in out
    assert "layers: all" in spoken(capsys, "information", "runs/x", "a", "--layers", "all", "--print_config")[1]


INTERRUPTED = """
import sys
from simclr.cli import main
class Interrupting:
    def find_spec(name, *rest):
        if name == "torch":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting)
sys.exit(main(["knn", "runs/x", "sample"]))
"""


def test_an_interruption_while_torch_is_loaded_takes_one_line():
    told = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert (told.returncode, told.stderr) == (130, "simclr: stopped\n")


def test_of_several_processes_the_first_tells_a_mistake_and_each_its_own_failure(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert spoken(capsys, "pretrain", "sample", "--batch", "1") == (2, "", "")
    monkeypatch.setattr("simclr.cli.parsing.parse", lambda *words: Path("/nowhere/at/all").read_text)
    assert spoken(capsys, "pretrain") == (1, "", "simclr: process 1: /nowhere/at/all: no such file or directory\n")


def test_debug_shows_where_a_failure_comes_from():
    with pytest.raises(ValueError, match="batch must be at least 2"):
        main(["pretrain", "sample", "--batch", "1", "--debug"])
