"""Kernels of environments: forked by a process of the environment's own Python, and the forkserver's children."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client import BlockingKernelClient

import lima_kernels
from lima_kernels import paths
from lima_kernels.environment.spec import DEFAULT
from lima_kernels.errors import GuestError
from lima_kernels.guest.forkserver import environments
from lima_kernels.guest.kernels import Birth, Found, KernelFacts, Ownership
from lima_kernels.instances import Wish
from tests.fake_guest import FakeGuest

from .conftest import Machine
from .test_forkserver import LIMIT, OWNER, Place, Talk, printed, spawned
from .test_forkserver import place as place  # noqa: PLC0414
from .test_kernel import lives, until
from .watching import Process

LOCK = "0" * 64

# What an environment of the tests has: the packages that run them; and ours, which may be elsewhere.
HERE = f"{sysconfig.get_path('purelib')}\n{Path(lima_kernels.__file__).parents[1]}\n"


def build(place: Place, name: str = "data", number: str = "1", *, has_ipykernel: bool = True) -> str:
    """Build an environment whose packages are those of the tests, make it the present one, and return its Python."""
    return build_in(place.environments, name, number, has_ipykernel=has_ipykernel)


def build_in(base: Path, name: str = "data", number: str = "1", *, has_ipykernel: bool = True) -> str:
    venv = base / name / "builds" / number
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=LIMIT)
    if has_ipykernel:
        (packages_of(str(venv)) / "tests.pth").write_text(HERE)
    environments.write_manifest(str(venv), lock=LOCK, python=LOCK)
    current = base / name / "current"
    current.unlink(missing_ok=True)
    current.symlink_to(f"builds/{number}")
    return environments.interpreter(str(venv))


def found(python: str, lock: str) -> dict[str, Any]:
    return {"python": python, "lock": lock, "system": "", "drifted": False}


def packages_of(venv: str) -> Path:
    return Path(environments.site_packages(venv))


def module(python: str, name: str, text: str) -> None:
    """Give an environment a module that is found before all others."""
    packages = packages_of(str(Path(python).parents[1]))
    (packages / f"{name}.py").write_text(textwrap.dedent(text))


def slow(place: Place, python: str) -> Path:
    """Let an environment's ipykernel take until a file exists; returns it."""
    go = place.machine.root / "go"
    wait = f"while not os.path.exists({str(go)!r}): time.sleep(0.01)"
    # As the interpreter starts; other processes of this Python need not wait.
    module(python, "slowly", f"import os, sys, time\nif 'zygote' in sys.argv:\n    {wait}\n")
    (packages_of(str(Path(python).parents[1])) / "slowly.pth").write_text("import slowly\n")
    return go


def zygotes(place: Place) -> list[psutil.Process]:
    # Kernels look the same to whoever asks for their command.
    return [child for child in psutil.Process(place.pid).children() if child.name() == environments.ZYGOTE]


def states(place: Place) -> list[str]:
    return [child.status() for child in psutil.Process(place.pid).children()]


def answers(talk: Talk, numbers: Iterable[int]) -> list[dict[str, Any]]:
    """Return the answers to requests, in whatever order they come."""
    found: dict[int, dict[str, Any]] = {}
    for number in numbers:
        while number not in found:
            message = talk.event()
            found[message.get("id", 0)] = message
    return [found[number] for number in numbers]


@pytest.fixture
def clients(place: Place) -> Iterator[list[BlockingKernelClient]]:
    made: list[BlockingKernelClient] = []
    yield made
    for client in made:
        client.stop_channels()


def value(client: BlockingKernelClient, expression: str) -> Any:
    return json.loads(printed(client, f"import json; print(json.dumps({expression}))")["stdout"])


# A kernel


