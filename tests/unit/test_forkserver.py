"""The guest's forkserver alone, over its unix socket: nonsense, starts, its own end, orphans, streams."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client import BlockingKernelClient

import lima_kernels.guest
from lima_kernels.guest.forkserver.resumable import HEADER
from lima_kernels.guest.forkserver.wire import HIGH_WATER

from .conftest import Machine, _end_the_guest
from .test_kernel import lives, until

PACKAGE = Path(lima_kernels.guest.__file__).parent / "forkserver"
OWNER = "0123456789abcdef"
# Seconds, against hanging only.
LIMIT = 30.0
DAY = 86400.0
CHANNELS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")

# A kernel that is another program: it says what it was given, binds its sockets, by which it is ready, and works until
# it is told to rest.
PROGRAM = """
import json, os, signal, socket, sys, time
with open(sys.argv[1]) as file:
    info = json.load(file)
with open(sys.argv[2] + ".new", "w") as file:
    json.dump({"argv": sys.argv, "env": dict(os.environ), "cwd": os.getcwd(), "fds": os.listdir("/proc/self/fd")}, file)
os.replace(sys.argv[2] + ".new", sys.argv[2])
socks = [socket.socket(socket.AF_UNIX) for _ in range(5)]
for number, sock in enumerate(socks, 1):
    sock.bind("%s-%d" % (info["ip"], number))
    sock.listen()
if "count" in sys.argv:
    conn, _ = socks[0].accept()
    count = 0
    while not os.path.exists(sys.argv[2] + ".go"):
        time.sleep(0.01)
    while data := conn.recv(4096):
        count += len(data)
    with open(sys.argv[2] + ".count", "w") as file:
        file.write(str(count))
while "burn" in sys.argv and not os.path.exists(sys.argv[2] + ".rest"):
    sum(range(10000))
while True:
    signal.pause()
"""


class Talk:
    """A client's conversation with the forkserver; ``events`` has what it was told without asking."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT)
        try:
            self.sock.connect(str(path))
        except OSError:
            self.sock.close()
            raise
        self.events: list[dict[str, Any]] = []
        self._buffer = b""
        self._number = 0

    def line(self) -> dict[str, Any]:
        """Return the next line.

        :raises EOFError: when the forkserver has hung up.
        """
        while b"\n" not in self._buffer:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def send(self, op: str, **fields: Any) -> int:
        self._number += 1
        self.sock.sendall(json.dumps({"id": self._number, "op": op, **fields}).encode() + b"\n")
        return self._number

    def answer(self, number: int) -> dict[str, Any]:
        """Return the answer to a request; what comes before it is kept as an event."""
        while (message := self.line()).get("id") != number:
            self.events.append(message)
        return message

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        return self.answer(self.send(op, **fields))

    def event(self) -> dict[str, Any]:
        return self.events.pop(0) if self.events else self.line()

    def kernels(self) -> dict[str, Any]:
        listed: dict[str, Any] = self.ask("list")["ok"]
        return listed

    def received(self) -> bytes:
        """Return what comes next, as it is."""
        data, self._buffer = self._buffer, b""
        return data or self.sock.recv(65536)

    def hang_up(self) -> None:
        self.sock.close()


