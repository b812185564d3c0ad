"""Damaged and hostile files: 1,000 mutations of every kind of file that a user can name.

Each must give a result or one line that names the file, within 10 s and 2 GB, and must run no code, open no socket and
write nothing outside its folder. Processes are forked from one that has loaded everything; audit hooks watch them.

    python benchmarks/reliability/fuzz.py [--kinds png card] [--count 1000] [--seed 0] [--out FILE]
"""

import argparse
import json
import os
import platform
import re
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import fuzz_kinds  # the kinds of files, beside this program

from simclr.errors import Error
from simclr.runs.environment import code_hash

SECONDS, MEMORY = 10.0, 2 << 30
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pickle.find_class",
             "socket.__new__", "socket.connect", "socket.bind", "socket.getaddrinfo")  # fmt: skip
WRITES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
NUMBERS = (b"0", b"-1", b"1", b"7", b"65536", b"2147483648", b"99999999999", b"9" * 25, b"1e308", b"nan", b"-0.5")


def mutate(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Return the content with one to three changes: flipped bits, truncation, splices, other numbers."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        n = max(len(data), 1)
        at, length = int(rng.integers(n)), int(rng.integers(1, max(2, min(n, 200))))
        match rng.integers(7):
            case 0:
                for place in rng.integers(0, n, rng.integers(1, 9)):
                    if place < len(data):
                        data[place] ^= 1 << int(rng.integers(8))
            case 1:
                del data[at:]
            case 2:
                source = int(rng.integers(max(len(other), 1)))
                data[at : at + length] = other[source : source + length]
            case 3:
                data[at:at] = data[at : at + length] * int(rng.integers(1, 4))
            case 4:
                data[at : at + length] = bytes([int(rng.choice([0, 255, 127, 128]))]) * length
            case _:
                spans = [match.span() for match in re.finditer(rb"\d+(\.\d+)?", bytes(data))]
                if spans:
                    start, end = spans[int(rng.integers(len(spans)))]
                    data[start:end] = NUMBERS[int(rng.integers(len(NUMBERS)))]
    return bytes(data)


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def watch(folder: str, events: list[str]) -> None:
    """Record what a reader of files must not do."""

    def hook(event: str, arguments: tuple) -> None:
        if event in FORBIDDEN:
            events.append(f"{event} {str(arguments)[:80]}")
        elif (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ) or event in WRITES:
            check(arguments[0])

    def check(path: Any) -> None:
        if isinstance(path, str | bytes | os.PathLike) and not os.fsdecode(path).startswith((folder, "/dev/null")):
            events.append(f"wrote {os.fsdecode(path)[:80]}")

    sys.addaudithook(hook)


def attempt(kind: Any, number: int, seed: int, folder: Path, events: list[str]) -> tuple[str, str]:
    """Return the outcome of reading one mutation and, of a fault, a description."""
    rng = np.random.default_rng([seed, zlib.crc32(kind.name.encode()), number])
    name = kind.write(folder, lambda content, other: mutate(content, other, rng), rng)
    events.clear()
    try:
        kind.read(folder / name)
        outcome, text = "read", ""
    except Error as error:
        outcome, text = "refused", str(error)
    except OSError as error:
        outcome, text = ("refused", str(error)) if error.filename else ("fault", repr(error))
    except BaseException as error:
        return "fault", f"{type(error).__name__}: {str(error)[:200]} at {traceback.format_tb(error.__traceback__)[-1]}"
    if events:
        return "fault", "; ".join(sorted(set(events)))
    if outcome == "refused" and not any(part in text for part in kind.names(folder, name)):
        return "fault", f"does not name the file: {text[:200]}"
    if re.search(r"can.t allocate|not enough memory|Cannot allocate", text):
        return "fault", f"memory: {text[:200]}"
    return outcome, text[:200]


def child(kind: Any, numbers: range, seed: int, folder: Path, out: int) -> None:
    """Try mutations and write a line about each; the parent ends this process where one takes too long."""
    limit = address_space() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    events: list[str] = []
    watch(str(folder), events)
    for number in numbers:
        start = time.perf_counter()
        outcome, text = attempt(kind, number, seed, folder, events)
        line = json.dumps([number, outcome, text, round(time.perf_counter() - start, 3)]) + "\n"
        os.write(out, line.encode())
    os._exit(0)


def run(kind: Any, count: int, seed: int, folder: Path) -> list[list]:
    """Return [number, outcome, text, seconds] of each mutation."""
    results: list[list] = []
    while len(results) < count:
        first = len(results)
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                os.close(reader)
                child(kind, range(first, count), seed, folder, writer)
            finally:
                os._exit(1)
        os.close(writer)
        pending, late = b"", False
        while True:
            if not select.select([reader], [], [], SECONDS)[0]:
                late = True
                os.kill(process, signal.SIGKILL)
                break
            content = os.read(reader, 1 << 16)
            if not content:
                break
            *lines, pending = (pending + content).split(b"\n")
            results += [json.loads(line) for line in lines]
        os.close(reader)
        _, status = os.waitpid(process, 0)
        if len(results) < count:
            what = f"more than {SECONDS:.0f} s" if late else f"ended with status {status}"
            results.append([len(results), "fault", what, SECONDS])
    return results


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinds", nargs="*", default=list(fuzz_kinds.KINDS))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/reliability/fuzz.json"))
    options = parser.parse_args()
    tables = json.loads(options.out.read_text())["kinds"] if options.out.is_file() else {}  # of kinds that are not run
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        os.environ["XDG_CACHE_HOME"] = temporary
        for name in options.kinds:
            folder = Path(temporary) / name
            folder.mkdir()
            kind = fuzz_kinds.KINDS[name](name)
            kind.warm(folder)
            start = time.perf_counter()
            results = run(kind, options.count, options.seed, folder)
            outcomes = Counter(outcome for _, outcome, _, _ in results)
            tables[name] = {
                "mutations": len(results), "read": outcomes["read"], "refused": outcomes["refused"],
                "faults": outcomes["fault"], "longest_s": max(seconds for *_, seconds in results),
                "seconds": round(time.perf_counter() - start, 1), "code": code_hash(),
            }  # fmt: skip
            print(name, tables[name], flush=True)
            faults = Counter(re.sub(r"0x\w+|\d+", "N", text) for _, outcome, text, _ in results if outcome == "fault")
            for text, times in faults.most_common(12):
                first = next(n for n, o, t, _ in results if o == "fault" and re.sub(r"0x\w+|\d+", "N", t) == text)
                print(f"    {times} x, first {first}: {text}", flush=True)
    content = {
        "command": "make fuzz", "seed": options.seed, "limits": {"seconds": SECONDS, "bytes": MEMORY},
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version(),
        "kinds": tables,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=2) + "\n")
    sys.exit(any(tables[name]["faults"] for name in options.kinds))


if __name__ == "__main__":
    main()