def test_a_kernel_is_its_environments(place: Place, clients: list[BlockingKernelClient]) -> None:
    python = build(place)
    talk = place.serve()
    assert talk.ask("environment", name="data")["ok"] == found(python, LOCK)
    pid = spawned(talk, place.birth("a", python=python, notes=["hello"], env={"OWN": "1"}))
    client = place.client("a")
    clients.append(client)
    assert printed(client, "1")["stderr"] == "[lima-kernels] hello\n"
    venv = str(Path(python).parents[1])
    said = value(
        client,
        "[__import__('sys').prefix, __import__('sys').executable, __import__('os').environ['PATH'].split(':')[0],"
        " __import__('os').getcwd(), __import__('os').environ['OWN'], __import__('os').getpid(),"
        " __import__('os').getsid(0), __import__('os').getppid(), open('/proc/self/oom_score_adj').read(),"
        " open('/proc/self/comm').read()]",
    )
    notebooks = str(place.machine.notebooks)
    assert said == [venv, python, f"{venv}/bin", notebooks, "1", pid, pid, place.pid, "0\n", "python\n"]
    assert "lima" in value(client, "list(get_ipython().magics_manager.magics['line'])")
    assert "zygote" not in value(client, "__import__('sys').argv")
    assert talk.kernels()["a"]["busy"] is False
    # The program that a cell starts is the environment's, too.
    assert printed(client, "!python -c 'import sys; print(sys.prefix)'")["stdout"].strip() == venv


def test_its_own_kernels_stay_the_forkservers(place: Place, clients: list[BlockingKernelClient]) -> None:
    python = build(place)
    talk = place.serve()
    spawned(talk, place.birth("a", python=python))
    spawned(talk, place.birth("b"))
    clients += [place.client(name) for name in ("a", "b")]
    prefixes = [value(client, "__import__('sys').prefix") for client in clients]
    assert prefixes == [str(Path(python).parents[1]), sys.prefix]