class Place:
    """A forkserver's directory, and the forkservers that run there one after the other."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.root = machine.guest_home / "fs"
        self.socket = self.root / "socket"
        self.environments = machine.guest_home / "environments"
        self.errors = machine.root / "forkserver.err"
        self.env = {**os.environ, "HOME": str(machine.guest_home)}
        self.process: subprocess.Popen[bytes] | None = None
        self._talks: list[Talk] = []

    def serve(self, launcher: str = "") -> Talk:
        """Start a forkserver, and return a conversation with it.

        :param launcher: statements between the package's import and its start, to change what it has.
        """
        self.root.mkdir(exist_ok=True)
        program = PACKAGE
        if launcher:
            program = self.machine.root / "launch.py"
            program.write_text(
                f"import os, sys, time\nsys.path.insert(0, {str(PACKAGE.parent)!r})\n"
                "from forkserver import deaths, idle, kernels, main, server, zygotes\n"
                f"del sys.path[0]\n{launcher}\nsys.exit(main.main())\n"
            )
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(program), *self.options],
                env=self.env,
                cwd=self.machine.guest_home,
                stderr=errors,
            )
        made: list[Talk] = []

        def listens() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.errors.read_text()
            try:
                made.append(self.talk())
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            return True

        until(listens, LIMIT)
        return made[0]

    @property
    def options(self) -> list[str]:
        where = {"--root": self.root, "--socket": self.socket, "--environments": self.environments}
        return [str(word) for option in where.items() for word in option]

    def talk(self) -> Talk:
        self._talks.append(Talk(self.socket))
        return self._talks[-1]

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """End the forkserver as `kill -9` does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(LIMIT)

    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def directories(self) -> list[str]:
        return sorted(os.listdir(self.root / "k"))

    def connection(self, kernel: str) -> dict[str, Any]:
        numbers = {name: number for number, name in enumerate(CHANNELS, 1)}
        prefix = str(self.root / "k" / kernel / "c")
        return {"transport": "ipc", "ip": prefix, **numbers, "key": "k", "signature_scheme": "hmac-sha256"}

    def birth(self, kernel: str, **other: Any) -> dict[str, Any]:
        """What a request to spawn says."""
        return {
            "kernel": kernel,
            "cwd": str(self.machine.notebooks),
            "env": {"HOME": str(self.machine.guest_home)},
            "connection": self.connection(kernel),
            "arguments": [],
            "owner": OWNER,
            "keep": DAY,
            "facts": {"session": "a.ipynb", "spec": "lima"},
            "spec": "",
            "notes": [],
            **other,
        }

    def client(self, kernel: str) -> BlockingKernelClient:
        """Return a client right at the kernel's sockets."""
        client = BlockingKernelClient()
        client.load_connection_info(self.connection(kernel))
        client.start_channels()
        client.wait_for_ready(timeout=LIMIT)
        return client

    def install(self, name: str, argv: list[str], **other: Any) -> None:
        """Give the guest a kernel spec of its own."""
        directory = self.machine.guest_home / ".local" / "share" / "jupyter" / "kernels" / name
        directory.mkdir(parents=True)
        spec = {"argv": argv, "display_name": name, "language": name, **other}
        (directory / "kernel.json").write_text(json.dumps(spec))

    def install_program(self, name: str, *arguments: str, **other: Any) -> Path:
        """Give the guest a kernel that is another program; returns the file in which it says what it was given."""
        program = self.machine.root / "program.py"
        program.write_text(PROGRAM)
        report = self.machine.root / f"{name}.json"
        self.install(name, [sys.executable, str(program), "{connection_file}", str(report), *arguments], **other)
        return report

    def close(self) -> None:
        for talk in self._talks:
            talk.hang_up()
        if self.process is not None and self.process.poll() is None:
            for kernel in self.process_children():
                # One may have ended since.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(kernel, signal.SIGKILL)
            self.kill()
        _end_the_guest(self.machine)

    def process_children(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]


