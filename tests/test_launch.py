"""Files and commands of docs/machines.md."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from support.evaluated import write_arrays
from support.processes import succeed

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


def joined(text):
    """The lines of a script, those that are continued as one."""
    return text.replace("\\\n", " ").splitlines()


def commands(text):
    """The simclr commands in a shell script."""
    for line in joined(text):
        if match := re.search(r"(?:^|\s)simclr ((?:pretrain|embed|explore|knn|linear) .*)", line):
            yield [re.sub(r"\$.*", "2", word) for word in shlex.split(match[1])]


@pytest.mark.parametrize("text", [path.read_text() for path in (DOCS / "machines.md", DOCS / "launch" / "slurm.sbatch",
                                                                DOCS / "launch" / "skypilot.yaml")])  # fmt: skip
def test_every_command_is_one(text):
    tasks = [task(words) for words in commands(text)]
    assert tasks and all(isinstance(one.out, Path) for one in tasks if isinstance(one, Pretrain | Embed) and one.out)


@pytest.mark.slow
def test_the_commands_for_several_processes_run_in_two(tmp_path):
    """Those of the page, on small images: a training, its repetitions, which find it finished, and what follows."""
    data = write_arrays(tmp_path / "photos.npz")
    places = {"s3://bucket/photos": str(data), "./photos": str(data), "/shared": str(tmp_path)}
    network = ["--encoder", "simclr_convnet", "--encoder_options", "{widths: [8, 16], features: 0}"]
    training = [*network, "--batch", "16", "--epochs", "1", "--views.size", "16", "--knn_every", "1"]
    small = {"pretrain": training, "embed": ["--part_size", "50"]}
    torchrun = "\n".join(line for line in joined((DOCS / "machines.md").read_text()) if "-m simclr" in line)
    lines = list(commands(torchrun.replace("--out runs/photos", "--out /shared/runs/photos")))
    assert [words[0] for words in lines] == ["pretrain"] * 3 + ["knn", "linear", "embed"]
    for words in lines:
        for place, path in places.items():
            words = [word.replace(place, path) for word in words]
        succeed([*words, *small.get(words[0], []), "--machine.workers", "0"], processes=2)
    assert (tmp_path / "runs" / "photos" / "result.json").exists()
    assert json.loads((tmp_path / "photos" / "embeddings.json").read_text())["images"] == 180
    assert {path.name for path in (tmp_path / "runs" / "photos").glob("*.json")} >= {"knn.json", "linear.json"}


@pytest.mark.parametrize(("code", "requeued"), [(75, "7"), (1, None), (0, None)])
def test_the_batch_script_starts_the_training_and_requeues_the_job(tmp_path, code, requeued):
    for name, line in (("srun", f'echo "$@" > {tmp_path}/words; exit {code}'),
                       ("scontrol", f'echo "$@" > {tmp_path}/control')):  # fmt: skip
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"SLURM_NTASKS_PER_NODE": "8", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
    assert subprocess.run(["bash", DOCS / "launch" / "slurm.sbatch"], env=environment).returncode == code
    words = (tmp_path / "words").read_text().split()
    started = task(words[words.index("simclr") + 1 :])
    assert (started.machine.devices, started.machine.nodes) == (8, 2)
    control = tmp_path / "control"
    assert (control.read_text().split() if control.exists() else None) == (requeued and ["requeue", requeued])


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
