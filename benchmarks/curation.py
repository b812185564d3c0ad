"""How well `simclr explore` finds what was planted, and what its picks are worth.

    python benchmarks/curation.py duplicates RUN FOLDER --work DIR [--planted 100] [--draws 3]
    python benchmarks/curation.py labels RUN DATA --work DIR [--rows 20000] [--fraction 0.05] [--draws 3]
    python benchmarks/curation.py pick RUN DATA --work DIR [--budgets 10 40 100 1000] [--draws 5]

Each draw has its own seed, 0, 1, ... Embeddings in DIR are used again. Prints one JSON object.

duplicates: of a folder of images, the groups that `explore duplicates` finds before anything is planted are reduced to
their first images, so that what it finds afterwards was planted or is wrong. Then copies of other images are planted,
`--planted` of each kind. A copy is found if it is in one group with its original. An image that is reported is right if
its group holds another version of it.

labels: `--fraction` of the labels of random training images are replaced by other classes, each as likely. As many
images as were planted are taken from the top of each ranking, so that precision and recall are one number.

pick: images are picked with `auto`, each budget after the smaller ones with their labels filled in; `simclr linear`
learns from the labels of the picked and of as many random images, and is tested on all test images.
"""

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from simclr import Duplicates, Embed, Labels, Linear, Pick
from simclr.data import Source
from simclr.evaluation.features import Features
from simclr.evaluation.intervals import seed_interval
from simclr.runs.machine import Device

Table = list[dict[str, str]]
SERIAL = Device(accelerator="cpu", workers=0)


def main() -> None:
    """Run one of the experiments and print what it found."""
    parser = argparse.ArgumentParser()
    experiments = parser.add_subparsers(dest="experiment", required=True)
    for name, function, draws in (("duplicates", duplicates, 3), ("labels", labels, 3), ("pick", pick, 5)):
        experiment = experiments.add_parser(name)
        experiment.set_defaults(function=function)
        experiment.add_argument("run", type=Path)
        experiment.add_argument("data")
        experiment.add_argument("--work", type=Path, required=True)
        experiment.add_argument("--draws", type=int, default=draws)
        match name:
            case "duplicates":
                experiment.add_argument("--planted", type=int, default=100)
                experiment.add_argument("--threshold", type=float, default=Duplicates.threshold)
            case "labels":
                experiment.add_argument("--rows", type=int, default=20_000)
                experiment.add_argument("--fraction", type=float, default=0.05)
            case "pick":
                experiment.add_argument("--budgets", type=int, nargs="+", default=[10, 40, 100, 1000])
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    with redirect_stdout(StringIO()):  # what the commands print
        found = arguments.function(arguments)
    print(json.dumps(found, indent=2))


