"""Table of commands. It imports nothing heavy, so that the overview and the help of a command are printed at once."""

from typing import NamedTuple


class Command(NamedTuple):
    """One command of `simclr`."""

    group: str
    task: str
    """`module:class` of the task"""
    positional: tuple[str, ...]
    """fields that need no flag, in order; `name...` takes all words that are left"""
    summary: str
    examples: tuple[str, ...]


GROUPS = ("Data", "Train", "Evaluate", "Use", "Explore", "Papers")

COMMANDS = {
    "scan": Command(
        "Data", "simclr.tasks.scan:Scan", ("data",),
        "report the contents of a data set and its unreadable files",
        ("simclr scan ./photos", "simclr scan ./photos --out report/"),
    ),
    "suggest": Command(
        "Data", "simclr.tasks.suggest:Suggest", ("data",),
        "suggest pretraining settings for a data set and this machine",
        ("simclr suggest ./photos --out photos.yaml", "simclr pretrain ./photos --config photos.yaml"),
    ),
    "doctor": Command(
        "Data", "simclr.tasks.doctor:Doctor", ("data",),
        "check data and settings before a long run, or the log of a run",
        ("simclr doctor ./photos --config photos.yaml", "simclr doctor runs/photos"),
    ),
    "views": Command(
        "Data", "simclr.tasks.views:ShowViews", ("data",),
        "draw a contact sheet of augmented views",
        ("simclr views ./photos --views.size 224 --out views.png",),
    ),
    "pack": Command(
        "Data", "simclr.tasks.pack:Pack", ("data",),
        "write a data set as a few tar files, with large images reduced",
        (
            "simclr pack ./photos --out ./packed",
            "simclr pack ./photos --out s3://bucket/photos --side 256 --shard_mb 200",
        ),
    ),
    "pretrain": Command(
        "Train", "simclr.tasks.pretrain:Pretrain", ("data",),
        "train an encoder on images without labels",
        (
            "simclr pretrain ./photos",
            "simclr pretrain ./photos --config photos.yaml --out runs/photos",
            "simclr pretrain cifar10:DIR --config cifar10-fast --epochs 100",
        ),
    ),
    "finetune": Command(
        "Train", "simclr.tasks.finetune:FineTune", ("run", "data"),
        "train encoder and classifier on labelled images",
        ("simclr finetune runs/photos ./labelled --fraction 0.1",),
    ),
    "distill": Command(
        "Train", "simclr.tasks.distill:Distill", ("teacher", "data"),
        "train a student network on the predictions of a fine-tuned one",
        ("simclr distill runs/photos/finetune-0.1 ./photos --encoder simclr_resnet18 --test ./labelled",),
    ),
    "v2": Command(
        "Train", "simclr.tasks.v2:SimCLRv2", ("data",),
        "SimCLRv2 as a whole: pretrain, fine-tune with few labels, distil",
        ("simclr v2 sample --config sample-v2", "simclr v2 cifar10:DIR --config cifar10-v2 --labels 1% --dry_run"),
    ),
    "knn": Command(
        "Evaluate", "simclr.tasks.knn:Knn", ("run", "data"),
        "k-NN accuracy of an encoder",
        ("simclr knn runs/photos ./labelled",),
    ),
    "linear": Command(
        "Evaluate", "simclr.tasks.linear:Linear", ("run", "data"),
        "linear evaluation of an encoder",
        ("simclr linear runs/photos ./labelled", "simclr linear runs/photos ./labelled --layer all"),
    ),
    "transfer": Command(
        "Evaluate", "simclr.tasks.transfer:Transfer", ("run", "data..."),
        "evaluate an encoder on several data sets",
        ("simclr transfer runs/photos ./pets ./flowers --protocols linear,finetune",),
    ),
    "robustness": Command(
        "Evaluate", "simclr.tasks.robustness:Robustness", ("run", "data"),
        "accuracy and calibration on corrupted test images",
        ("simclr robustness runs/photos ./labelled",),
    ),
    "information": Command(
        "Evaluate", "simclr.tasks.information:Information", ("run", "data"),
        "predict from each layer which transformation was applied (v1, Table 3)",
        ("simclr information runs/photos ./photos",),
    ),
    "health": Command(
        "Evaluate", "simclr.tasks.health:Health", ("run", "data"),
        "statistics of embeddings that need no labels",
        ("simclr health runs/photos ./photos",),
    ),
    "embed": Command(
        "Use", "simclr.tasks.embed:Embed", ("run", "data"),
        "write the embeddings of a data set",
        ("simclr embed runs/photos ./photos --out photos.npz",),
    ),
    "predict": Command(
        "Use", "simclr.tasks.predict:Predict", ("run", "data"),
        "classify images with a trained classifier",
        ("simclr predict runs/photos/finetune-0.1 ./photos", "simclr predict runs/photos/linear ./photos --top 3"),
    ),
    "neighbours": Command(
        "Use", "simclr.tasks.neighbours:Neighbours", ("run", "images..."),
        "find the images most similar to given ones",
        ("simclr neighbours runs/photos query.jpg --among photos.npz --out similar.png",),
    ),
    "export": Command(
        "Use", "simclr.tasks.export:Export", ("run",),
        "write an encoder as a program or as weights for other libraries",
        ("simclr export runs/photos", "simclr export runs/photos --to onnx --out photos.onnx"),
    ),
    "convert": Command(
        "Use", "simclr.tasks.convert:Convert", ("checkpoint",),
        "convert a checkpoint of the official code or of another toolkit to a run folder",
        ("simclr convert ./r50_1x_sk0 --out runs/official", "simclr convert checkpoint.pth --out runs/imported"),
    ),
    "report": Command(
        "Use", "simclr.tasks.report:Report", ("runs...",),
        "write runs and their measurements as one HTML page",
        ("simclr report runs/photos", "simclr report runs/a runs/b --out comparison.html"),
    ),
    "watch": Command(
        "Use", "simclr.tasks.watch:Watch", ("runs...",),
        "show running and finished runs as a live page in a browser",
        ("simclr watch runs", "simclr watch runs/a runs/b --port 8000"),
    ),
    "explore duplicates": Command(
        "Explore", "simclr.tasks.explore.duplicates:Duplicates", ("run", "data"),
        "find groups of copies and near-duplicates",
        ("simclr explore duplicates photos.npz", "simclr explore duplicates runs/photos ./photos"),
    ),
    "explore leaks": Command(
        "Explore", "simclr.tasks.explore.leaks:Leaks", ("run", "data"),
        "find near-duplicates of test images among training images",
        ("simclr explore leaks photos.npz",),
    ),
    "explore outliers": Command(
        "Explore", "simclr.tasks.explore.outliers:Outliers", ("run", "data"),
        "find images that are far from all others",
        ("simclr explore outliers photos.npz --k 20",),
    ),
    "explore labels": Command(
        "Explore", "simclr.tasks.explore.labels:Labels", ("run", "data"),
        "rank suspected label errors",
        ("simclr explore labels photos.npz",),
    ),
    "explore pick": Command(
        "Explore", "simclr.tasks.explore.pick:Pick", ("run", "data"),
        "select the images to label next",
        (
            "simclr explore pick photos.npz --budget 50 --out first.csv",
            "simclr explore pick photos.npz --budget 200 --after first.csv --out second.csv",
        ),
    ),
    "explore map": Command(
        "Explore", "simclr.tasks.explore.map:Map", ("run", "data"),
        "draw the embeddings in two dimensions",
        ("simclr explore map photos.npz", "simclr explore map photos.npz --projection umap --out umap.parquet"),
    ),
    "explore search": Command(
        "Explore", "simclr.tasks.explore.search:Search", ("run", "query", "data"),
        "find the images most similar to an image or to each of a folder",
        ("simclr explore search photos.npz query.jpg --encoder runs/photos",),
    ),
    "recipes": Command(
        "Papers", "simclr.tasks.recipes:Recipes", ("name",),
        "list the bundled recipes, or print one",
        ("simclr recipes", "simclr recipes cifar10-fast"),
    ),
    "reproduce": Command(
        "Papers", "simclr.tasks.reproduce:Reproduce", ("recipe",),
        "train a recipe and compare its metrics with the recorded ones",
        ("simclr reproduce sample", "simclr reproduce cifar10-cpu --data cifar10:DIR"),
    ),
    "study": Command(
        "Papers", "simclr.tasks.study:Study", ("name", "data"),
        "run an ablation study of the papers, or list the studies",
        ("simclr study", "simclr study loss ./labelled --config sample --seeds 3 --budget 2h", "simclr study --claims"),
    ),
    "sweep": Command(
        "Train", "simclr.tasks.sweep:Sweep", ("data", "over..."),
        "search settings of pretraining on held-out training images",
        (
            "simclr sweep ./labelled lr=0.5,1,2 temperature=0.1,0.5 --config photos.yaml",
            "simclr sweep ./labelled lr=0.1..10 views.strength=0.1..1 --samples 20 --parallel 2",
        ),
    ),
    "bench": Command(
        "Papers", "simclr.tasks.bench:Bench", ("data",),
        "measure the throughput of each part of pretraining",
        ("simclr bench ./photos --config photos.yaml",),
    ),
    "demo": Command(
        "Papers", "simclr.tasks.demo:Demo", (),
        "pretrain and evaluate on the bundled images, in minutes on a CPU",
        ("simclr demo",),
    ),
}  # fmt: skip
