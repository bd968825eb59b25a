"""The program that measures one directory; it runs in the guest, on any Python that is there, and needs nothing else.

It says each figure as it has it, a JSON object a line: ``{"figure": name, "value": number}``, or ``"failed": reason``
instead of the value; at last ``{"done": true}``. Figures in MiB/s or in seconds, as :mod:`plan` says.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

MIB = 1024 * 1024
# How many small files are in a directory, and how many contents they have: git keeps each once.
IN_DIRECTORY = 100
CONTENTS = 100
# The row groups of a Parquet file, as a reader of some columns asks for them.
RANDOM_READS = 200
RANDOM_SIZES = (64 * 1024, 128 * 1024, 256 * 1024)
# A package with as many modules as a large data-science library imports at once.
SUBPACKAGES, MODULES = 10, 10
# So often is the same done again, unless it has taken so many seconds already.
REPEATS, ENOUGH = 3, 5.0
# Seconds after which what a mount keeps for a second has gone: a person looks again later than that.
LATER = 2.0
# Seconds between two looks: of what a host does there is no event in a guest.
LOOK = 0.02
_EMPTY = "sync; echo 3 > /proc/sys/vm/drop_caches"


def say(**message: object) -> None:
    print(json.dumps(message), flush=True)


def empty_caches() -> bool:
    """Make the guest forget what it has read, as far as we may; the host's own cache stays."""
    os.sync()
    command = ["sh", "-c", _EMPTY] if os.geteuid() == 0 else ["sudo", "-n", "sh", "-c", _EMPTY]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def seconds(work: Callable[[], object]) -> float:
    """Return how long the work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def best(work: Callable[[], object]) -> float:
    """Return how long the work takes with empty caches, at best: others use the machine too. Slow work is done once."""
    taken: list[float] = []
    while len(taken) < REPEATS and sum(taken) < ENOUGH:
        empty_caches()
        taken.append(seconds(work))
    return min(taken)


class LargeFile:
    """A large file, written and read from its beginning to its end, and here and there."""

    def __init__(self, root: Path, mebibytes: int) -> None:
        self.path = root / "large"
        self.mebibytes = mebibytes
        self._block = os.urandom(MIB)

    def write(self) -> None:
        with self.path.open("wb", buffering=0) as file:
            for _ in range(self.mebibytes):
                file.write(self._block)
            os.fsync(file.fileno())

    def read(self) -> None:
        into = bytearray(MIB)
        with self.path.open("rb", buffering=0) as file:
            while file.readinto(into):
                pass

    def measure(self) -> None:
        say(figure="large_write", value=self.mebibytes / best(self.write))
        say(figure="large_read", value=self.mebibytes / best(self.read))

    def measure_random_reads(self) -> None:
        choose = random.Random(0)  # noqa: S311
        sizes = [choose.choice(RANDOM_SIZES) for _ in range(RANDOM_READS)]
        places = [choose.randrange(self.mebibytes * MIB - size + 1) for size in sizes]

        def read() -> None:
            with self.path.open("rb", buffering=0) as file:
                for place, size in zip(places, sizes, strict=True):
                    file.seek(place)
                    file.read(size)

        say(figure="random_read", value=sum(sizes) / MIB / best(read))
        self.path.unlink()


class SmallFiles:
    """Many small files in directories, and a repository that has them committed."""

    def __init__(self, root: Path, count: int) -> None:
        self.root = root / "repository"
        self._names = [f"d{number // IN_DIRECTORY:03d}/f{number:05d}.py" for number in range(count)]
        self._contents = {name: b"value = %d\n" % (number % CONTENTS) * 20 for number, name in enumerate(self._names)}

    def create(self) -> None:
        for directory in sorted({name.partition("/")[0] for name in self._names}):
            (self.root / directory).mkdir(parents=True)
        for name, content in self._contents.items():
            with (self.root / name).open("wb") as file:
                file.write(content)

    def look(self) -> None:
        found = 0
        for directory in os.scandir(self.root):
            for entry in os.scandir(directory.path):
                os.lstat(entry.path)
                found += 1
        if found != len(self._names):
            raise ValueError(f"{found} of {len(self._names)} files were there")

    def status(self) -> None:
        if said := self._git("status", "--porcelain"):
            raise ValueError(f"git sees a change where none is: {said.splitlines()[0]}")

    def measure(self) -> None:
        say(figure="create", value=seconds(self.create))
        say(figure="stat", value=best(self.look))

    def measure_git(self) -> None:
        self.commit()
        empty_caches()
        say(figure="git_status_first", value=seconds(self.status))
        say(figure="git_status", value=min(self._later(), self._later()))

    def _later(self) -> float:
        time.sleep(LATER)
        return seconds(self.status)

    def _git(self, *arguments: str) -> str:
        plain = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        argv = ["git", "-C", str(self.root), *arguments]
        return subprocess.run(argv, env=plain, capture_output=True, text=True, check=True).stdout

    def commit(self) -> None:
        """Commit all files. `git add` would read each of them, which takes minutes where a look takes seconds."""
        self._git("init", "--quiet")
        blobs = {content: self._keep(b"blob", content) for content in set(self._contents.values())}
        trees: dict[str, list[bytes]] = {}
        entries = []
        for name, content in self._contents.items():
            blob = blobs[content]
            directory, _, base = name.partition("/")
            trees.setdefault(directory, []).append(b"100644 %s\0%s" % (base.encode(), blob))
            entries.append(_index_entry(name.encode(), os.lstat(self.root / name), blob))
        children = [
            b"40000 %s\0%s" % (directory.encode(), self._keep(b"tree", b"".join(files)))
            for directory, files in trees.items()
        ]
        tree = self._keep(b"tree", b"".join(children)).hex().encode()
        who = b"benchmark <benchmark@localhost> 0 +0000"
        commit = self._keep(b"commit", b"tree %s\nauthor %s\ncommitter %s\n\nall\n" % (tree, who, who))
        self._git("update-ref", "HEAD", commit.hex())
        index = self.root / ".git" / "index"
        listed = struct.pack(">4sII", b"DIRC", 2, len(entries)) + b"".join(entries)
        index.write_bytes(listed + hashlib.sha1(listed).digest())  # noqa: S324
        # Files as young as the index could have changed since, so git would read them all.
        later = time.time() + 3600
        os.utime(index, (later, later))

    def _keep(self, kind: bytes, data: bytes) -> bytes:
        """Write an object of git's, and return its name."""
        framed = b"%s %d\0%s" % (kind, len(data), data)
        name = hashlib.sha1(framed).digest()  # noqa: S324
        directory = self.root / ".git" / "objects" / name.hex()[:2]
        directory.mkdir(exist_ok=True)
        (directory / name.hex()[2:]).write_bytes(zlib.compress(framed))
        return name