def rows_of(task: Callable[[], dict[str, Any]]) -> Table:
    """Return the rows of the table that an exploration writes."""
    with open(task()["out"], newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def embeddings(run: Path, data: str, file: Path) -> dict[str, np.ndarray]:
    """Return the content of a file of embeddings, which is written if there is none."""
    if not file.exists():
        Embed(run=run, data=data, out=file, machine=SERIAL)()
    with np.load(file) as content:
        return dict(content)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation and Student's 95 % interval over draws."""
    several = {"sd": float(np.std(values, ddof=1)), "interval": seed_interval(values)} if len(values) > 1 else {}
    return {"mean": float(np.mean(values)), **several, "values": [float(v) for v in values]}


# duplicates


def resized(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image at half to twice its size."""
    factor = 2 ** rng.uniform(-1, 1)
    return image.resize([max(1, round(factor * side)) for side in image.size], Image.Resampling.BICUBIC)


def recompressed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image after JPEG compression of a quality from 30 to 80."""
    file = BytesIO()
    image.save(file, "JPEG", quality=int(rng.integers(30, 81)))
    return Image.open(file).convert("RGB")


def mirrored(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the mirror image."""
    return ImageOps.mirror(image)


def cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a random part with 80 % of each side."""
    width, height = (round(0.8 * side) for side in image.size)
    left, top = (int(rng.integers(0, side - part + 1)) for side, part in zip(image.size, (width, height), strict=True))
    return image.crop((left, top, left + width, top + height))


KINDS = {"resized": resized, "recompressed": recompressed, "mirrored": mirrored, "cropped": cropped}


def duplicates(arguments: argparse.Namespace) -> dict[str, Any]:
    """Plant copies among the images of a folder and look for them."""
    folder, work, threshold = Path(arguments.data), arguments.work, arguments.threshold
    content = embeddings(arguments.run, str(folder), work / "all.npz")
    paths = [str(folder.resolve() / name) for name in content["paths"]]
    before = found_in(work / "before", content["features"], paths, threshold)
    surplus = {row["path"] for row in before if row["keep"] == "False"}
    rows = np.array([i for i, name in enumerate(paths) if name not in surplus])
    names = [paths[i] for i in rows]
    figures: dict[str, list[float]] = defaultdict(list)
    for seed in range(arguments.draws):
        to = (work / f"draw-{seed}").resolve()
        planted = plant(names, to, arguments.planted, seed)
        copies = embeddings(arguments.run, str(to), work / f"copies-{seed}.npz")
        features = np.concatenate([content["features"][rows], copies["features"]])
        found = found_in(
            work / f"with-{seed}", features, names + [str(to / name) for name in copies["paths"]], threshold
        )
        for name, value in judged(found, planted).items():
            figures[name].append(value)
    return {
        "images": len(names), "removed_before": len(surplus), "planted_of_each_kind": arguments.planted,
        "threshold": threshold, **{name: summary(values) for name, values in figures.items()},
    }  # fmt: skip


def found_in(file: Path, features: np.ndarray, paths: list[str], threshold: float) -> Table:
    """Return the table of near-duplicates among embeddings of images at these paths."""
    np.savez(file.with_suffix(".npz"), features=features, paths=np.array(paths))
    file.with_suffix(".txt").write_text("\n".join(paths) + "\n", encoding="utf-8")
    images = str(file.with_suffix(".txt"))
    return rows_of(Duplicates(run=file.with_suffix(".npz"), data=images, threshold=threshold, overwrite=True))


def plant(names: list[str], to: Path, count: int, seed: int) -> dict[str, tuple[str, str]]:
    """Write changed copies of images; return the original and the kind of each by its path."""
    rng, planted = np.random.default_rng(seed), {}
    chosen = iter(rng.permutation(len(names)).tolist())
    for kind, change in KINDS.items():
        (to / kind).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            original = names[next(chosen)]
            with Image.open(original) as image:
                change(image.convert("RGB"), rng).save(to / kind / f"{k}.png")
            planted[str(to / kind / f"{k}.png")] = (original, kind)
    return planted


def judged(rows: Table, planted: dict[str, tuple[str, str]]) -> dict[str, float]:
    """Return the recall and precision of each kind, and the precision over all images that are reported."""
    group_of = {row["path"]: row["group"] for row in rows}
    versions: dict[tuple[str, str], int] = defaultdict(int)
    for path, group in group_of.items():
        versions[group, planted.get(path, (path, ""))[0]] += 1
    right = {path: versions[group, planted.get(path, (path, ""))[0]] > 1 for path, group in group_of.items()}
    figures = {}
    for kind in KINDS:
        copies = [path for path, (_, own) in planted.items() if own == kind]
        reported = [path for path in copies if path in right]
        figures[f"recall_{kind}"] = sum(right[path] for path in reported) / len(copies)
        if reported:
            figures[f"precision_{kind}"] = float(np.mean([right[path] for path in reported]))
    return {**figures, "precision": float(np.mean(list(right.values()))), "reported": len(right)}


# labels


def labels(arguments: argparse.Namespace) -> dict[str, Any]:
    """Plant label errors and look for them."""
    content = embeddings(arguments.run, arguments.data, arguments.work / "all.npz")
    train = np.flatnonzero(content["split"] == "train")
    figures: dict[str, list[float]] = defaultdict(list)
    for seed in range(arguments.draws):
        rng = np.random.default_rng(seed)
        rows = rng.permutation(train)[: arguments.rows]
        given = content["labels"][rows].copy()
        wrong = np.arange(len(rows)) < round(arguments.fraction * len(rows))
        given[wrong] = (given[wrong] + rng.integers(1, len(content["classes"]), wrong.sum())) % len(content["classes"])
        file = arguments.work / f"labels-{seed}.npz"
        np.savez(file, features=content["features"][rows], labels=given, classes=content["classes"])
        top = int(wrong.sum())
        engine = "cleanlab" if find_spec("cleanlab") else "confidence"
        table = rows_of(Labels(run=file, engine=engine, seed=seed, out=file.with_suffix(".csv"), overwrite=True))
        order = np.array([int(row["row"]) for row in table])
        figures["first"].append(wrong[order[:top]].mean())
        suspects = {"other_class": np.array([row["suggested"] != row["label"] for row in table])}
        if engine == "cleanlab":
            suspects["cleanlab"] = np.array([row["suspect"] == "True" for row in table])
            quality = cleanlab_quality(content["features"][rows], given, seed)
            figures["cleanlab_alone_first"].append(wrong[np.argsort(quality, kind="stable")[:top]].mean())
        for rule, suspect in suspects.items():
            figures[f"{rule}_suspects"].append(int(suspect.sum()))
            figures[f"{rule}_precision"].append(wrong[order[suspect]].mean())
            figures[f"{rule}_recall"].append(wrong[order[suspect]].sum() / top)
        figures["random_first"].append(wrong[rng.permutation(len(rows))[:top]].mean())
    return {"images": arguments.rows, "planted": top, **{name: summary(values) for name, values in figures.items()}}


def cleanlab_quality(features: np.ndarray, given: np.ndarray, seed: int) -> np.ndarray:
    """Return the label quality of cleanlab's own five-fold cross-validation of scikit-learn's logistic regression."""
    from cleanlab.classification import CleanLearning
    from sklearn.linear_model import LogisticRegression

    scaled = (features - features.mean(0)) / np.sqrt(features.var(0).mean())
    options = {"cv_n_folds": 5, "seed": seed, "find_label_issues_kwargs": {"n_jobs": 1}}
    search = CleanLearning(LogisticRegression(max_iter=300), **options)
    return search.find_label_issues(scaled, given)["label_quality"].to_numpy()


# pick


def pick(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare the linear classifier on picked labels with the one on random labels."""
    work, budgets = arguments.work, arguments.budgets
    content = embeddings(arguments.run, arguments.data, work / "all.npz")
    train = content["split"] == "train"
    file = work / "train.npz"
    np.savez(file, classes=content["classes"], **{k: content[k][train] for k in ("features", "labels", "paths")})
    rows: dict[str, Any] = {str(budget): {"method": [], "picked": [], "random": []} for budget in budgets}
    for seed in range(arguments.draws):
        earlier: list[Path] = []
        for before, budget in zip([0, *budgets], budgets, strict=False):
            names, shared = f"{seed}-{budget}.csv", {"run": file, "seed": seed, "overwrite": True}
            picked = Pick(budget=budget - before, after=earlier or None, out=work / f"picked-{names}", **shared)()
            random = Pick(budget=budget, method="random", out=work / f"random-{names}", **shared)()
            earlier = [*earlier, picked["out"]]
            row = rows[str(budget)]
            row["method"].append(picked["method"])
            row["picked"].append(linear_accuracy(arguments, content, earlier))
            row["random"].append(linear_accuracy(arguments, content, [random["out"]]))
    for row in rows.values():
        row["difference"] = summary(np.subtract(row["picked"], row["random"]))
        row |= {name: summary(row[name]) for name in ("picked", "random")}
    return {"images": int(train.sum()), "test_images": int((~train).sum()), "budgets": rows}


def linear_accuracy(arguments: argparse.Namespace, content: dict[str, np.ndarray], tables: list[Path]) -> float:
    """Return the test accuracy of `simclr linear` on the labels of the images of some tables."""
    chosen = []
    for table in tables:
        with open(table, newline="", encoding="utf-8") as file:
            chosen += [row["path"] for row in csv.DictReader(file)]
    names = tables[-1].with_suffix(".txt")
    names.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    rows = {(split, path): i for i, (split, path) in enumerate(zip(content["split"], content["paths"], strict=True))}

    def kept(models: Sequence[Any], source: Source, machine: Device) -> list[Features]:
        own = [rows[source.split, source.path(i)] for i in range(len(source))]
        features, labels = (torch.from_numpy(content[name][own]) for name in ("features", "labels"))
        return [Features(features, labels, torch.arange(len(own)), {})]

    settings = {"labelled": names, "baselines": False, "out": names.with_suffix(".json")}
    return Linear(run=arguments.run, data=arguments.data, **settings)(kept)["results"][0]["value"]


if __name__ == "__main__":
    main()
