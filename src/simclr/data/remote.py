"""Files by URL, through fsspec, and their copies on this machine.

Copies lie in `SIMCLR_CACHE`, by default the user's cache directory, and have at most `SIMCLR_CACHE_GB` together, by
default 100: those that were not used for the longest time are deleted first. They are named by their SHA-256, which is
checked before a copy gets its name, and all processes of a machine share them.
"""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from simclr.errors import DataError, SettingError
from simclr.runs.files import sync_folder
from simclr.runs.reading import file_hash

T = TypeVar("T")
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt
STALLED = 60.0  # seconds without a byte from an HTTP server, after which an attempt has failed
ABANDONED = 3600.0  # seconds without change, after which an incomplete copy is that of a process that was killed
_INSTALL = "pip install 'simclr-toolkit[remote]', and the package of the protocol, such as s3fs or gcsfs"


def is_url(text: str | os.PathLike) -> bool:
    """Return whether a text is a URL, such as s3://bucket/folder."""
    return "://" in os.fspath(text)


def join_url(base: str, name: str) -> str:
    """Return the path or URL of a file, which may be relative to `base`, a folder or the URL of one."""
    if is_url(name) or os.path.isabs(name):
        return name
    return f"{base.rstrip('/')}/{name}" if is_url(base) else os.path.join(base, name)


def filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL and the path in it; it is not kept, since forked processes need others."""
    options = {}
    try:
        import fsspec  # the extra `remote`

        if url.startswith(("http://", "https://")):
            from aiohttp import ClientTimeout  # the default of five minutes for a whole file is too short

            timeout = ClientTimeout(total=None, sock_connect=STALLED, sock_read=STALLED)
            options = {"client_kwargs": {"timeout": timeout}}
        return fsspec.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise DataError(url, f"it cannot be opened ({' '.join(str(error).split())})", _INSTALL) from None


def patiently(url: str, action: Callable[[], T]) -> T:
    """Return `action()`, which is repeated after errors that may pass; raise DataError once it has failed too often."""
    for wait in (*WAITS, None):
        try:
            return action()
        except FileNotFoundError:
            raise DataError(url, "it does not exist") from None
        except (PermissionError, NotImplementedError) as error:  # the second: writing to a store that is only read
            raise DataError(url, f"it is refused ({' '.join(str(error).split()) or type(error).__name__})") from None
        except DataError:
            raise
        except Exception as error:  # each object store has exceptions of its own
            if wait is None:
                text = " ".join(f"{type(error).__name__} {error}".split())
                raise DataError(url, f"it failed {len(WAITS) + 1} times ({text})", "Check the storage") from error
            time.sleep(wait)
    raise AssertionError


def download(url: str, file: Path, most: int) -> None:
    """Copy the file at a URL to a path; raise DataError if it has more than `most` bytes, which are not copied."""
    fs, path = filesystem(url)
    from fsspec.callbacks import Callback

    class Bound(Callback):
        def call(self, *names: str, **values: Any) -> None:  # after the size, if the server states it, and each piece
            if max(self.size or 0, self.value) > most:
                raise DataError(url, f"it has more than {most:,} bytes, which is all that it may have")

    fs.get_file(path, str(file), callback=Bound())


def exists(url: str) -> bool:
    """Return whether there is a file at a URL."""
    fs, path = filesystem(url)
    return patiently(url, lambda: fs.isfile(path))


def upload(file: Path, url: str) -> None:
    """Copy a file to a URL."""
    fs, path = filesystem(url)
    fs.makedirs(fs._parent(path), exist_ok=True)
    patiently(url, lambda: fs.put_file(str(file), path))


def remove(url: str) -> None:
    """Delete the file at a URL if there is one."""
    fs, path = filesystem(url)
    if exists(url):
        patiently(url, lambda: fs.rm_file(path))


def list_files(url: str, pattern: str) -> list[str]:
    """Return the URLs of the files below a URL whose name matches a pattern such as *.tar, in order."""
    fs, path = filesystem(url)
    names = patiently(url, lambda: fs.glob(f"{path.rstrip('/')}/{pattern}"))
    return [join_url(url, name.rpartition("/")[2]) for name in sorted(names)]


class RemoteFile(NamedTuple):
    """A file by URL, whose size and hash are known."""

    url: str
    bytes: int
    sha256: str

    def local(self) -> Path:
        """Return the path of the copy on this machine, which is made if there is none."""
        return Cache.here().get(self)


class Cache(NamedTuple):
    """Copies of remote files in a folder."""

    folder: Path
    most: float
    """maximum size of all of them, bytes"""

    @classmethod
    def here(cls) -> "Cache":
        """Return the cache of this machine."""
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        text = os.environ.get("SIMCLR_CACHE_GB") or "100"
        try:
            most = float(text) * 1e9
        except ValueError:
            most = 0
        if not most > 0:
            raise SettingError("SIMCLR_CACHE_GB", "a number above 0", text)
        return cls(Path(os.environ.get("SIMCLR_CACHE") or base / "simclr" / "shards"), most)

    def get(self, file: RemoteFile) -> Path:
        """Return the path of the copy of a file, which is made if there is none."""
        path = self.folder / file.sha256
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)  # used now
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):  # of several processes one makes it
            if not path.exists():
                self._copy_in(file, path)
        return path

    def _copy_in(self, file: RemoteFile, path: Path) -> None:
        own = f".{os.getpid()}-{threading.get_native_id()}"
        partial, reserved = path.with_suffix(own + ".partial"), path.with_suffix(own + ".reserved")
        try:
            self._reserve(file, reserved)
            patiently(file.url, lambda: self._copy(file, partial))
            os.replace(partial, path)
            sync_folder(self.folder)
        finally:
            partial.unlink(missing_ok=True)
            reserved.unlink(missing_ok=True)

    def _copy(self, file: RemoteFile, partial: Path) -> None:
        download(file.url, partial, file.bytes)
        if (size := partial.stat().st_size) != file.bytes:
            raise OSError(f"it has {size:,} bytes, its index says {file.bytes:,}")
        if file_hash(partial) != file.sha256:
            raise OSError("its SHA-256 is not the one in its index")

    def _reserve(self, file: RemoteFile, reserved: Path) -> None:
        """Delete copies until there is space for another file, which a sparse file then stands for."""
        if file.bytes > self.most:
            raise DataError(file.url, f"it has {file.bytes:,} bytes, more than the cache", "Raise SIMCLR_CACHE_GB")
        with locked(self.folder / "all.lock"):
            copies, now = [], time.time()
            for path in self.folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    if path.is_dir():
                        continue
                    if path.suffix in (".partial", ".reserved") and now - status.st_mtime > ABANDONED:
                        path.unlink()
                    elif path.suffix in ("", ".reserved"):
                        copies.append((path.suffix, status.st_mtime, status.st_size, path))
            total = sum(size for _, _, size, _ in copies)
            for suffix, _, size, path in sorted(copies):
                if suffix or total + file.bytes <= self.most:
                    break
                path.unlink(missing_ok=True)
                path.with_suffix(".lock").unlink(missing_ok=True)
                total -= size
            with open(reserved, "wb") as stream:
                stream.truncate(file.bytes)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock among the threads and processes of this machine; on file systems without locks, none."""
    with open(path, "ab") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
