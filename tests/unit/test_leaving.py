"""A kernel's end leaves on disk, in order, what the end of an interpreter of its own would have left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lima_kernels

ENDED_BY_ITSELF = ""
LEAVES = "leaving.leave()"
# What was there before the fork, then what a notebook does.
SETTING = """
import atexit, ctypes, logging, os, sys, threading, time
sys.path.insert(0, {package!r})
from forkserver import leaving
leaving.keep_modules()
sys.path.insert(0, os.getcwd())
def say(text):
    with open("said", "a") as file:
        file.write(text + "\\n")
"""
WORKER = """
def work():
    time.sleep(0.3)
    say("thread")
threading.Thread(target=work).start()
atexit.register(lambda: say("registered first"))
atexit.register(lambda: say("registered last"))
"""
OWN_MODULE = """
import os, zipfile
class Ends:
    def __init__(self): self.me = self
    def __del__(self, os=os): os.write(os.open("said", os.O_WRONLY | os.O_CREAT), b"finalized")
text = open("text-of-module", "w"); text.write("of a module")
archive = zipfile.ZipFile("archive.zip", "w"); archive.writestr(zipfile.ZipInfo("a"), "b")
ends = Ends()
"""
BUFFERS = """
open("own.py", "w").write('''{own}''')
import own
here = open("text-here", "w"); here.write("of a cell")
logging.kept = open("text-elsewhere", "wb"); logging.kept.write(b"of a module that was there")
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
libc.fputs.argtypes = (ctypes.c_char_p, ctypes.c_void_p)
libc.fputs(b"of a library", libc.fopen(b"text-of-c", b"w"))
print("no newline", end="")
"""
# Nothing but its type says what it is.
ODD_MODULE = """
from types import ModuleType
class Odd(ModuleType):
    __class__ = __dict__ = property(lambda self: 1 / 0)
sys.modules["odd"] = Odd("odd")
"""


def left_by(place: Path, code: str, end: str) -> tuple[int, dict[str, bytes], str]:
    """Run a program, and return its exit code, the files that it leaves, and its output."""
    place.mkdir()
    package = str(Path(lima_kernels.__file__).parent / "guest")
    program = SETTING.format(package=package) + code + "\n" + end
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=place, capture_output=True, check=False, text=True, timeout=60
    )
    files = {file.name: file.read_bytes() for file in place.iterdir() if file.is_file()}
    return done.returncode, files, done.stdout + done.stderr


def both(tmp_path: Path, code: str) -> tuple[int, dict[str, bytes], str]:
    """Return what a program leaves that ends by our way, which is what it leaves when its interpreter ends."""
    ours = left_by(tmp_path / "ours", code, LEAVES)
    assert ours == left_by(tmp_path / "its", code, ENDED_BY_ITSELF)
    return ours


def test_threads_are_waited_for_and_what_was_registered_is_called(tmp_path: Path) -> None:
    code, files, output = both(tmp_path, WORKER)
    assert (code, output) == (0, "")
    assert files["said"] == b"thread\nregistered last\nregistered first\n"


def test_every_buffer_is_written(tmp_path: Path) -> None:
    code, files, output = both(tmp_path, BUFFERS.format(own=OWN_MODULE))
    assert (code, output) == (0, "no newline")
    assert files["text-here"] == b"of a cell"
    assert files["text-elsewhere"] == b"of a module that was there"
    assert files["text-of-module"] == b"of a module"
    assert files["text-of-c"] == b"of a library"
    assert files["said"] == b"finalized"
    assert b"PK\x05\x06" in files["archive.zip"]


@pytest.mark.parametrize(
    "fault",
    [
        "atexit.register(lambda: 1 / 0)",
        "atexit.register(lambda: sys.exit(3))",
        "class Odd:\n    def __del__(self): raise KeyboardInterrupt\nodd = Odd()",
        "class Proxy:\n    __class__ = property(lambda self: 1 / 0)\nproxy = Proxy()",
        "sys.stdout = None",
        "sys.modules['odd'] = object()",
        ODD_MODULE,
    ],
)
def test_what_fails_at_the_end_keeps_nothing_else_from_it(tmp_path: Path, fault: str) -> None:
    code, files, _ = left_by(tmp_path / "ours", "last = open('text', 'w'); last.write('kept')\n" + fault, LEAVES)
    assert (code, files["text"]) == (0, b"kept")


def test_a_notebooks_thread_is_stopped_by_the_interpreter(tmp_path: Path) -> None:
    """It would see its modules being taken apart otherwise."""
    loop = """
def work():
    while True:
        try:
            time.sleep(0.001); os.getpid()
        except BaseException as error:
            open("hurt", "w").write(repr(error))
threading.Thread(target=work, daemon=True).start()
class Slow:
    def __del__(self, sleep=time.sleep): sleep(0.3)
slow = Slow()
"""
    code, files, output = both(tmp_path, loop)
    assert (code, files, output) == (0, {}, "")


def test_a_thread_of_what_was_there_is_not_in_the_way(tmp_path: Path) -> None:
    """ipykernel's threads wait at every kernel's end."""
    waits = "threading.Thread(target=threading.Event().wait, daemon=True).start()"
    assert left_by(tmp_path / "ours", waits, LEAVES + "\nsay('returned')") == (0, {}, "")


def test_a_library_that_waits_for_a_thread_at_its_own_end_sees_it_end(tmp_path: Path) -> None:
    """One that calls Python would wait for the interpreter's lock, and the process for it."""
    waits = """
libc = ctypes.CDLL(None)
libc.__cxa_atexit(libc.sleep, ctypes.c_void_p(1), None)
timer = threading.Timer(0.3, libc.creat, (b"ended", 0o600))
timer.daemon = True
timer.start()
"""
    code, files, output = left_by(tmp_path / "ours", waits, LEAVES)
    assert (code, sorted(files), output) == (0, ["ended"], "")
