"""The table of commands. Nothing heavy is imported before a command is chosen."""

import difflib
import importlib
import os
import sys
from pathlib import Path

COMMANDS = {  # name: (task, words that need no flag, what it does)
    "pretrain": ("simclr.tasks.pretrain:Pretrain", ("data",), "learn an encoder from images without labels"),
    "knn": ("simclr.tasks.knn:Knn", ("run", "data"), "measure an encoder by its nearest neighbours"),
    "linear": ("simclr.tasks.linear:Linear", ("run", "data"), "measure an encoder by a linear classifier on it"),
    "finetune": ("simclr.tasks.finetune:FineTune", ("run", "data"), "train encoder and classifier with labels"),
    "distill": ("simclr.tasks.distill:Distill", ("teacher", "data"), "teach a network what a fine-tuned one knows"),
    "health": ("simclr.tasks.health:Health", ("run", "data"), "measure an encoder without labels"),
    "study": ("simclr.tasks.study:Study", ("name", "data"), "run an ablation of the papers, or list them"),
    "information": ("simclr.tasks.information:Information", ("run", "data"), "measure what layers tell of the views"),
    "robustness": ("simclr.tasks.robustness:Robustness", ("run", "data"), "measure corrupted images and calibration"),
    "transfer": ("simclr.tasks.transfer:Transfer", ("run", "data..."), "measure an encoder on many data sets"),
    "report": ("simclr.tasks.report:Report", ("runs...",), "write what came of runs as one page that opens anywhere"),
    "embed": ("simclr.tasks.embed:Embed", ("run", "data"), "write the embeddings of all images of a data set"),
    "neighbours": ("simclr.tasks.neighbours:Neighbours", ("run", "images..."), "find the images most like given ones"),
    "demo": ("simclr.tasks.demo:Demo", (), "pretrain and measure on the bundled images, in minutes on a CPU"),
    "recipes": ("simclr.tasks.recipes:Recipes", ("name",), "list the recipes that come with it, or show one"),
    "reproduce": (
        "simclr.tasks.reproduce:Reproduce",
        ("recipe",),
        "train by a recipe, and compare with what it expects",
    ),
    "views": ("simclr.tasks.views:ShowViews", ("data",), "draw a contact sheet of augmented views"),
    "scan": ("simclr.tasks.scan:Scan", ("data",), "report what a data set holds, with its unreadable files"),
    "suggest": ("simclr.tasks.suggest:Suggest", ("data",), "suggest the settings of a first run, each with its reason"),
    "doctor": ("simclr.tasks.doctor:Doctor", ("data",), "check settings and data in a minute, before a long run"),
    "pack": ("simclr.tasks.pack:Pack", ("data",), "write a data set as a few tar files, large images reduced"),
    "bench": ("simclr.tasks.bench:Bench", ("data",), "measure the parts of a pretraining run, and say what to change"),
    "export": ("simclr.tasks.export:Export", ("run",), "write an encoder as a program or as weights for elsewhere"),
    "convert": ("simclr.tasks.convert:Convert", ("checkpoint",), "read an official TensorFlow checkpoint"),
}
OK, FAILED, WRONG_USAGE, STOPPED = 0, 1, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns 0 when it went well, 1 when it failed, 2 for wrong usage, 130 for Ctrl-C."""
    # Threads that wait by spinning take a shared core from the ones they wait for: measured, 6 times slower and more
    # on a machine with other work, no slower on a free one. OpenMP reads this when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return OK
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(version("simclr-toolkit"))
        return OK
    if words[0] not in COMMANDS:
        close = difflib.get_close_matches(words[0], COMMANDS, n=1)
        meant = f"did you mean {close[0]}?" if close else "simclr --help lists them"
        return _complain(f"there is no command {words[0]}; {meant}", WRONG_USAGE)
    try:
        return _guarded(words[0], words[1:], debug)
    except KeyboardInterrupt:  # also while torch is loaded, which takes seconds
        if debug:
            raise
        return _complain("stopped", STOPPED)


def _guarded(command: str, words: list[str], debug: bool) -> int:
    """Run a command; what a user can cause becomes one line on stderr, with `debug` the whole traceback."""
    from simclr.fit import Interrupted
    from simclr.parsing import UsageError, parse

    target, positional, _ = COMMANDS[command]
    module, name = target.split(":")
    try:
        found = parse(getattr(importlib.import_module(module), name), command, positional, words)()
        if isinstance(found, dict) and found.get("passed") is False and not _rank():  # the first process speaks for all
            return FAILED
    except SystemExit as leave:  # after --help and --print_config
        return OK if leave.code in (0, None) else FAILED
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UsageError, ValueError) as error:
        if debug:
            raise
        return _complain(error, WRONG_USAGE, met_by_all=True)
    except Exception as error:
        if debug:
            raise
        met_by_all = isinstance(error, (Interrupted, FloatingPointError))
        return _complain(error, FAILED, met_by_all)
    return OK


def overview() -> str:
    """The text of `simclr --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, _, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: simclr COMMAND [DATA] [--SETTING VALUE ...] [--config RECIPE] [--debug]",
            "",
            "SimCLR: an encoder learned from images without labels, measured and put to use.",
            "",
            *lines,
            "",
            "simclr COMMAND --help lists the settings of a command with units and defaults.",
            "Data: a folder, list.txt, table.csv, arrays.npz, tar files, cifar10:DIR, torchvision:NAME:DIR or sample.",
        ]
    )


def recipe_path(name: str) -> str:
    """A file as it is; the name of a bundled recipe as its file; ValueError for anything else."""
    if Path(name).exists() and not Path(name).is_dir():
        return name
    bundled = {path.stem: str(path) for path in sorted(recipe_folder().glob("*.yaml"))}
    if name.removesuffix(".yaml") in bundled:
        return bundled[name.removesuffix(".yaml")]
    close = difflib.get_close_matches(name, bundled, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    raise ValueError(f"config: there is no file or recipe {name!r}; {meant}recipes are {', '.join(bundled)}")


def recipe_folder() -> Path:
    """Recipes lie beside the package once installed, and at the root of a checkout."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


def _complain(error: BaseException | str, code: int, met_by_all: bool = False) -> int:
    """One line on stderr; of an error that all processes of a run meet, the first one speaks."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror.lower()}"
    rank = _rank()
    if not (met_by_all and rank):
        where = f"process {rank}: " if rank else ""
        print(f"simclr: {where}{' '.join(text.split()) or type(error).__name__}", file=sys.stderr)
    return code


def _rank() -> int:
    """The number of this process among those of its run."""
    torch = sys.modules.get("torch")
    if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("LOCAL_RANK", 0))
