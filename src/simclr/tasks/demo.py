"""Demonstration on bundled images: pretrain, evaluate, draw pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from simclr.cli.parsing import parse
from simclr.data import open_source
from simclr.evaluation.features import extract
from simclr.models.pretrained import load
from simclr.report import write_run_report
from simclr.report.pictures import neighbour_sheet
from simclr.runs.files import save_picture
from simclr.tasks.knn import Knn
from simclr.tasks.linear import Linear
from simclr.tasks.pretrain import Pretrain
from simclr.views.sheet import contact_sheet


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Pretrain a small encoder on the bundled photographs without their labels, then evaluate it with them.

    This takes minutes on two CPU cores. The same command resumes an interrupted demo.
    """

    command: ClassVar[str] = "demo"

    out: Path = Path("runs/demo")
    """run folder"""
    seed: int = 0
    """seed of all random draws"""
    fresh: bool = False
    """new start: the run in `out` is deleted once the new one has a checkpoint"""

    def __call__(self) -> dict[str, Any]:
        """Run the demonstration and return the results of both evaluations."""
        words = ["sample", "--config", "sample", f"--out={self.out}", f"--seed={self.seed}"]
        pretrain = parse(Pretrain, "pretrain", ("data",), words + ["--fresh"] * self.fresh)
        pretrain()

        print("\nOn held-out test images:")
        results = {task.command: task(run=self.out, data="sample")() for task in (Knn, Linear)}

        pictures = self.out / "pictures"
        pictures.mkdir(exist_ok=True)
        train, test = open_source("sample", "train"), open_source("sample", "test")
        sheet = contact_sheet([train.read(i) for i in range(8)], pretrain.view_policies, self.seed)
        save_picture(sheet, pictures / "views.png")
        encoder = load(self.out)
        features = extract(encoder.network, test, encoder.preprocess)
        save_picture(neighbour_sheet(features, test, seed=self.seed), pictures / "neighbours.png")
        write_run_report(self.out)
        print(f"\nrun: {self.out}\npictures: {', '.join(str(path) for path in sorted(pictures.glob('*.png')))}")
        print(f"report: {self.out / 'report.html'}")
        return results
