"""Command line: one command, one task; the errors of a user as one line, bugs with their traceback in a file."""

import contextlib
import difflib
import gc
import importlib
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from simclr.cli.commands import COMMANDS, GROUPS

OK, FAILED, WRONG_USAGE, BUG, INTERRUPTED, STOPPED = 0, 1, 2, 70, 75, 130


def program() -> int:
    """Run the command of this process, see `main`. What is left is not searched for garbage, which takes a second."""
    try:
        return main()
    finally:
        gc.freeze()


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 success, 1 failure, 2 wrong usage, 70 bug of simclr, 130 Ctrl-C, and
    75 if a signal, Ctrl-C among them, stopped a training that has saved a checkpoint.
    """
    code = OK
    try:
        code = _main(list(sys.argv[1:] if arguments is None else arguments))
        if sys.stdout:
            sys.stdout.flush()  # at the end of the process an error would be a traceback
    except BrokenPipeError:  # the reader of our output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _main(words: list[str]) -> int:
    """Run the command that the words name, or print the help that they ask for, and return the exit code."""
    # Threads that wait by spinning take a shared core from the threads they wait for: measured, 6 times slower and more
    # on a machine with other work, no slower on a free one. OpenMP reads this when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        named = _joined(words[1:])[:1]
        return _print(help_of(named[0]) if named and named[0] in COMMANDS else overview())
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        return _print(version("simclr-toolkit"))
    words = _joined(words)
    if words[0] not in COMMANDS:
        if several := [name for name in COMMANDS if name.startswith(f"{words[0]} ")]:
            helps = {"-h", "--help"} & set(words)
            return _print(overview()) if helps else _report(f"name one of {', '.join(several)}", WRONG_USAGE)
        close = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else "`simclr --help` lists the commands"
        return _report(f"there is no command {words[0]}; {hint}", WRONG_USAGE)
    if {"-h", "--help"} & set(words):
        return _print(help_of(words[0]))
    if conflict := conflicting_distribution():
        return _report(conflict, FAILED)
    try:
        with contextlib.redirect_stdout(PlainText(sys.stdout)) if sys.stdout else contextlib.nullcontext():
            return _run(words[0], words[1:], debug)
    except KeyboardInterrupt:  # also while torch is loaded, which takes seconds
        if debug:
            raise
        return _report("stopped", STOPPED)


def _joined(words: list[str]) -> list[str]:
    """Return the words with those of a command of two words, such as `explore map`, as one."""
    return [" ".join(words[:2]), *words[2:]] if " ".join(words[:2]) in COMMANDS else words


def _run(command: str, words: list[str], debug: bool) -> int:
    """Run a command and return its exit code."""
    from simclr.errors import DivergedError, Error, Interrupted, TooManyBadImages

    module, name = COMMANDS[command].task.split(":")
    try:
        gc.disable()  # importing makes 400,000 objects that stay: searching them for garbage takes 2 s
        try:
            from simclr.cli.parsing import parse
            from simclr.runs.results import require_run

            kind = getattr(importlib.import_module(module), name)
        finally:
            gc.enable()
        task = parse(kind, command, COMMANDS[command].positional, words)
        if "run" in COMMANDS[command].positional and not command.startswith("explore "):  # which takes embeddings too
            require_run(task.run)  # before DATA and files in RUN, whose errors would hide that the two are exchanged
        result = task()
        if isinstance(result, dict) and result.get("passed") is False and not _rank():  # one process reports it
            return FAILED
    except SystemExit as leave:  # after --print_config
        return OK if leave.code in (0, None) else FAILED
    except Exception as error:
        if debug or isinstance(error, BrokenPipeError):
            raise
        if isinstance(error, Error):
            return _report(error, WRONG_USAGE, on_all_ranks=True)
        if isinstance(error, Interrupted):
            return _report(error, INTERRUPTED, on_all_ranks=True)
        if isinstance(error, (TooManyBadImages, DivergedError)):
            return _report(error, FAILED, on_all_ranks=not isinstance(error, TooManyBadImages))
        if isinstance(error, (OSError, MemoryError)) or type(error).__name__ == "OutOfMemoryError":
            return _report(error, FAILED)
        return _report_bug(error)
    return OK


class PlainText:
    """Stream without control characters: a file can have any name, and a terminal obeys what is printed."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        from simclr.runs.files import printable

        return self._stream.write("\n".join(printable(line) for line in text.split("\n")))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def overview() -> str:
    """Return the text of `simclr --help`."""
    width = max(map(len, COMMANDS))
    lines = [
        "usage: simclr COMMAND [DATA] [--SETTING VALUE ...] [--config RECIPE] [--debug]",
        "",
        "SimCLR and SimCLRv2: train an encoder on images without labels, evaluate it and use it.",
    ]
    for group in GROUPS:
        rows = [f"  {name:<{width}}  {c.summary}" for name, c in COMMANDS.items() if c.group == group]
        lines += ["", f"{group}:", *rows]
    return "\n".join(
        [
            *lines,
            "",
            "`simclr COMMAND --help` describes the settings of a command.",
            "DATA: a folder, list.txt, table.csv, arrays.npz, tar files, cifar10:DIR, torchvision:NAME:DIR or sample.",
        ]
    )


def help_of(command: str) -> str:
    """Return the text of `simclr COMMAND --help`, without importing the command; see `helptext`."""
    return (Path(__file__).parent / "help" / f"{command}.txt").read_text(encoding="utf-8").rstrip("\n")


def conflicting_distribution() -> str | None:
    """Return what to do where another distribution has written its files over this package: an unrelated one on PyPI is
    called simclr and installs a package of that name."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        other = version("simclr")
    except PackageNotFoundError:
        return None
    return (
        f"the unrelated distribution simclr {other} is installed and overwrites files of this package. "
        "Run: pip uninstall simclr; pip install --force-reinstall --no-deps simclr-toolkit"
    )


def _print(text: str) -> int:
    print(text)
    return OK


def _report(error: BaseException | str, code: int, on_all_ranks: bool = False) -> int:
    """Print one line on stderr; an error that all processes of a run meet is printed by the first one."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror.lower()}"
    rank = _rank()
    if not (on_all_ranks and rank):
        process = f"process {rank}: " if rank else ""
        from simclr.runs.files import printable  # which imports much that --help does not need

        line = printable(f"simclr: {process}{' '.join(text.split()) or type(error).__name__}")
        print(line, file=sys.stderr)
    return code


def _report_bug(error: Exception) -> int:
    """Keep the traceback in a file and print one line that says where."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="simclr-bug-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        file.write(f"command: {' '.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}")
    line = f"bug in simclr, please report it: {type(error).__name__}: {error}. Traceback: {file.name}"
    return _report(line, BUG)


def _rank() -> int:
    """Return the number of this process among those of its run."""
    torch = sys.modules.get("torch")
    if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("LOCAL_RANK") or 0)
