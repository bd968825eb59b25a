"""`%lima` as a guest's kernel has it: cells run beside it, and its host is asked over a socket."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from lima_kernels.control import Control
from lima_kernels.guest import calls
from lima_kernels.lima.limactl import Limactl
from lima_kernels.magics import protocol
from lima_kernels.magics.backend import Call, LimaError, Script
from lima_kernels.magics.guest import GuestBackend
from lima_kernels.magics.protocol import Address
from lima_kernels.magics.results import Note, Table
from lima_kernels.magics.showing import Kept
from lima_kernels.settings import Policy
from lima_kernels.vm import VM

from .conftest import Machine
from .test_magics import NASTY

OWN = "lima-kernels"
KEY = b"the kernel's key"
MAIN = threading.main_thread().ident or 0


class Watcher:
    def __init__(self) -> None:
        self.steps: list[str] = []

    def step(self, text: str) -> None:
        self.steps.append(text)

    def tick(self) -> None:
        self.steps.append("tick")


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GuestBackend:
    monkeypatch.chdir(tmp_path)
    return GuestBackend(Address("", "", OWN))


def script(text: str, **more: Any) -> Script:
    here = str(Path.cwd())
    said = {"instance": OWN, "shell": ["bash"], "user": "", "cwd": "", "here": here, "env": {}, "timeout": None}
    return Script(text=text, **{**said, **more})


def run(backend: GuestBackend, text: str, **more: Any) -> Any:
    kept = Kept()
    return kept.captured(backend.execute(script(text, **more), kept).code)


def test_output_comes_apart_with_the_exit_code(backend: GuestBackend) -> None:
    assert run(backend, "echo out; echo err >&2; exit 3") == ("out\n", "err\n", 3)
    assert run(backend, "kill -9 $$").code == -9


@pytest.mark.parametrize("word", NASTY)
def test_a_script_runs_as_typed(backend: GuestBackend, word: str) -> None:
    text = f"cat <<'END'\n{word}\nEND\n"
    assert run(backend, text).stdout == f"{word}\n"
    assert run(backend, 'printf %s "$WORD"', env={"WORD": word}).stdout == word


def test_standard_input_is_closed(backend: GuestBackend) -> None:
    assert run(backend, "cat; echo done").stdout == "done\n"


def test_another_program_runs_it(backend: GuestBackend) -> None:
    assert run(backend, "import os; print(os.getcwd())", shell=["python3", "-I"]).stdout == f"{Path.cwd()}\n"


def test_where_it_runs(backend: GuestBackend, tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    assert run(backend, "pwd", cwd=str(tmp_path / "a b")).stdout == f"{tmp_path}/a b\n"
    with pytest.raises(LimaError, match="No such file or directory"):
        run(backend, "pwd", cwd="/no/such")


def test_what_it_needs_is_missing(backend: GuestBackend) -> None:
    with pytest.raises(LimaError, match="There is no 'nosuchshell' in this VM"):
        run(backend, "x", shell=["nosuchshell"])
    with pytest.raises(LimaError, match="runs in its own VM 'lima-kernels', not in 'theirs'"):
        run(backend, "x", instance="theirs")


def test_much_output_is_taken_in_pieces(backend: GuestBackend) -> None:
    sizes = []

    class Counting:
        def stdout(self, data: bytes) -> None:
            sizes.append(len(data))

        def stderr(self, data: bytes) -> None:
            raise AssertionError(data)

    backend.execute(script("head -c 30000000 /dev/zero"), Counting())
    assert sum(sizes) == 30_000_000
    assert max(sizes) <= 65536


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_a_script_that_takes_too_long_is_ended_with_its_children(backend: GuestBackend) -> None:
    with pytest.raises(LimaError, match=r"did not end within 0\.3 s"):
        run(backend, "trap '' INT; sleep 600 & sleep 600", timeout=0.3)
    assert children() == []


def test_an_interrupt_ends_a_script_with_its_children(backend: GuestBackend, tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / "runs").exists():
            time.sleep(0.01)
        signal.pthread_kill(MAIN, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run(backend, "sleep 600 & touch runs; sleep 600")
    assert children() == []


def test_a_script_goes_on_in_the_background(backend: GuestBackend) -> None:
    began = backend.start(script("echo it runs; sleep 600"))
    until(lambda: Path(began.log).read_text() == "it runs\n")
    assert Path(began.log).stat().st_mode & 0o777 == 0o600
    os.killpg(began.pid, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(began.pid))
    Path(began.log).unlink()


def until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# Copies


def copy(backend: GuestBackend, *words: str) -> Note | Table:
    return backend.run(Call("copy", words, OWN), Watcher())


def test_files_and_directories_are_copied(backend: GuestBackend, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to("/etc/hostname")
    copy(backend, "a", ":b")
    copy(backend, f"{OWN}:tree", "copied")
    copy(backend, "a", ":tree")
    assert (tmp_path / "b").read_text() == "1"
    assert (tmp_path / "copied" / "link").is_symlink()
    assert (tmp_path / "tree" / "a").exists()


def test_what_is_there_is_kept_unless_it_is_forced(backend: GuestBackend, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    with pytest.raises(LimaError, match=r"b exists already\. To replace it: --force"):
        copy(backend, "a", ":b")
    copy(backend, "a", ":b", "--force")
    assert (tmp_path / "b").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("missing", ":b"), "missing could not be copied to b: No such file or directory"),
        (("a",), "needs what to copy, and where to"),
        (("tree", ":a", "--force"), "tree is a directory, and a a file"),
    ],
)
def test_a_copy_that_cannot_be_is_one_line(
    backend: GuestBackend, tmp_path: Path, words: Sequence[str], line: str
) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "tree").mkdir()
    with pytest.raises(LimaError) as caught:
        copy(backend, *words)
    assert line in str(caught.value)


# The host


@pytest.fixture
def asked(machine: Machine) -> Iterator[GuestBackend]:
    directory = machine.lima_home / OWN
    directory.mkdir()
    (directory / "lima.yaml").write_text("images: []\n")
    path = machine.root / "control"
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    vms: dict[str, VM] = {}

    async def listen() -> asyncio.Server:
        control = Control(
            Policy.OWN_VM, OWN, "k1", KEY, lambda name: vms.setdefault(name, VM(name, Limactl(), lambda _step: None))
        )
        return await asyncio.start_unix_server(control.answer, path, limit=calls.LIMIT)

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(10)
    yield GuestBackend(Address(str(path), protocol.token(KEY), OWN))

    async def end() -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(end(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def test_the_host_answers(asked: GuestBackend) -> None:
    result = asked.run(Call("status", (), OWN), Watcher())
    assert isinstance(result, Table)
    assert result[0]["status"] == "Stopped"
    assert asked.run(Call("stop", ("--yes",), OWN), Watcher()) == "The VM lima-kernels is stopped already."


def test_the_hosts_refusal_is_an_error(asked: GuestBackend) -> None:
    with pytest.raises(LimaError, match="may ask for nothing of 'theirs'"):
        asked.run(Call("stop", ("theirs",), OWN), Watcher())


def test_a_long_wait_is_shown(asked: GuestBackend, machine: Machine) -> None:
    machine.tell(delay={"list": 1.2})
    watcher = Watcher()
    asked.run(Call("status", (), OWN), watcher)
    assert "tick" in watcher.steps


def test_an_interrupt_hangs_up_on_the_host(asked: GuestBackend, machine: Machine) -> None:
    machine.tell(hang=["list"])

    def interrupt() -> None:
        while not machine.calls("list"):
            time.sleep(0.01)
        signal.pthread_kill(MAIN, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        asked.run(Call("status", (), OWN), Watcher())
    machine.tell(hang=[])
    assert isinstance(asked.run(Call("status", (), OWN), Watcher()), Table)


def test_a_host_that_does_not_listen(backend: GuestBackend, tmp_path: Path) -> None:
    for path in ("", str(tmp_path / "none")):
        with pytest.raises(LimaError, match=r"host could not be asked: .*trait `control` off"):
            GuestBackend(Address(path, "", OWN)).run(Call("status", (), OWN), Watcher())