@pytest.fixture
def place(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = Place(machine)
    # Nobody is to shut this machine down.
    machine.script("sudo", "exit 1")
    # The guest's kernel specs are those of its home.
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        made.env.pop(name, None)
    yield made
    made.close()


def printed(client: BlockingKernelClient, code: str) -> dict[str, str]:
    """Run a cell and return what it printed, by stream."""
    texts: dict[str, str] = {}

    def collect(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            name = message["content"]["name"]
            texts[name] = texts.get(name, "") + message["content"]["text"]

    client.execute_interactive(code, timeout=LIMIT, output_hook=collect)
    return texts


def spawned(talk: Talk, birth: dict[str, Any]) -> int:
    answer = talk.ask("spawn", **birth)
    assert "ok" in answer, answer
    pid: int = answer["ok"]["pid"]
    return pid


# Nonsense


def test_nonsense_is_answered_and_harms_nobody(place: Place) -> None:
    talk = place.serve()
    deep = b"[" * 200_000
    for line in (
        b"",
        b"nonsense",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"op": 5}',
        b'{"op": []}',
        b'{"op": "reboot"}',
        b'{"op": "signal"}',
        b'{"op": "signal", "kernel": []}',
        b'{"op": "spawn", "kernel": 7}',
        b'{"op": "spawn", "kernel": "a"}',
        b'{"op": "settings", "idle_timeout": "soon"}',
        b'{"op": "settings", "idle_timeout": 1' + b"0" * 400 + b"}",
        b'{"op": "stream", "kernel": "a"}',
        deep,
        b'{"a":' * 100_000,
    ):
        talk.sock.sendall(line + b"\n")
        answer = talk.line()
        assert answer["id"] is None, line[:80]
        assert answer["error"], line[:80]
    assert talk.kernels() == {}
    assert place.directories() == []


def test_impossible_numbers_harm_nobody(place: Place) -> None:
    talk = place.serve()
    spawned(talk, place.birth("a"))
    for signum in (10**30, -1, 4711, "9", None, 1.5e308):
        talk.ask("signal", kernel="a", signum=signum)
    for seconds in (float("inf"), float("nan"), -1, 1e18):
        talk.ask("settings", idle_timeout=seconds)
        talk.ask("hold", kernel="a", owner=OWNER, keep=seconds)
        talk.hang_up()
        talk = place.talk()
        assert list(talk.kernels()) in (["a"], [])


def test_a_kernel_may_be_kept_for_years(place: Place) -> None:
    talk = place.serve()
    pid = spawned(talk, place.birth("a", keep=10 * 365 * DAY))
    talk.hang_up()
    # Now nobody holds it: the forkserver looks when that ends.
    talk = place.talk()
    until(lambda: talk.kernels()["a"]["held"] is False)
    assert lives(pid)


def test_a_line_without_end_ends_the_conversation(place: Place) -> None:
    talk = place.serve()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        talk.sock.sendall(bytes(4 << 20))
    assert place.talk().kernels() == {}


def test_a_client_that_does_not_read_harms_nobody(place: Place) -> None:
    talk = place.serve()
    spawned(talk, place.birth("a", facts={"session": "x" * 10_000}))
    before = psutil.Process(place.pid).memory_info().rss
    deaf = place.talk()
    deaf.sock.setblocking(False)
    question = b'{"id": 1, "op": "list"}\n' * 1000
    sent = 0
    answered = 0
    # As much as it takes from one that does not read; each question is answered by 10,000 bytes.
    while sent < 400 * len(question) and answered < 20:
        try:
            sent += deaf.sock.send(question)
            answered = 0
        except BlockingIOError:
            # A round of its loop for another client: it had the time to read.
            assert talk.kernels()["a"]["code"] is None
            answered += 1
    assert psutil.Process(place.pid).memory_info().rss - before < 64 * HIGH_WATER
    deaf.hang_up()
    assert list(talk.kernels()) == ["a"]


def test_clients_that_come_and_go_leave_nothing(place: Place) -> None:
    talk = place.serve()
    talk.kernels()
    before = place.fds()
    for _ in range(100):
        other = place.talk()
        other.sock.sendall(b'{"op": "li')
        other.hang_up()
    until(lambda: talk.kernels() == {} and place.fds() == before)


# Starting


@pytest.mark.parametrize("name", ["", ".", "../k", "a/b", "a b", "é/", "a\0b", "x" * 300])
def test_a_name_that_is_none_is_refused(place: Place, name: str) -> None:
    talk = place.serve()
    assert "error" in talk.ask("spawn", **place.birth(name))
    assert place.directories() == []
    assert place.process_children() == []


def test_a_directory_that_is_not_there_is_named(place: Place) -> None:
    talk = place.serve()
    answer = talk.ask("spawn", **place.birth("a", cwd="/no/such"))
    assert answer["error"] == "there is no directory /no/such in the guest"
    assert place.directories() == []


def test_a_name_is_taken_once(place: Place) -> None:
    talk = place.serve()
    pid = spawned(talk, place.birth("a"))
    assert "new" in talk.ask("spawn", **place.birth("a"))["error"]
    assert talk.kernels()["a"]["pid"] == pid
    assert lives(pid)


def test_a_kernel_that_ends_at_once_says_why(place: Place) -> None:
    talk = place.serve()
    answer = talk.ask("spawn", **place.birth("a", arguments=["--IPKernelApp.nonsense_of_mine"]))
    if "ok" not in answer:
        assert answer["log"]
    broken = {**place.connection("b"), "transport": "pigeon"}
    answer = talk.ask("spawn", **place.birth("b", connection=broken))
    assert answer["error"].startswith("the kernel ended before it was ready")
    assert any("pigeon" in line for line in answer["log"])
    talk.ask("remove", kernel="a")
    talk.ask("remove", kernel="b")
    assert place.directories() == []


def test_a_start_can_be_taken_back_at_once(place: Place) -> None:
    talk = place.serve()
    talk.kernels()
    before = place.fds()
    for _ in range(20):
        # One write: the child has done nothing yet when it is to be removed.
        start = json.dumps({"id": "start", "op": "spawn", **place.birth("a")})
        talk.sock.sendall(start.encode() + b'\n{"id": "stop", "op": "remove", "kernel": "a"}\n')
        answers = [talk.line() for _ in range(3)]
        assert {answer["id"] for answer in answers if "id" in answer} == {"start", "stop"}
        assert "error" in next(answer for answer in answers if answer.get("id") == "start")
        assert [answer["event"] for answer in answers if "event" in answer] == ["exit"]
    assert place.directories() == []
    assert place.process_children() == []
    assert place.fds() == before


def test_spawn_and_remove_leave_no_descriptor(place: Place) -> None:
    talk = place.serve()
    talk.kernels()
    before = place.fds()
    for number in range(5):
        pid = spawned(talk, place.birth("a"))
        carrier = place.talk()
        answer = carrier.ask("stream", kernel="a", owner=OWNER, channel=1, token=f"t{number}", received=0, new=True)
        assert answer["ok"] == {"received": 0}
        assert talk.ask("remove", kernel="a")["ok"] == {}
        assert not lives(pid)
        assert carrier.received() is not None
        carrier.hang_up()
    assert place.directories() == []
    assert place.fds() == before


def test_a_kernel_has_no_descriptor_of_another(place: Place) -> None:
    talk = place.serve()
    counts = []
    for number in range(3):
        pid = spawned(talk, place.birth(f"a{number}"))
        carriers = [place.talk() for _ in range(3)]
        for carrier in carriers:
            carrier.ask(
                "stream", kernel=f"a{number}", owner=OWNER, channel=1, token=str(id(carrier)), received=0, new=1
            )
        counts.append(len([fd for fd in os.listdir(f"/proc/{pid}/fd") if is_unconnected(pid, fd)]))
    # Its own sockets are as many in each; what it had of the others would be more each time.
    assert max(counts) - min(counts) <= 4, counts


def is_unconnected(pid: int, fd: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}").startswith(("socket:", "pipe:", "anon_inode:[pidfd]"))
    except OSError:
        return False


# Other programs


def test_a_program_by_the_guests_kernel_spec(place: Place) -> None:
    report = place.install_program("other", "{resource_dir}", "{unknown}", env={"GREETING": "hello ${USER}"})
    place.env["USER"] = "guest"
    talk = place.serve()
    assert talk.ask("specs")["ok"]["other"]["language"] == "other"
    pid = spawned(talk, place.birth("a", spec="other", arguments=["--more"], env={"OWN": "1"}))
    given = json.loads(report.read_text())
    assert given["argv"][3:] == [
        str(place.machine.guest_home / ".local/share/jupyter/kernels/other"),
        "{unknown}",
        "--more",
    ]
    assert given["cwd"] == str(place.machine.notebooks)
    assert (given["env"]["GREETING"], given["env"]["OWN"]) == ("hello guest", "1")
    # Standard streams, the report, and the directory that it listed.
    assert len(given["fds"]) == 5
    os.kill(pid, signal.SIGTERM)
    ended = talk.event()
    assert (ended["event"], ended["kernel"], ended["code"]) == ("exit", "a", -signal.SIGTERM)


def test_a_kernel_spec_that_is_missing_or_broken(place: Place) -> None:
    place.install_program("other")
    place.install("gone", ["no-such-program", "{connection_file}"])
    place.install("argv", ["x"])
    kernels = place.machine.guest_home / ".local/share/jupyter/kernels"
    (kernels / "argv" / "kernel.json").write_text('{"argv": "python", "display_name": 5, "env": []}')
    place.install("json", ["x"])
    (kernels / "json" / "kernel.json").write_text("{")
    place.install("braces", [sys.executable, "{"])
    talk = place.serve()
    answer = talk.ask("spawn", **place.birth("a", spec="othr"))
    assert answer["error"].startswith("the guest has no kernel 'othr'; it has: ")
    assert "other" in answer["error"]
    answer = talk.ask("spawn", **place.birth("a", spec="gone"))
    assert answer["error"].startswith("the kernel ended before it was ready")
    assert answer["log"] == ["no-such-program cannot be run: No such file or directory"]
    for number, name in enumerate(("argv", "json", "braces")):
        assert "error" in talk.ask("spawn", **place.birth(f"b{number}", spec=name)), name
    assert "ok" in talk.ask("specs")
    for name in talk.kernels():
        talk.ask("remove", kernel=name)
    assert talk.kernels() == {}
    spawned(talk, place.birth("c", spec="other"))


def test_a_program_that_never_binds_can_be_taken_back(place: Place) -> None:
    place.install("deaf", ["sleep", "300"])
    talk = place.serve()
    number = talk.send("spawn", **place.birth("a", spec="deaf"))
    until(lambda: any(psutil.Process(pid).name() == "sleep" for pid in place.process_children()))
    other = place.talk()
    assert other.ask("remove", kernel="a")["ok"] == {}
    assert "error" in talk.answer(number)
    assert place.process_children() == []
    # Nothing is waited for any more.
    used = psutil.Process(place.pid).num_ctx_switches().voluntary
    time.sleep(0.5)
    assert psutil.Process(place.pid).num_ctx_switches().voluntary - used < 5


# Its own end


def test_a_new_forkserver_takes_the_living_over(place: Place) -> None:
    talk = place.serve()
    pids = {name: spawned(talk, place.birth(name)) for name in ("a", "b", "c")}
    client = place.client("a")
    try:
        printed(client, "x = 'kept'")
        place.kill()
        os.kill(pids["b"], signal.SIGKILL)
        until(lambda: not lives(pids["b"]))
        talk = place.serve()
        known = talk.kernels()
        assert {name: state["pid"] for name, state in known.items()} == {"a": pids["a"], "c": pids["c"]}
        assert known["a"]["facts"] == {"session": "a.ipynb", "spec": "lima"}
        assert (known["a"]["code"], known["a"]["held"]) == (None, False)
        assert place.directories() == ["a", "c"]
        assert talk.ask("hold", kernel="a", owner=OWNER, keep=DAY)["ok"] == {
            "connection": place.connection("a"),
            "lost": False,
        }
        talk.ask("signal", kernel="a", signum=signal.SIGINT)
        assert printed(client, "print(x)") == {"stdout": "kept\n"}
        os.kill(pids["c"], signal.SIGSEGV)
        ended = talk.event()
        assert (ended["event"], ended["kernel"], ended["code"]) == ("exit", "c", -signal.SIGKILL)
        assert "not known" in ended["reason"]
    finally:
        client.stop_channels()
    assert talk.ask("remove", kernel="a")["ok"] == {}
    assert not lives(pids["a"])
    talk.ask("remove", kernel="c")
    assert place.directories() == []


def test_taking_over_leaves_no_descriptor(place: Place) -> None:
    talk = place.serve()
    for name in ("a", "b"):
        spawned(talk, place.birth(name))
    place.kill()
    talk = place.serve()
    for name in ("a", "b"):
        assert talk.ask("remove", kernel=name)["ok"] == {}
    after = place.fds()
    talk.hang_up()
    place.kill()
    talk = place.serve()
    talk.kernels()
    assert place.fds() == after


def test_a_note_is_shown_by_a_kernel_that_was_taken_over(place: Place) -> None:
    talk = place.serve()
    spawned(talk, place.birth("a", notes=["first"]))
    client = place.client("a")
    try:
        assert printed(client, "1") == {"stderr": "[lima-kernels] first\n"}
        place.kill()
        talk = place.serve()
        talk.ask("note", kernel="a", text="some output\nmay be missing")
        assert printed(client, "1") == {"stderr": "[lima-kernels] some output may be missing\n"}
        assert printed(client, "1") == {}
    finally:
        client.stop_channels()


def test_only_one_forkserver_serves_a_directory(place: Place) -> None:
    talk = place.serve()
    spawned(talk, place.birth("a"))
    command = [sys.executable, str(PACKAGE), *place.options]
    assert subprocess.run(command, env=place.env, timeout=LIMIT, check=False).returncode == 0
    assert list(talk.kernels()) == ["a"]
    assert list(place.talk().kernels()) == ["a"]


def test_a_record_that_cannot_be_right_is_no_kernel(place: Place) -> None:
    other = subprocess.Popen(["sleep", "300"])
    good = {"version": 1, "pid": other.pid, "start": 1, "owner": OWNER, "keep": 1.0, "facts": {}, "started": 1.0}
    alive = {**good, "start": start_of(other.pid)}
    records = {
        "empty": "",
        "truncated": json.dumps(good)[:30],
        "binary": "\0\1\2",
        "list": "[]",
        "text": '"x"',
        "nothing": "{}",
        "version": json.dumps({**alive, "version": 2}),
        "reused": json.dumps(good),
        "ended": json.dumps({**good, "pid": 2**22 + 1}),
        "unstarted": json.dumps({**good, "pid": 2**22 + 1, "start": None}),
        "zero": json.dumps({**good, "pid": 0, "start": None}),
        "negative": json.dumps({**good, "pid": -1}),
        "huge": json.dumps({**good, "pid": 10**30}),
        "pid": json.dumps({**alive, "pid": str(other.pid)}),
        "truth": json.dumps({**good, "pid": True}),
        "owner": json.dumps({**alive, "owner": 5}),
        "keep": json.dumps({**alive, "keep": "long"}),
        "facts": json.dumps({**alive, "facts": [1]}),
        "deep": "[" * 100_000,
    }
    for name, text in records.items():
        directory = place.root / "k" / name
        directory.mkdir(parents=True)
        (directory / "kernel.json").write_text(text)
        (directory / "output.log").write_text("left")
    (place.root / "k" / "bare").mkdir()
    (place.root / "k" / "file").write_text("no directory")
    (place.root / "settings.json").write_text("{nonsense")
    try:
        talk = place.serve()
        assert talk.kernels() == {}
        assert set(place.directories()) <= {"file"}
        assert other.poll() is None
        spawned(talk, place.birth("empty"))
    finally:
        other.kill()
        other.wait()


def start_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


# Kernels without an owner

QUICK = "kernels.BUSY_CHECK = 0.3"


def gone(talk: Talk, name: str) -> Callable[[], bool]:
    return lambda: name not in talk.kernels()


def test_a_kernel_without_an_owner_ends_in_its_time_and_a_busy_one_when_it_is_idle(place: Place) -> None:
    owner = place.serve(QUICK)
    pids = {name: spawned(owner, place.birth(name, keep=keep)) for name, keep in (("idle", 1.5), ("busy", 0.1))}
    flag = place.machine.root / "done"
    client = place.client("busy")
    client.execute(f"import os, time\nwhile not os.path.exists({str(flag)!r}): time.sleep(0.01)")
    talk = place.talk()
    until(lambda: talk.kernels()["busy"]["busy"] is True)
    owner.hang_up()
    # The idle one lives longer: when it is gone, the busy one was looked at more than once.
    until(gone(talk, "idle"))
    assert not lives(pids["idle"])
    assert talk.kernels()["busy"]["code"] is None
    assert lives(pids["busy"])
    client.stop_channels()
    flag.touch()
    until(gone(talk, "busy"))
    assert not lives(pids["busy"])
    assert place.directories() == []


def test_a_program_without_an_owner_is_busy_while_it_uses_the_cpu(place: Place) -> None:
    report = place.install_program("burner", "burn")
    place.install_program("rester")
    # Long enough for it to be given two hundredths of a CPU on a machine that has much else to do.
    owner = place.serve("kernels.BUSY_CHECK = 1.0")
    spawned(owner, place.birth("burner", keep=0.1, spec="burner"))
    spawned(owner, place.birth("rester", keep=2.5, spec="rester"))
    talk = place.talk()
    assert talk.kernels()["burner"]["busy"] is None
    owner.hang_up()
    until(gone(talk, "rester"))
    assert talk.kernels()["burner"]["code"] is None
    Path(f"{report}.rest").touch()
    until(gone(talk, "burner"))


def test_a_kernel_with_an_owner_is_never_ended(place: Place) -> None:
    owner = place.serve(QUICK)
    other = place.talk()
    spawned(owner, place.birth("held", keep=0.0))
    spawned(owner, place.birth("adopted", keep=0.0))
    spawned(other, place.birth("left", keep=0.8))
    assert "ok" in place.talk().ask("hold", kernel="adopted", owner="another", keep=0.0)
    other.hang_up()
    until(gone(owner, "left"))
    assert {name: state["held"] for name, state in owner.kernels().items()} == {"held": True, "adopted": True}


def test_an_owner_that_comes_back_starts_the_time_anew(place: Place) -> None:
    owner = place.serve(QUICK)
    spawned(owner, place.birth("a", keep=1.0))
    talk = place.talk()
    owner.hang_up()
    until(lambda: not talk.kernels()["a"]["held"])
    again = place.talk()
    again.ask("hold", kernel="a", owner=OWNER, keep=1.0)
    other = place.talk()
    spawned(other, place.birth("b", keep=1.2))
    other.hang_up()
    until(gone(talk, "b"))
    assert talk.kernels()["a"]["held"]
    again.ask("release", kernel="a")
    until(gone(talk, "a"))


# Streams

GREETING = 64


def frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        kind, length = HEADER.unpack_from(data)
        yield kind, data[HEADER.size : HEADER.size + length]
        data = data[HEADER.size + length :]


def stream(
    place: Place, received: int, *, kernel: str = "a", owner: str = OWNER, new: bool = False
) -> tuple[Talk, Any]:
    carrier = place.talk()
    answer = carrier.ask("stream", kernel=kernel, owner=owner, channel=1, token="token", received=received, new=new)
    return carrier, answer


def greeting(carrier: Talk) -> bytes:
    """Return the greeting that each ZMQ socket begins with (ZMTP 3.x), taken out of its frames."""
    got = b""
    while len(got) < GREETING:
        got += b"".join(payload for kind, payload in frames(carrier.received()) if kind == 0)
    return got


def test_a_stream_goes_on_where_it_was_cut(place: Place) -> None:
    talk = place.serve()
    spawned(talk, place.birth("a"))
    one, answer = stream(place, 0, new=True)
    assert answer["ok"] == {"received": 0}
    one.sock.sendall(HEADER.pack(0, GREETING) + b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48))
    first = greeting(one)
    assert first[:1] == b"\xff"
    one.hang_up()
    two, answer = stream(place, 10)
    assert answer["ok"] == {"received": GREETING}
    # Ours was taken: the kernel's READY command came after its greeting meanwhile.
    again = greeting(two)
    assert (first[10:GREETING] + again[GREETING - 10 :]) == again
    # A new carrier ends the older one.
    _three, answer = stream(place, len(again) + 10)
    assert answer["ok"] == {"received": GREETING}
    while two.received():
        pass


