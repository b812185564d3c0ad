"""The claims of both papers at a small scale: each study with the members that its claims contrast, and no others.

    python benchmarks/claims.py DATA --out FOLDER [--studies NAME ...] [--seeds 3] [--parallel 1] [--transfer_to SET]
        [--precision bf16]

DATA: labelled images of about 32 px with a training and a test split, such as cifar10:FOLDER. The base is that of
`SCALES`: the recipe `cifar10-cpu-15min` with views of 16 px and a third of its epochs; studies that vary a ResNet have
a narrow one. A pretraining that two studies share is run once. The test images are read once for each run. Finished
runs in FOLDER are not repeated, and each study leaves its study.json in FOLDER/STUDY; `simclr study --claims --results
FOLDER` lists the verdicts. On a GPU, `--parallel 6` runs several small networks at a time.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simclr import Pretrain
from simclr.cli.parsing import parse
from simclr.runs.reading import read_yaml
from simclr.runs.recipe import plain
from simclr.tasks.studies import STUDIES
from simclr.tasks.studies.ablation import Ablation
from simclr.tasks.study import Study
from simclr.tasks.sweep import with_settings

RECIPE = "cifar10-cpu-15min"
EPOCHS = 6
SMALL = {"views.size": 16, "first_size": None, "image_size": 32, "epochs": EPOCHS, "warmup_epochs": EPOCHS / 20}
RESNET = {  # the strided stem, so that a ResNet-152 fits in minutes of a core
    "encoder": "simclr_resnet18",
    "encoder_options": {"width": 0.125, "stem": "imagenet"},
    "head_layers": 3,
    "views.size": 20,
    "epochs": 5,
    "warmup_epochs": 0.25,
}
SCALES: dict[str, dict[str, Any]] = {
    "leave-out": {"views.size": 20, "views.blur": 0.5, "image_size": 40},  # at 16 px a blur has one tap
    "colour": {"views.size": 20, "image_size": 40},
    "temperature": {"knn_every": EPOCHS},  # whose claims need the health check
    **{name: RESNET for name in ("size", "selective-kernels", "label-fraction")},
    **{name: {"head_layers": 3} for name in ("head-depth", "distillation")},
}
FRACTIONS = {"head-depth": 0.01, "distillation": 0.01}  # of the labels


def main() -> None:
    """Run the studies one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--studies", nargs="+", default=[name for name, study in STUDIES.items() if study.claims])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--transfer_to", nargs="*", default=[])
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    for name in arguments.studies:
        study = study_of(name, arguments)
        for folder, other in shared(study, arguments.out):
            partial = folder.with_name(f".{folder.name}")  # which no pattern of runs matches
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(other, partial, ignore=shutil.ignore_patterns("finetune*", "distill*", "linear*"))
            partial.rename(folder)
            print(f"{folder}: the run in {other}", flush=True)
        study()


def study_of(name: str, arguments: argparse.Namespace) -> Study:
    """Return the study of the members that the claims name."""
    words = [arguments.data, "--config", RECIPE, "--out", str(arguments.out / name), "--machine.workers", "0"]
    words += ["--machine.precision", arguments.precision]
    base = with_settings(parse(Pretrain, "pretrain", ("data",), words), SMALL | SCALES.get(name, {}))
    return Study(
        base=base, name=name, data=arguments.data, seeds=arguments.seeds, only=contrasted(STUDIES[name], base),
        measure=("linear",), fraction=FRACTIONS.get(name, 0.1), parallel=arguments.parallel,
        transfer_to=tuple(arguments.transfer_to),
    )  # fmt: skip


def contrasted(ablation: Ablation, base: Pretrain) -> tuple[str, ...]:
    """Return the labels of the members that claims contrast, as they are with this base."""
    labels = dict(zip(ablation.members(Pretrain(data="")), ablation.members(base), strict=True))
    named = [label for claim in ablation.claims for label in (*claim.members, *(claim.than or ()))]
    return tuple(labels[label] for label in dict.fromkeys(named))


def shared(study: Study, out: Path) -> Iterator[tuple[Path, Path]]:
    """Yield pretrainings that are yet to be run with a finished run of the same settings in another study."""
    folders = [path.parent for path in sorted(out.glob("*/*/seed-*/result.json"))]
    finished = {_of(read_yaml(folder / "recipe.yaml")): folder for folder in folders}
    for member in study.plan(STUDIES[study.name]):
        first = member.tasks[0]
        same = finished.get(_of(plain(first)))
        if same is not None and not first.folder.exists():
            yield first.folder, same


def _of(settings: dict[str, Any]) -> str:
    own = {k: v for k, v in settings.items() if k not in ("out", "fresh", "machine")}
    return json.dumps(own | {"precision": settings["machine"]["precision"]}, sort_keys=True)


if __name__ == "__main__":
    main()
