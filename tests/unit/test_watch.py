"""The watcher: every change of a VM is told, whoever makes it, and nothing is done while nothing happens."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from lima_kernels import history, paths
from lima_kernels.errors import HostError, LimactlError
from lima_kernels.progress import Phase
from lima_kernels.watch import census, watcher
from lima_kernels.watch.cards import CardChanged, LogGrown, Message, Mount, Port, Problem, Snapshot, State, UsageTaken
from lima_kernels.watch.files import Files
from lima_kernels.watch.tails import LIMIT, Tail

from .conftest import Machine
from .verbs import CONFIG, ours
from .watching import Ear, Process, event, logged, soon

# Holds an instance's lock, and says in which phase it is: each line that it reads is one.
HOLDER = """
import asyncio, sys
from lima_kernels.locks import locked
from lima_kernels.progress import Phase, Progress
async def hold():
    progress = Progress(sys.argv[1], lambda step: None)
    progress.expected = 42.0
    async with locked(progress, 5.0):
        for line in sys.stdin:
            progress.enter(Phase[line.strip()])
asyncio.run(hold())
"""


@pytest_asyncio.fixture
async def process(machine: Machine) -> AsyncIterator[Process]:
    made = Process()
    yield made
    await made.close()


@pytest.fixture
def other(machine: Machine) -> Iterator[subprocess.Popen[str]]:
    """Another process, at work on the instance `one`."""
    made = subprocess.Popen(
        [sys.executable, "-c", HOLDER, "one"],
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    yield made
    made.kill()
    made.communicate()


def enters(other: subprocess.Popen[str], phase: Phase) -> None:
    assert other.stdin is not None
    other.stdin.write(f"{phase.name}\n")
    other.stdin.flush()


async def limactl(*arguments: str) -> None:
    """Do what somebody does by hand, who knows nothing of us."""
    done = await asyncio.create_subprocess_exec(
        "limactl", *arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert await done.wait() == 0


async def make(process: Process, name: str = "one", config: str = CONFIG, *, running: bool = False) -> Path:
    await process.limactl.create(name, config)
    if running:
        await limactl("start", name)
    return paths.lima_home() / name


def others() -> list[threading.Thread]:
    """The threads but those that asyncio has for each subprocess."""
    return [thread for thread in threading.enumerate() if not thread.name.startswith("waitpid")]


async def test_a_subscriber_is_told_at_once_what_there_is(machine: Machine, process: Process) -> None:
    await make(process, "b", "images: []\nmounts:\n- location: /srv\n  mountPoint: /data\n  writable: true\n")
    await make(process, "a", ours(), running=True)
    broken = await make(process, "broken")
    (broken / "lima.yaml").write_text("images: [\n")
    machine.tell(errors=["yaml: it cannot be read\n> 1 | images: ["])
    ear, _ = await process.watch()
    (snapshot,) = ear.messages
    assert isinstance(snapshot, Snapshot)
    assert [card.name for card in snapshot.vms] == ["a", "b", "broken"]
    a, b, bad = snapshot.vms
    assert (a.state, a.status, a.ours, a.phase, a.kernels) == (State.RUNNING, "Running", True, "", None)
    assert (a.cpus, a.memory, a.disk, a.disk_used, a.arch, a.vm_type) == (2, 4 << 30, 100 << 30, 0, "x86_64", "qemu")
    assert (b.state, b.ours, b.disk_used, b.problem) == (State.STOPPED, False, 0, None)
    assert list(b.mounts) == [Mount("/srv", "/data", writable=True)]
    assert (bad.state, bad.status) == (State.BROKEN, "Unknown")
    assert bad.problem == Problem("yaml: it cannot be read", "Look at it by hand: limactl list broken")


async def test_a_start_and_a_stop_by_hand_are_told(machine: Machine, process: Process) -> None:
    directory = await make(process)
    history.note("one", history.Kind.BOOT, 60.0)
    ear, _ = await process.watch()
    machine.tell(hang=["ready"])
    start = await asyncio.create_subprocess_exec("limactl", "start", "one", stderr=subprocess.DEVNULL)
    card = await ear.state("one", State.STARTING)
    assert (card.phase, card.expected) == ("booting the VM", 60.0)
    card = await ear.until(lambda: (found := ear.card("one")) and found.began and found)
    event(directory, running=True, sshLocalPort=1)
    card = await ear.state("one", State.RUNNING)
    assert (card.phase, card.began, card.expected) == ("", None, None)
    start.terminate()
    await start.wait()
    logged(directory, "Received SIGINT, shutting down the host agent")
    card = await ear.state("one", State.STOPPING)
    assert card.began is not None
    await limactl("stop", "one")
    await ear.state("one", State.STOPPED)
    assert ear.states("one") == [State.STARTING, State.RUNNING, State.STOPPING, State.STOPPED]


async def test_a_second_start_is_told_like_the_first(process: Process) -> None:
    directory = await make(process, running=True)
    logged(directory, "Received SIGINT, shutting down the host agent")
    await limactl("stop", "one")
    ear, _ = await process.watch()
    for file in ("ha.stdout.log", "ha.stderr.log"):
        (directory / file).unlink()
    await limactl("start", "one")
    await ear.state("one", State.RUNNING)
    event(directory, running=True, degraded=True, errors=["no mounts"])
    card = await ear.until(lambda: (found := ear.card("one")) and found.problem and found)
    hint = "To mend it, which ends its kernels: %lima restart one --force"
    assert (card.state, card.problem) == (State.RUNNING, Problem("no mounts", hint))


async def test_what_another_process_does_is_told(process: Process, other: subprocess.Popen[str]) -> None:
    ear, _ = await process.watch()
    assert ear.card("one") is None
    enters(other, Phase.CREATE)
    card = await ear.state("one", State.CREATING)
    assert (card.phase, card.expected, card.ours) == ("creating the VM", 42.0, True)
    enters(other, Phase.BOOT)
    later = await ear.state("one", State.STARTING)
    assert (later.phase, later.began) == ("booting the VM", card.began)
    await make(process)
    other.communicate()
    card = await ear.state("one", State.STOPPED)
    assert (card.phase, card.began) == ("", None)


async def test_a_process_that_dies_at_its_work_does_nothing_more(
    process: Process, other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "INTERVAL", 0.05)
    await make(process)
    ear, _ = await process.watch()
    enters(other, Phase.BOOT)
    await ear.state("one", State.STARTING)
    other.kill()
    other.communicate()
    await ear.state("one", State.STOPPED)


async def test_a_vm_that_is_killed_is_noticed(
    machine: Machine, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "INTERVAL", 0.05)
    qemu = subprocess.Popen(["sleep", "300"])
    machine.tell(host_agent_pid=qemu.pid, driver_pid=qemu.pid)
    await make(process, running=True)
    ear, _ = await process.watch()
    assert ear.card("one").state is State.RUNNING  # type: ignore[union-attr]
    qemu.kill()
    qemu.wait()
    await ear.state("one", State.STOPPED)


async def test_a_vm_without_its_host_agent_runs_with_a_problem(
    machine: Machine, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "INTERVAL", 0.05)
    agent = subprocess.Popen(["sleep", "300"])
    machine.tell(host_agent_pid=agent.pid)
    await make(process, running=True)
    ear, _ = await process.watch()
    agent.kill()
    agent.wait()
    card = await ear.until(lambda: (found := ear.card("one")) and found.problem and found)
    assert (card.state, card.status) == (State.RUNNING, "Broken")
    assert card.problem.message == "qemu driver is running but host agent is not"


async def test_vms_come_change_and_go(machine: Machine, process: Process) -> None:
    ear, _ = await process.watch()
    assert ear.messages == [Snapshot([], [])]
    await make(process)
    await ear.state("one", State.STOPPED)
    await limactl("edit", "--set=.cpus = 7", "one")
    await ear.until(lambda: ear.card("one").cpus == 7)  # type: ignore[union-attr]
    await limactl("delete", "--force", "one")
    await ear.until(lambda: ear.card("one") is None)
    await limactl("create", "--name=one", "-")
    await ear.state("one", State.STOPPED)


async def test_fifty_vms_are_watched_and_only_the_one_that_changes_is_asked_for(
    machine: Machine, process: Process
) -> None:
    for number in range(50):
        directory = machine.lima_home / f"vm{number:02}"
        directory.mkdir()
        (directory / "lima.yaml").write_text(CONFIG)
    ear, _ = await process.watch()
    assert len(ear.all(Snapshot)[0].vms) == 50
    await limactl("start", "vm07")
    await ear.state("vm07", State.RUNNING)
    assert {message.vm.name for message in ear.all(CardChanged)} == {"vm07"}
    first, *others = machine.calls("list")
    assert "vm07" not in first
    assert others
    assert {name for call in others for name in call[2:]} == {"vm07"}


async def test_nothing_is_asked_of_limactl_while_nothing_happens(
    machine: Machine, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "INTERVAL", 0.02)
    monkeypatch.setattr(watcher, "_LEAST", 0.0)
    directory = await make(process, running=True)
    ear, subscription = await process.watch()
    subscription.show(None)
    before = machine.calls("list")
    # The VM writes its disk and its console all the time.
    with (directory / "disk").open("r+b") as disk, (directory / "serial.log").open("ab") as serial:
        for number in range(20):
            disk.write(b"x" * 4096)
            serial.write(b"a line\n")
            await ear.until(lambda: len(ear.all(UsageTaken)) > number)  # noqa: B023
    assert machine.calls("list") == before
    assert ear.all(CardChanged) == []


async def test_usage_is_told_only_to_who_shows_it(
    machine: Machine, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "INTERVAL", 0.02)
    monkeypatch.setattr(watcher, "_LEAST", 0.0)
    await make(process, "one", running=True)
    await make(process, "two", running=True)
    await make(process, "off")
    hidden, _ = await process.watch()
    some, subscription = await process.watch()
    subscription.show(["one", "off", "nothing"])
    await some.until(lambda: len(some.all(UsageTaken)) > 3)
    assert {message.usage.name for message in some.all(UsageTaken)} == {"one"}
    assert hidden.all(UsageTaken) == []
    first, *others = some.all(UsageTaken)
    assert first.usage.cpu is None
    assert all(message.usage.cpu is not None and message.usage.memory is None for message in others)
    subscription.show([])
    await subscription.close()


async def test_a_subscriber_that_fails_costs_nobody_else_anything(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    told = []

    def fail(message: Message) -> None:
        told.append(message)
        if not isinstance(message, Snapshot):
            raise ValueError("no")

    await process.watcher.subscribe(fail)
    ear, _ = await process.watch()
    await make(process)
    await ear.state("one", State.STOPPED)
    await limactl("start", "one")
    await ear.state("one", State.RUNNING)
    assert len(told) == 2
    assert "is told nothing more" in caplog.text


async def test_the_last_who_leaves_ends_the_watching(process: Process) -> None:
    await make(process, running=True)
    tasks, threads = asyncio.all_tasks(), others()
    files = psutil.Process().num_fds()
    loop = asyncio.get_running_loop()
    _, one = await process.watch()
    _, two = await process.watch()
    one.show(None)
    await two.close()
    assert asyncio.all_tasks() > tasks
    await one.close()
    await one.close()
    assert asyncio.all_tasks() == tasks
    assert others() == threads
    assert psutil.Process().num_fds() == files
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []  # type: ignore[attr-defined]
    assert process.watcher.cards() == []
    ear, _ = await process.watch()
    assert ear.card("one").state is State.RUNNING  # type: ignore[union-attr]


async def test_who_cannot_watch_is_told_why_and_nothing_is_left(
    machine: Machine, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.tell(fail={"list": "no space left"})
    tasks = asyncio.all_tasks()
    with pytest.raises(LimactlError, match="no space left"):
        await process.watcher.subscribe(Ear())
    assert asyncio.all_tasks() == tasks
    machine.tell(fail={})
    ear, _ = await process.watch()
    # What failed for a while is asked for again.
    monkeypatch.setattr(census, "RETRY", 0.02)
    machine.tell(fail={"list": "no space left"})
    made = len(machine.calls("list"))
    (machine.lima_home / "one").mkdir()
    (machine.lima_home / "one" / "lima.yaml").write_text(CONFIG)
    await soon(lambda: len(machine.calls("list")) > made + 1)
    machine.tell(fail={})
    await ear.state("one", State.STOPPED)


async def test_a_log_is_told_to_who_follows_it(process: Process) -> None:
    directory = await make(process)
    for number in range(300):
        logged(directory, f"line {number}")
    ear, subscription = await process.watch()
    subscription.follow("one")
    (told,) = ear.all(LogGrown)
    assert (told.name, len(told.lines), told.lines[-1]) == ("one", 200, "line 299")
    logged(directory, "it\x1b[2J failed", "error")
    await ear.until(lambda: ear.all(LogGrown)[1:])
    assert list(ear.all(LogGrown)[1].lines) == ["error: it failed"]
    subscription.follow(None)
    logged(directory, "Received SIGINT, shutting down the host agent")
    await limactl("start", "one")
    await ear.state("one", State.STOPPING)
    assert len(ear.all(LogGrown)) == 2


async def test_ports_that_lima_forwards_are_told(process: Process) -> None:
    directory = await make(process, running=True)
    ear, _ = await process.watch()

    def forward(kind: str, guest: str, host: str) -> None:
        said = {"type": kind, "protocol": "tcp", "guestAddr": guest, "hostAddr": host}
        event(directory, running=True, sshLocalPort=1, portForward=said)

    forward("forwarding", "127.0.0.1:8000", "127.0.0.1:8000")
    forward("forwarding", "0.0.0.0:80", "0.0.0.0:8080")
    forward("not-forwarding", "127.0.0.1:22", "")
    forward("forwarding", "/run/docker.sock", "/tmp/docker.sock")
    card = await ear.until(lambda: (found := ear.card("one")) and len(found.ports) == 3 and found)
    assert list(card.ports) == [
        Port("127.0.0.1:8000", "127.0.0.1:8000", "http://127.0.0.1:8000"),
        Port("0.0.0.0:8080", "0.0.0.0:80", "http://localhost:8080"),
        Port("/tmp/docker.sock", "/run/docker.sock", ""),
    ]
    forward("stopping", "127.0.0.1:8000", "127.0.0.1:8000")
    await ear.until(lambda: len(ear.card("one").ports) == 2)  # type: ignore[union-attr]
    await limactl("stop", "one")
    assert (await ear.state("one", State.STOPPED)).ports == ()


# Files


async def test_files_tell_what_is_watched_and_nothing_of_a_file_that_is_being_written(tmp_path: Path) -> None:
    told: set[Path] = set()
    news = asyncio.Event()

    def changed(path: Path) -> None:
        told.add(path)
        news.set()

    async def next_news() -> set[Path]:
        async with asyncio.timeout(20):
            await news.wait()
        news.clear()
        found = set(told)
        told.clear()
        return found

    file = tmp_path / "log"
    files = Files(changed)
    try:
        assert files.add(tmp_path)
        assert not files.add(tmp_path)
        assert not files.add(file)
        with file.open("w") as writer:
            assert await next_news() == {tmp_path}
            # Only who watches the file itself is told that it grows.
            writer.write("a")
            writer.flush()
            assert files.add(file)
            writer.write("b")
            writer.flush()
            assert await next_news() == {file}
            # Another file of that name, while somebody has the first one open.
            file.unlink()
            file.write_text("c")
            await next_news()
            assert files.add(file)
        files.remove(tmp_path)
        told.clear()
        news.clear()
        file.write_text("d")
        assert await next_news() == {file}
    finally:
        files.close()


async def test_a_host_that_watches_nothing_more_says_how_to_mend_it(
    tmp_path: Path,
) -> None:
    limit = Path("/proc/sys/fs/inotify/max_user_instances")
    if not limit.exists():
        pytest.skip("kqueue has no such limit")
    made: list[Files] = []

    def exhaust() -> None:
        while len(made) <= int(limit.read_text()):
            made.append(Files(lambda _path: None))

    try:
        with pytest.raises(HostError) as caught:
            exhaust()
    finally:
        for files in made:
            files.close()
    assert caught.value.hint == "See the limits: sysctl fs.inotify; ulimit -n"


def test_a_tail_gives_each_line_once_and_begins_anew_with_another_file(tmp_path: Path) -> None:
    file = tmp_path / "log"
    tail = Tail(file, backlog=8)
    assert tail.read() == (False, ())
    assert not tail.exists
    file.write_bytes(b"much that is old\none\ntwo\nth")
    assert tail.read() == (True, [b"two"])
    with file.open("ab") as writer:
        writer.write(b"ree\n\n")
    assert tail.read() == (False, [b"three"])
    assert tail.read() == (False, [])
    with file.open("ab") as writer:
        writer.write(b"x" * (2 * LIMIT) + b"\nlast\n")
    assert tail.read() == (False, [b"last"])
    file.write_bytes(b"new\n")
    assert tail.read() == (True, [b"new"])
    file.unlink()
    assert tail.read() == (True, ())
    assert tail.read() == (False, ())
