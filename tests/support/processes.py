"""The program, and functions of a process group, in processes forked from one that has loaded the package.

Loading takes seconds, which every new process would spend again. The multiprocessing fork server loads once; it is a
process of its own, so nothing that a test has done, such as starting threads, is copied.
"""

import functools
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import TimeoutExpired

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["support.loaded"])


class Program:
    """`simclr WORDS` in a process of its own. `before` is a function of a module that the process calls first."""

    def __init__(self, words: Sequence, before: Callable | None = None, session: bool = False, **environment: str):
        self._folder = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, self._folder)
        paths = [str(self._folder / name) for name in ("stdout", "stderr")]
        arguments = [str(word) for word in words], before, session, environment, paths
        self._process = FORKS.Process(target=_program, args=arguments)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> int:
        """Return the exit status; end the process and raise TimeoutExpired after `timeout` seconds."""
        self._process.join(timeout)
        if self.poll() is None:
            self._process.kill()
            raise TimeoutExpired("simclr", timeout, self.stdout, self.stderr)
        return self.poll()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def stdout(self) -> str:
        return (self._folder / "stdout").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return (self._folder / "stderr").read_text(errors="replace")


def run_program(words: Sequence, processes: int = 1, before: Callable | None = None) -> list[Program]:
    """Run `simclr WORDS`, in several processes as torchrun starts them, and wait for all of them."""
    port = str(_free_port())
    group = [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
         "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for rank in range(processes)
    ]  # fmt: skip
    programs = [Program(words, before, **(environment if processes > 1 else {})) for environment in group]
    for program in programs:
        program.wait()
    return programs


def succeed(words: Sequence, processes: int = 1, before: Callable | None = None) -> str:
    """Run `simclr WORDS`, which must succeed, and return the output of the first process."""
    programs = run_program(words, processes, before)
    assert [program.poll() for program in programs] == [0] * processes, programs[0].stderr
    return programs[0].stdout


def wait_for(condition: Callable[[], bool], program: Program, seconds: float = 300) -> None:
    """Wait until the condition holds, while the program runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert program.poll() is None, program.stderr
        assert time.monotonic() < end
        time.sleep(0.05)


def _program(
    words: list[str], before: Callable | None, session: bool, environment: dict[str, str], paths: list[str]
) -> None:
    if session:
        os.setsid()
    os.environ.update(environment)
    for stream, path in zip((1, 2), paths, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
    sys.argv = ["simclr", *words]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if before:
        before()
    from simclr.cli import main

    sys.exit(main(words))


def _entry(rank: int, world: int, port: int, folder: str, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        torch.save(function(rank, world, *arguments), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def in_processes(function: Callable, *arguments, world: int = 2) -> list:
    """Return [function(rank, world, *arguments) for every rank], each computed in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        entry = (world, _free_port(), folder, function, arguments)
        mp.start_processes(_entry, entry, nprocs=world, start_method="forkserver")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def compile_cheaply() -> None:
    """Let networks be compiled by a compiler that compiles nothing."""
    torch.nn.Module.compile = functools.partialmethod(torch.nn.Module.compile, backend="eager")
