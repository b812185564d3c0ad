"""Command line entry point."""

import difflib
import importlib
import os
import sys

from simclr.cli.commands import COMMANDS

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
    from simclr.cli.parsing import parse
    from simclr.errors import Interrupted, UsageError

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
