"""Files and commands of docs/machines.md."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from simclr.cli.commands import COMMANDS
from simclr.cli.helptext import task_of
from simclr.cli.parsing import parse
from simclr.tasks.embed import Embed
from simclr.tasks.pretrain import Pretrain

DOCS = Path(__file__).parents[1] / "docs"


def task(words):
    """The task that the words after `simclr` mean, checked as the command line does."""
    command = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    rest = words[len(command.split()) :]
    rest += ["--config", "sample"] * (command == "pretrain" and "--config" not in rest)  # else the images are read
    return parse(task_of(command), command, COMMANDS[command].positional, rest)


def commands(text):
    """The simclr commands in a shell script."""
    for line in text.replace("\\\n", " ").splitlines():
        if found := re.search(r"(?:^|\s)simclr ((?:pretrain|embed|explore) .*)", line):
            yield [re.sub(r"\$.*", "2", word) for word in shlex.split(found[1])]


@pytest.mark.parametrize("text", [path.read_text() for path in (DOCS / "machines.md", DOCS / "launch" / "slurm.sbatch",
                                                                DOCS / "launch" / "skypilot.yaml")])  # fmt: skip
def test_every_command_is_one(text):
    tasks = [task(words) for words in commands(text)]
    assert tasks and all(isinstance(one.out, Path) for one in tasks if isinstance(one, Pretrain | Embed) and one.out)


def test_the_manifest_starts_a_run():
    spec = yaml.safe_load((DOCS / "launch" / "trainjob.yaml").read_text())["spec"]
    words = spec["trainer"]["command"]
    assert words[:3] == ["torchrun", "-m", "simclr"] and isinstance(task(words[3:]), Pretrain)
    assert spec["trainer"]["numNodes"] == 2 and spec["runtimeRef"]["name"] == "torch-distributed"


def test_the_batch_script_requeues_on_the_exit_code_of_a_stop():
    from simclr.cli import INTERRUPTED

    path = DOCS / "launch" / "slurm.sbatch"
    text = path.read_text()
    assert f'"$code" -eq {INTERRUPTED}' in text and "--signal=USR1@" in text
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    sky = yaml.safe_load((DOCS / "launch" / "skypilot.yaml").read_text())
    assert subprocess.run(["bash", "-n"], input=sky["run"], text=True).returncode == 0