def _index_entry(name: bytes, seen: os.stat_result, blob: bytes) -> bytes:
    """Return a file's entry in version 2 of git's index (gitformat-index): what lstat says, its blob, its name."""
    times = (*divmod(seen.st_ctime_ns, 10**9), *divmod(seen.st_mtime_ns, 10**9))
    numbers = (*times, seen.st_dev, seen.st_ino, 0o100644, seen.st_uid, seen.st_gid, seen.st_size)
    entry = struct.pack(">10I", *(number & 0xFFFFFFFF for number in numbers)) + blob
    entry += struct.pack(">H", len(name)) + name
    return entry + b"\0" * (8 - len(entry) % 8)


class Packages:
    """A tree of Python packages that is imported at once."""

    def __init__(self, root: Path) -> None:
        self._root = root / "packages"

    def write(self) -> None:
        tree = self._root / "tree"
        for package in range(SUBPACKAGES):
            directory = tree / f"p{package}"
            directory.mkdir(parents=True)
            for module in range(MODULES):
                (directory / f"m{module}.py").write_text(f"def double(x):\n    return 2 * x + {module}\n" * 10)
            modules = "".join(f"from . import m{module}\n" for module in range(MODULES))
            (directory / "__init__.py").write_text(modules)
        (tree / "__init__.py").write_text("".join(f"from . import p{package}\n" for package in range(SUBPACKAGES)))

    def load(self) -> float:
        """Return the seconds of the import alone, without Python's own start."""
        program = "import time; began = time.perf_counter(); import tree; print(time.perf_counter() - began)"
        argv = [sys.executable, "-c", program]
        done = subprocess.run(argv, cwd=self._root, capture_output=True, text=True, check=True)
        return float(done.stdout)

    def measure(self) -> None:
        self.write()
        # The first import compiles and writes what the second one reads.
        self.load()
        empty_caches()
        say(figure="import", value=self.load())


def _reason(error: Exception) -> str:
    said = getattr(error, "stderr", None)
    lines = said.strip().splitlines() if isinstance(said, str) else []
    return lines[-1] if lines else str(error)


def measure(root: Path, files: int, mebibytes: int) -> None:
    """Measure a directory; a part that fails does not keep the others from being measured."""
    say(caches_emptied=empty_caches())
    large, small = LargeFile(root, mebibytes), SmallFiles(root, files)
    parts: dict[str, Callable[[], None]] = {
        "large_write": large.measure,
        "random_read": large.measure_random_reads,
        "create": small.measure,
        "git_status": small.measure_git,
        "import": Packages(root).measure,
    }
    for figure, part in parts.items():
        try:
            part()
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            say(figure=figure, failed=_reason(error))


def watch(file: Path, limit: float) -> None:
    """Say after how many seconds a file's change by the host is seen; our caller changes it when we have looked."""
    before = file.read_text()
    list(file.parent.iterdir())
    say(watching=True)
    began = time.perf_counter()
    while file.read_text() == before:
        if time.perf_counter() - began > limit:
            say(figure="edit_seen", failed=f"not within {limit:.0f} s")
            return
        time.sleep(LOOK)
    say(figure="edit_seen", value=time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    measuring = verbs.add_parser("measure")
    measuring.add_argument("directory", type=Path)
    measuring.add_argument("files", type=int)
    measuring.add_argument("mebibytes", type=int)
    watching = verbs.add_parser("watch")
    watching.add_argument("file", type=Path)
    watching.add_argument("limit", type=float)
    options = parser.parse_args()
    if options.verb == "watch":
        watch(options.file, options.limit)
    else:
        measure(options.directory, options.files, options.mebibytes)
    say(done=True)


if __name__ == "__main__":
    main()