@pytest.mark.parametrize(
    ("cell", "code"),
    [
        ("import os; os._exit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
    ],
)
def test_its_exit_code_is_known(place: Place, clients: list[BlockingKernelClient], cell: str, code: int) -> None:
    talk = place.serve()
    spawned(talk, place.birth("a", python=build(place)))
    clients.append(place.client("a"))
    clients[0].execute(cell)
    ended = talk.event()
    assert (ended["event"], ended["kernel"], ended["code"]) == ("exit", "a", code)
    assert talk.ask("remove", kernel="a")["ok"] == {}
    assert place.directories() == []


def test_it_can_be_interrupted_held_and_removed(place: Place, clients: list[BlockingKernelClient]) -> None:
    talk = place.serve()
    pid = spawned(talk, place.birth("a", python=build(place)))
    clients.append(place.client("a"))
    assert talk.ask("hold", kernel="a", owner="another", keep=1.0)["ok"]["connection"] == place.connection("a")
    printed(clients[0], "import subprocess; child = subprocess.Popen(['sleep', '300'], start_new_session=False)")
    child = value(clients[0], "child.pid")
    clients[0].execute("print('begun', flush=True); import time; time.sleep(300)")
    until(lambda: talk.kernels()["a"]["busy"] is True)
    while clients[0].get_iopub_msg(timeout=LIMIT)["msg_type"] != "stream":
        pass
    talk.ask("signal", kernel="a", signum=signal.SIGINT)
    until(lambda: talk.kernels()["a"]["busy"] is False)
    talk.ask("remove", kernel="a")
    assert not lives(pid)
    until(lambda: not lives(child))


def test_two_pythons_at_once(place: Place, clients: list[BlockingKernelClient]) -> None:
    pythons = [build(place, "one"), build(place, "two")]
    talk = place.serve()
    numbers = [
        talk.send("spawn", **place.birth(f"{name}{count}", python=python))
        for count in range(3)
        for name, python in zip("ab", pythons, strict=True)
    ]
    assert all("ok" in answer for answer in answers(talk, numbers)), talk.events
    assert len(zygotes(place)) == 2
    clients += [place.client(name) for name in ("a2", "b0")]
    prefixes = [value(client, "__import__('sys').prefix") for client in clients]
    assert prefixes == [str(Path(python).parents[1]) for python in pythons]
    for name in talk.kernels():
        assert talk.ask("remove", kernel=name)["ok"] == {}
    assert place.directories() == []


def test_spawn_and_remove_leave_no_descriptor(place: Place) -> None:
    python = build(place)
    talk = place.serve()
    spawned(talk, place.birth("first", python=python))
    talk.ask("remove", kernel="first")
    (zygote,) = zygotes(place)
    before, zygotes_before = place.fds(), zygote.num_fds()
    pids = []
    for _ in range(5):
        pids.append(spawned(talk, place.birth("a", python=python)))
        assert talk.ask("remove", kernel="a")["ok"] == {}
    assert (place.fds(), zygote.num_fds()) == (before, zygotes_before)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert place.directories() == []
    assert psutil.STATUS_ZOMBIE not in states(place)


def test_a_kernel_has_no_descriptor_of_another_or_of_its_zygote(place: Place) -> None:
    python = build(place)
    talk = place.serve()
    pids = [spawned(talk, place.birth("own"))]
    pids += [spawned(talk, place.birth(f"a{number}", python=python)) for number in range(4)]
    # Once all of them have started; what one had of others would be more each time.
    until(lambda: len({len(os.listdir(f"/proc/{pid}/fd")) for pid in pids}) == 1)
    # None of them keeps a zygote alive whose forkserver is gone.
    (zygote,) = zygotes(place)
    place.kill()
    until(lambda: not lives(zygote.pid))


# Kernel specs


def test_kernel_specs_of_an_environment(place: Place) -> None:
    python = build(place)
    share = Path(python).parents[1] / "share/jupyter/kernels/other"
    report = place.install_program("other", "{prefix}")
    share.parent.mkdir(parents=True)
    (place.machine.guest_home / ".local/share/jupyter/kernels/other").rename(share)
    place.install_program("everywhere")
    talk = place.serve()
    assert "other" not in talk.ask("specs")["ok"]
    found = talk.ask("specs", python=python)["ok"]
    # The forkserver's own ipykernel is not the environment's.
    assert "everywhere" in found
    assert "other" in found
    assert "python3" not in found
    spawned(talk, place.birth("a", spec="other", python=python))
    given = json.loads(report.read_text())
    assert given["argv"][3] == str(Path(python).parents[1])
    assert given["env"]["PATH"].split(":")[0] == str(Path(python).parent)
    assert zygotes(place) == []
    answer = talk.ask("spawn", **place.birth("b", spec="python3", python=python))
    assert answer["error"].startswith("the guest has no kernel 'python3'; it has: ")


# From the host


async def test_the_host_finds_an_environment_and_starts_a_kernel_there(
    machine: Machine, guest: FakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = machine.guest_home / "environments"
    monkeypatch.setattr(paths, "GUEST_ENVIRONMENTS", str(base))
    python = build_in(base)
    share = Path(python).parents[1] / "share/jupyter/kernels/other"
    share.mkdir(parents=True)
    (share / "kernel.json").write_text(json.dumps({"argv": ["x"], "display_name": "Other", "language": "other"}))
    process = Process()
    try:
        wish = Wish(environment=DEFAULT, attach=False, directory=machine.notebooks)
        forkserver = (await process.vm("one").ensure(wish)).forkserver
        assert await forkserver.environment("data") == Found(**found(python, LOCK))
        assert await forkserver.environment("other") == Found(**found("", ""))
        with pytest.raises(
            GuestError, match=r"^The guest could not find an environment: '\.\.' cannot be an envir.*\.$"
        ):
            await forkserver.environment("..")
        assert (await forkserver.specs(python))["other"].display_name == "Other"
        assert "other" not in await forkserver.specs()
        names = ("shell", "iopub", "stdin", "control", "hb")
        birth = Birth(
            cwd=str(machine.notebooks),
            env={},
            connection={"transport": "ipc", "ip": str(machine.guest_home / "c"), "key": "k"}
            | {f"{name}_port": number for number, name in enumerate(names, 1)},
            arguments=[],
            ownership=Ownership("t", 60.0),
            facts=KernelFacts(),
            python=python,
        )
        pid = await forkserver.spawn("k1", birth, timeout=60)
        assert python in psutil.Process(pid).cmdline()
        shutil.rmtree(base)
        with pytest.raises(GuestError, match=r"^The guest could not spawn a kernel: .* is not there any more\.$"):
            await forkserver.spawn("k2", birth, timeout=60)
        await forkserver.remove("k1")
    finally:
        await process.close()


# What cannot be


@pytest.mark.parametrize(
    "python",
    [
        "/usr/bin/python3",
        "{base}/data/builds/1/bin/python3",
        "{base}/data/current/bin/python",
        "{base}/data/builds/../bin/python",
        "{base}/../data/builds/1/bin/python",
        "{base}/data/builds/1/bin/../bin/python",
        "{base}//data/builds/1/bin/python",
        "{base}x/data/builds/1/bin/python",
        "{base}/data/builds/1\n/bin/python",
        "{base}/data/builds/1/bin/python\n",
        "{base}/data/builds/1/bin/python\0",
        "{base}",
        ["{base}/data/builds/1/bin/python"],
        {"a": 1},
        7,
        "é" * 5000,
    ],
)
def test_a_python_that_is_none_of_an_environment(place: Place, python: Any) -> None:
    build(place)
    talk = place.serve()
    python = python.format(base=place.environments) if isinstance(python, str) else python
    for op in ("spawn", "specs"):
        answer = talk.ask(op, **place.birth("a", python=python))
        assert answer["error"].endswith("is no Python of an environment"), answer
    assert place.directories() == []
    assert place.process_children() == []


@pytest.mark.parametrize("name", ["", ".", "..", "../data", "a/b", "Data", "-a", "data\n", "é", "x" * 42, None, 5, []])
def test_a_name_that_is_no_environments(place: Place, name: Any) -> None:
    talk = place.serve()
    assert talk.ask("environment", name=name)["error"].endswith("cannot be an environment's name")


def test_an_environment_that_was_removed(place: Place) -> None:
    python = build(place)
    talk = place.serve()
    pid = spawned(talk, place.birth("a", python=python))
    shutil.rmtree(place.environments / "data")
    answer = talk.ask("spawn", **place.birth("b", python=python))
    assert answer["error"] == f"the environment's Python {python} is not there any more"
    assert talk.ask("environment", name="data")["ok"] == found("", "")
    assert lives(pid)


def test_an_environment_without_ipykernel(place: Place) -> None:
    python = build(place, has_ipykernel=False)
    talk = place.serve()
    for _ in range(2):
        answer = talk.ask("spawn", **place.birth("a", python=python))
        assert answer["error"] == f"ipykernel cannot be imported by {python}: No module named 'ipykernel'"
    assert place.directories() == []
    (packages_of(str(Path(python).parents[1])) / "tests.pth").write_text(HERE)
    spawned(talk, place.birth("a", python=python))


def test_an_ipykernel_that_is_broken(place: Place) -> None:
    python = build(place)
    module(python, "ipykernel", "raise SyntaxError('of another age')")
    talk = place.serve()
    answer = talk.ask("spawn", **place.birth("a", python=python))
    what = f"the process of {python} that forks kernels ended with exit code 1"
    assert answer["error"] == what + ": SyntaxError: of another age"
    assert any("raise SyntaxError" in line for line in answer["log"])
    module(python, "ipykernel", "import os; os.abort()")
    assert (
        f"{python} that forks kernels was killed by signal 6"
        in talk.ask("spawn", **place.birth("a", python=python))["error"]
    )
    assert place.directories() == []
    until(lambda: psutil.STATUS_ZOMBIE not in states(place))


def test_a_python_that_cannot_be_run(place: Place) -> None:
    python = build(place)
    os.unlink(python)
    Path(python).write_text("#!/no/such/interpreter\n")
    os.chmod(python, 0o755)
    talk = place.serve()
    talk.kernels()
    before = place.fds()
    assert "No such file" in talk.ask("spawn", **place.birth("a", python=python))["error"]
    assert place.directories() == []
    assert place.fds() == before


@pytest.mark.parametrize(
    "said",
    [
        "b'nonsense'",
        "b'[1]'",
        "b'7'",
        "b'null'",
        "b'[' * 50_000",
        "b'\\xff' * 1000",
        """b'{"failure": ["odd"]}'""",
        """b'{}', b'{}'""",
        """b'{}', b'{"pid": "x"}'""",
        """b'{}', b'{"pid": 1}'""",
        """b'{}', b'{"pid": %d}' % os.getppid()""",
        """b'{}', b'{"pid": %d}' % os.getpid()""",
        """b'{}', b'{"pid": -1}'""",
        """b'{}', b'{"pid": 1e400}'""",
        """b'{}', b'{"error": {}}'""",
    ],
)
def test_an_environment_that_says_what_cannot_be(place: Place, said: str) -> None:
    python = build(place)
    module(
        python,
        "rude",
        f"""
        import os, sys
        if "zygote" in sys.argv:
            for text in ({said},):
                os.write(3, text)
            os.read(3, 1)
            os._exit(0)
        """,
    )
    (packages_of(str(Path(python).parents[1])) / "rude.pth").write_text("import rude\n")
    talk = place.serve()
    own = spawned(talk, place.birth("own"))
    assert talk.ask("spawn", **place.birth("a", python=python))["error"]
    assert list(talk.kernels()) == place.directories() == ["own"]
    assert lives(own)
    until(lambda: place.process_children() == [own])


# A zygote's life


def test_nobody_waits_for_an_import_but_who_asked(place: Place, clients: list[BlockingKernelClient]) -> None:
    python = build(place)
    go = slow(place, python)
    talk = place.serve()
    waiting = [talk.send("spawn", **place.birth(name, python=python)) for name in ("a", "b", "c")]
    other = place.talk()
    spawned(other, place.birth("own"))
    assert list(other.kernels()) == ["own"]
    assert "new" in other.ask("spawn", **place.birth("a", python=python))["error"]
    assert "no kernel" in other.ask("signal", kernel="a", signum=9)["error"]
    # One of those who wait is taken back.
    assert other.ask("remove", kernel="b")["ok"] == {}
    assert "error" in talk.answer(waiting[1])
    go.touch()
    assert all("ok" in answer for answer in answers(talk, (waiting[0], waiting[2])))
    assert sorted(other.kernels()) == ["a", "c", "own"]
    assert place.directories() == ["a", "c", "own"]
    clients.append(place.client("c"))
    assert value(clients[0], "1") == 1


def test_a_client_that_hangs_up_meanwhile_has_a_kernel_all_the_same(place: Place) -> None:
    python = build(place)
    go = slow(place, python)
    talk = place.serve("kernels.BUSY_CHECK = 0.3")
    talk.send("spawn", **place.birth("kept", python=python))
    talk.send("spawn", **place.birth("short", python=python, keep=0.5))
    other = place.talk()
    until(lambda: place.directories() == ["kept", "short"])
    talk.hang_up()
    go.touch()
    until(lambda: list(other.kernels()) == ["kept"] and place.directories() == ["kept"])
    assert other.kernels()["kept"]["held"] is False


def test_an_import_that_takes_too_long(place: Place) -> None:
    python = build(place)
    go = slow(place, python)
    talk = place.serve("zygotes.LIMITS[zygotes.State.IMPORTING] = 1.0")
    answer = talk.ask("spawn", **place.birth("a", python=python))
    assert answer["error"] == f"{python} did not import ipykernel within 1 s"
    until(lambda: place.process_children() == [])
    go.touch()
    talk.hang_up()
    place.kill()
    spawned(place.serve(), place.birth("a", python=python))


def test_a_zygote_that_does_not_answer_is_ended(place: Place) -> None:
    python = build(place)
    talk = place.serve("zygotes.LIMITS[zygotes.State.FORKING] = 1.0")
    spawned(talk, place.birth("a", python=python))
    (zygote,) = zygotes(place)
    zygote.suspend()
    # Orphans have to wait meanwhile, and are reaped after all.
    answer = talk.ask("spawn", **place.birth("b", python=python))
    assert answer["error"] == f"{python} did not fork a kernel within 1 s"
    until(lambda: not psutil.pid_exists(zygote.pid))
    spawned(talk, place.birth("b", python=python))
    assert sorted(talk.kernels()) == ["a", "b"]


def test_a_guest_is_in_use_while_a_zygote_imports(place: Place) -> None:
    python = build(place)
    slow(place, python)
    talk = place.serve("zygotes.LIMITS[zygotes.State.IMPORTING] = 1.5")
    number = talk.send("spawn", **place.birth("a", python=python))
    talk.ask("settings", idle_timeout=0.2)
    assert "did not import" in talk.answer(number)["error"]
    assert talk.events == []
    assert talk.event()["event"] == "power off"


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_zygote_that_was_killed(place: Place, signum: int) -> None:
    python = build(place)
    talk = place.serve()
    pid = spawned(talk, place.birth("a", python=python))
    (first,) = zygotes(place)
    first.send_signal(signum)
    until(lambda: not psutil.pid_exists(first.pid))
    spawned(talk, place.birth("b", python=python))
    assert lives(pid)
    (second,) = zygotes(place)
    second.suspend()
    number = talk.send("spawn", **place.birth("c", python=python))
    place.talk().kernels()
    second.kill()
    answer = talk.answer(number)
    assert answer["error"] == f"the process of {python} that forks kernels was killed by signal 9"
    spawned(talk, place.birth("c", python=python))
    assert sorted(talk.kernels()) == place.directories() == ["a", "b", "c"]


def test_a_zygote_that_nobody_uses_ends(place: Place) -> None:
    python = build(place)
    talk = place.serve("zygotes.LIMITS[zygotes.State.WAITING] = 0.5")
    talk.kernels()
    before = place.fds()
    pid = spawned(talk, place.birth("a", python=python))
    until(lambda: not zygotes(place))
    assert lives(pid)
    until(lambda: psutil.STATUS_ZOMBIE not in states(place))
    assert talk.kernels()["a"]["code"] is None
    # The kernel's link.
    assert place.fds() == before + 1
    spawned(talk, place.birth("b", python=python))


def test_what_is_installed_anew_is_imported_anew(place: Place, clients: list[BlockingKernelClient]) -> None:
    python = build(place)
    module(python, "kept", "VERSION = 1")
    (packages_of(str(Path(python).parents[1])) / "kept.pth").write_text("import kept\n")
    talk = place.serve()
    for name in ("a", "b"):
        spawned(talk, place.birth(name, python=python))
    (first,) = zygotes(place)
    # Longer than before: the clock of files may be slow.
    module(python, "kept", "VERSION = 2_000")
    spawned(talk, place.birth("c", python=python))
    (second,) = zygotes(place)
    assert first.pid != second.pid
    clients += [place.client(name) for name in ("a", "c")]
    assert [value(client, "__import__('kept').VERSION") for client in clients] == [1, 2000]
    assert sorted(talk.kernels()) == ["a", "b", "c"]


# The forkserver's own end


def test_a_new_forkserver_takes_the_kernels_over(place: Place, clients: list[BlockingKernelClient]) -> None:
    python = build(place)
    talk = place.serve()
    pids = {name: spawned(talk, place.birth(name, python=python)) for name in ("a", "b")}
    clients.append(place.client("a"))
    printed(clients[0], "x = 'kept'")
    (zygote,) = zygotes(place)
    place.kill()
    until(lambda: not lives(zygote.pid))
    talk = place.serve()
    assert {name: state["pid"] for name, state in talk.kernels().items()} == pids
    assert printed(clients[0], "print(x)") == {"stdout": "kept\n"}
    spawned(talk, place.birth("c", python=python))
    os.kill(pids["b"], signal.SIGKILL)
    ended = talk.event()
    assert (ended["kernel"], ended["code"]) == ("b", -signal.SIGKILL)
    assert talk.ask("hold", kernel="a", owner=OWNER, keep=5.0)["ok"]["connection"] == place.connection("a")
    for name in ("a", "b", "c"):
        talk.ask("remove", kernel=name)
    assert place.directories() == []


def test_a_kernel_that_no_forkserver_knows_does_not_begin(place: Place) -> None:
    python = build(place)
    talk = place.serve()
    spawned(talk, place.birth("first", python=python))
    talk.ask("remove", kernel="first")
    (zygote,) = zygotes(place)
    zygote.suspend()
    talk.send("spawn", **place.birth("a", python=python))
    # Answered after the order has gone out.
    place.talk().kernels()
    os.kill(place.pid, signal.SIGSTOP)
    zygote.resume()

    def processes() -> list[int]:
        return [found.pid for found in psutil.process_iter(["cmdline"]) if python in (found.info["cmdline"] or ())]

    # It has forked, and nobody heard of it.
    until(lambda: len(processes()) == 2)
    assert os.listdir(place.root / "k" / "a") == []
    place.kill()
    until(lambda: processes() == [])
    talk = place.serve()
    assert talk.kernels() == {}
    assert place.directories() == []
    spawned(talk, place.birth("a", python=python))


def test_a_kernel_that_is_killed_before_anybody_knows_of_it(place: Place) -> None:
    python = build(place)
    module(
        python,
        "late",
        """
        import os, sys, time

        def command(process):
            try:
                with open("/proc/%s/cmdline" % process) as file:
                    return file.read()
            except OSError:
                return ""

        def waitpid(pid, options, wait=os.waitpid):
            found = wait(pid, options)
            for entry in filter(str.isdigit, os.listdir("/proc")):
                if entry != str(os.getpid()) and command(entry) == command("self"):
                    os.kill(int(entry), 9)
            # The forkserver is told of its end, and not yet of its birth.
            time.sleep(0.3)
            return found

        if "zygote" in sys.argv:
            os.waitpid = waitpid
        """,
    )
    (packages_of(str(Path(python).parents[1])) / "late.pth").write_text("import late\n")
    talk = place.serve()
    answer = talk.ask("spawn", **place.birth("a", python=python))
    assert answer["error"] == "the kernel ended before it was ready"
    ended = talk.event()
    assert (ended["event"], ended["kernel"], ended["code"]) == ("exit", "a", -signal.SIGKILL)
    assert talk.kernels()["a"]["code"] == -signal.SIGKILL
    until(lambda: psutil.STATUS_ZOMBIE not in states(place))


# Orphans


def test_orphans_are_reaped_and_harm_nobody(place: Place, clients: list[BlockingKernelClient]) -> None:
    python = build(place)
    talk = place.serve()
    spawned(talk, place.birth("a", python=python))
    clients.append(place.client("a"))
    orphans = value(
        clients[0],
        "[int(__import__('subprocess').check_output(['sh', '-c', 'setsid sh -c \"exit %d\" >&- & echo $!' % n]))"
        " for n in range(20)]",
    )
    assert len(orphans) == 20
    until(lambda: not any(psutil.pid_exists(pid) for pid in orphans))
    assert talk.kernels()["a"]["code"] is None
    # One that lives on is nobody's, and is reaped when it ends.
    sleeps = "int(__import__('subprocess').check_output(['sh', '-c', 'setsid sleep 300 >&- & echo $!']))"
    pid = value(clients[0], sleeps)
    until(lambda: psutil.Process(pid).ppid() == place.pid)
    talk.ask("remove", kernel="a")
    assert lives(pid)
    os.kill(pid, signal.SIGTERM)
    until(lambda: not psutil.pid_exists(pid))
    assert talk.kernels() == {}


def test_many_at_once(place: Place) -> None:
    """Starts, ends and orphans in one another's way."""
    python = build(place)
    talk = place.serve()
    numbers = {}
    for count in range(12):
        name = f"k{count}"
        numbers[name] = talk.send("spawn", **place.birth(name, **({"python": python} if count % 3 else {})))
        if count % 4 == 1:
            talk.send("remove", kernel=name)
    given = dict(zip(numbers, answers(talk, numbers.values()), strict=True))
    known = talk.kernels()
    for name, answer in given.items():
        taken_back = int(name[1:]) % 4 == 1
        assert ("error" in answer) == taken_back, (name, answer)
        assert (name in known) != taken_back
    assert all(state["code"] is None for state in known.values())
    assert place.directories() == sorted(known)
    for name in known:
        talk.ask("remove", kernel=name)
    until(lambda: len(place.process_children()) == len(zygotes(place)) == 1)
    assert place.directories() == []
