"""The main job on bundled images: pretrain, measure, look."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from simclr.cli.parsing import parse
from simclr.data import open_source
from simclr.evaluation.features import extract
from simclr.models.pretrained import load
from simclr.report import keep_page
from simclr.report.pictures import loss_curve, neighbour_sheet
from simclr.runs.run import Run
from simclr.tasks.knn import Knn
from simclr.tasks.linear import Linear
from simclr.tasks.pretrain import Pretrain
from simclr.views.sheet import contact_sheet


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Pretrain a small encoder on the bundled photographs without their labels, then measure it with them.

    Takes minutes on two CPU cores. Interrupted, the same command goes on.
    """

    command: ClassVar[str] = "demo"

    out: Path = Path("runs/demo")
    """run folder"""
    seed: int = 0
    """names every random draw"""
    fresh: bool = False
    """delete what an earlier demo left in `out` and start over"""

    def __call__(self) -> dict[str, Any]:
        words = ["sample", "--config", "sample", "--out", str(self.out), "--seed", str(self.seed)]
        pretrain = parse(Pretrain, "pretrain", ("data",), words + (["--fresh"] if self.fresh else []))
        pretrain()

        print("\nOn held-out test images:")
        found = {
            name: task(run=self.out, data="sample")()
            for name, task in {"knn": Knn, "linear": Linear}.items()
        }  # fmt: skip

        pictures = self.out / "pictures"
        pictures.mkdir(exist_ok=True)
        train, test = open_source("sample", "train"), open_source("sample", "test")
        contact_sheet([train.read(i) for i in range(8)], pretrain.views, self.seed).save(pictures / "views.png")
        loss_curve(Run(self.out).metrics(), pictures / "loss.png")
        encoder = load(self.out)
        features = extract(encoder.network, test, encoder.preprocess)
        neighbour_sheet(features, test, seed=self.seed).save(pictures / "neighbours.png")
        keep_page(self.out)
        print(f"\nRun: {self.out}\nPictures: " + ", ".join(str(p) for p in sorted(pictures.glob("*.png"))))
        print(f"All of it on a page: {self.out / 'report.html'}")
        return found