def test_a_stream_is_its_owners_alone(place: Place) -> None:
    talk = place.serve()
    spawned(talk, place.birth("a"))
    stream(place, 0, new=True)
    assert "somebody else's" in stream(place, 0, owner="another")[1]["error"]
    assert "no kernel" in stream(place, 0, kernel="b")[1]["error"]
    before = place.fds()
    talk.ask("hold", kernel="a", owner="another", keep=DAY)
    assert "no such stream" in stream(place, 0, owner="another")[1]["error"]
    # The former owner's is gone, with its carrier and the kernel's side.
    until(lambda: len(talk.kernels()) == 1 and place.fds() <= before)


def test_what_was_sent_before_the_end_arrives_however_slow_the_kernel_is(place: Place) -> None:
    report = place.install_program("slow", "count")
    talk = place.serve()
    spawned(talk, place.birth("a", spec="slow"))
    talk.kernels()
    before = place.fds()
    carrier, _ = stream(place, 0, new=True)
    size = 100_000
    for _ in range(40):
        carrier.sock.sendall(HEADER.pack(0, size) + bytes(size))
        if not Path(f"{report}.go").exists():
            # By now it has a full socket before it.
            Path(f"{report}.go").touch()
    carrier.sock.sendall(HEADER.pack(2, 0))
    # The answer to the end comes last, and the carrier is ours to close.
    data = carrier.received()
    while not data.endswith(HEADER.pack(2, 0)):
        data = data[-4096:] + carrier.received()
    assert place.fds() > before
    carrier.hang_up()
    until(lambda: Path(f"{report}.count").exists() and Path(f"{report}.count").read_text() == str(40 * size))
    until(lambda: list(talk.kernels()) == ["a"] and place.fds() == before)


def test_a_kernel_that_is_forked_while_a_stream_ends_does_not_keep_it_open(place: Place) -> None:
    report = place.install_program("slow", "count")
    talk = place.serve()
    spawned(talk, place.birth("a", spec="slow"))
    carrier, _ = stream(place, 0, new=True)
    # The kernel has not read anything when the end comes.
    carrier.sock.sendall((HEADER.pack(0, 100_000) + bytes(100_000)) * 3 + HEADER.pack(2, 0))
    assert carrier.received()
    spawned(talk, place.birth("b"))
    carrier.hang_up()
    Path(f"{report}.go").touch()
    until(Path(f"{report}.count").exists)


@pytest.mark.parametrize("received", [1 << 40, -1])
def test_a_stream_with_an_impossible_count_is_ended(place: Place, received: int) -> None:
    talk = place.serve()
    spawned(talk, place.birth("a"))
    talk.kernels()
    before = place.fds()
    carrier, _ = stream(place, received, new=True)
    assert carrier.received() == b""
    carrier.hang_up()
    until(lambda: len(talk.kernels()) == 1 and place.fds() == before)


def test_a_stream_that_is_asked_for_wrongly_is_answered_once(place: Place) -> None:
    talk = place.serve()
    spawned(talk, place.birth("a"))
    talk.kernels()
    before = place.fds()
    for wrong in ({"received": "x"}, {"received": None}, {"channel": 9}, {"channel": "shell"}, {"token": []}):
        fields = {"kernel": "a", "owner": OWNER, "channel": 1, "token": "t", "received": 0, "new": True, **wrong}
        assert "error" in talk.ask("stream", **fields), wrong
    assert list(talk.kernels()) == ["a"]
    assert place.fds() == before


def test_frames_that_are_none_end_the_stream_only(place: Place) -> None:
    talk = place.serve()
    pid = spawned(talk, place.birth("a"))
    carrier, _ = stream(place, 0, new=True)
    carrier.sock.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
    with selectors.DefaultSelector() as selector:
        selector.register(carrier.sock, selectors.EVENT_READ)
        assert selector.select(LIMIT)
    try:
        while carrier.received():
            pass
    except ConnectionResetError:
        pass
    assert list(talk.kernels()) == ["a"]
    assert lives(pid)
