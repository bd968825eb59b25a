"""Standby kernels: handed out, they are what a fresh kernel would be; whatever befalls one, there is a kernel."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client import BlockingKernelClient

from tests.client import ENDLESS, control
from tests.fake_guest import FakeGuest
from tests.kernel_report import READS, REPORT

from .conftest import Machine, configure
from .test_forkserver import LIMIT, Place, Talk, printed, spawned
from .test_forkserver import place as place  # noqa: PLC0414
from .test_kernel import lives, started, until
from .test_zygotes import answers, build, packages_of

# What lets another be made soon, and lets one be seen that is prepared.
QUICK = """
from forkserver import standbys
standbys.PAUSE = 0.05
hear = standbys.Standby._hear
def heard(self, link, said):
    if said:
        open(self.directory + "/prepared", "w").close()
    hear(self, link, said)
standbys.Standby._hear = heard
"""
DAY_ENV = {"OWN": "1", "OMP_NUM_THREADS": "3"}


@pytest.fixture
def clients(place: Place) -> Iterator[list[BlockingKernelClient]]:
    (place.machine.notebooks / "reads.py").write_text(READS)
    made: list[BlockingKernelClient] = []
    yield made
    for client in made:
        client.stop_channels()


def serve(place: Place, number: int = 1, launcher: str = "") -> Talk:
    """Start a forkserver that has so many standbys, and wait until they are ready."""
    talk = place.serve(QUICK + launcher)
    talk.ask("settings", idle_timeout=0.0, standby_kernels=number)
    until(lambda: len(standbys(place)) == number, LIMIT)
    return talk


def standbys(place: Place) -> list[int]:
    """Return the processes that wait for an order, by their score, once all of them are prepared."""
    directories = [path.parent for path in (place.root / "k").glob("*/prepared")]
    waiting = [directory for directory in directories if not (directory / "kernel.json").exists()]
    pids = [child.pid for child in psutil.Process(place.pid).children() if goes_first(child.pid)]
    return sorted(pids) if len(waiting) == len(pids) else []


def goes_first(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/oom_score_adj").read_text() == "500\n"
    except OSError:
        return False


def birth(place: Place, name: str, **other: Any) -> dict[str, Any]:
    return place.birth(name, **{"env": DAY_ENV, **other})


def report(client: BlockingKernelClient) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(printed(client, REPORT)["stdout"])
    return said


def have(place: Place, clients: list[BlockingKernelClient], name: str) -> BlockingKernelClient:
    clients.append(place.client(name))
    return clients[-1]


# What it is


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"TZ": "Asia/Tokyo", "JPY_SESSION_NAME": "/a/b.ipynb", "OWN": "2"},
        {
            "TERM": "dumb",
            "PAGER": "less",
            "FORCE_COLOR": "0",
            "MPLBACKEND": "agg",
            "LANG": "C",
            "PATH": "/usr/bin:/bin",
        },
    ],
    ids=["plain", "notebook", "colliding"],
)
def test_it_is_what_a_fresh_kernel_is(place: Place, clients: list[BlockingKernelClient], env: dict[str, str]) -> None:
    talk = serve(place)
    (waiting,) = standbys(place)
    pid = spawned(talk, birth(place, "standby", env=env))
    assert pid == waiting
    first = report(have(place, clients, "standby"))
    until(lambda: len(standbys(place)) == 1, LIMIT)
    talk.ask("settings", idle_timeout=0.0, standby_kernels=0)
    spawned(talk, birth(place, "fresh", env=env))
    assert report(have(place, clients, "fresh")) == first
    assert first["imported"] == {name: env.get(name) for name in ("OMP_NUM_THREADS", "OWN", "TZ")}
    assert first["cwd"] == first["starting"] == str(place.machine.notebooks)
    assert first["zone"] == ("JST" if "TZ" in env else first["zone"])


def test_no_two_have_the_same_random_numbers(place: Place, clients: list[BlockingKernelClient]) -> None:
    talk = serve(place, 2)
    for name in ("a", "b"):
        spawned(talk, birth(place, name))
    code = "import random, uuid, os, secrets; print(random.random(), uuid.uuid4(), os.getpid(), secrets.token_hex())"
    said = [printed(have(place, clients, name), code)["stdout"].split() for name in ("a", "b")]
    assert all(one != other for one, other in zip(*said, strict=True))


def test_its_history_begins_with_its_notebook(place: Place, clients: list[BlockingKernelClient]) -> None:
    talk = serve(place)
    # One that waits has no place in the history.
    assert not (place.machine.guest_home / ".ipython" / "profile_default" / "history.sqlite").exists()
    spawned(talk, birth(place, "a"))
    first = have(place, clients, "a")
    printed(first, "'of the first'")
    until(lambda: len(standbys(place)) == 1, LIMIT)
    spawned(talk, birth(place, "b"))
    second = have(place, clients, "b")
    printed(second, "'of the second'")
    said = printed(
        second, "print(list(get_ipython().history_manager.get_range(0)), get_ipython().history_manager.session_number)"
    )
    assert "of the second" in said["stdout"]
    assert "of the first" not in said["stdout"]
    assert said["stdout"].endswith(" 2\n")


def test_the_users_startup_runs_in_the_notebooks_place(place: Place, clients: list[BlockingKernelClient]) -> None:
    startup = place.machine.guest_home / ".ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    ran = place.machine.root / "ran"
    (startup / "00.py").write_text(
        "import os\nmine = 5\n"
        f"with open({str(ran)!r}, 'a') as file:\n    print(os.getcwd(), os.environ.get('OWN'), file=file)\n"
    )
    talk = serve(place)
    assert not ran.exists()
    (waiting,) = standbys(place)
    assert spawned(talk, birth(place, "a")) == waiting
    assert printed(have(place, clients, "a"), "print(mine)")["stdout"] == "5\n"
    assert ran.read_text() == f"{place.machine.notebooks} 1\n"


def test_notes_signals_and_its_end(place: Place, clients: list[BlockingKernelClient]) -> None:
    talk = serve(place)
    pid = spawned(talk, birth(place, "a", notes=["hello"]))
    client = have(place, clients, "a")
    assert printed(client, "1")["stderr"] == "[lima-kernels] hello\n"
    assert talk.kernels()["a"]["busy"] is False
    talk.ask("note", kernel="a", text="again")
    assert printed(client, "1")["stderr"] == "[lima-kernels] again\n"
    client.execute(f"print('begins', flush=True)\n{ENDLESS}")
    # Of what is interrupted before, ipykernel sends no reply.
    while client.get_iopub_msg(timeout=LIMIT)["msg_type"] != "stream":
        pass
    assert talk.kernels()["a"]["busy"] is True
    talk.ask("signal", kernel="a", signum=signal.SIGINT)
    until(lambda: talk.kernels()["a"]["busy"] is False, LIMIT)
    talk.ask("signal", kernel="a", signum=signal.SIGKILL)
    while (event := talk.event()).get("event") != "exit":
        pass
    assert (event["kernel"], event["code"]) == ("a", -signal.SIGKILL)
    assert not lives(pid)
    talk.ask("remove", kernel="a")
    assert talk.kernels() == {}


# Which are kept


def test_another_is_made_when_one_is_taken(place: Place) -> None:
    talk = serve(place)
    pids = set()
    for number in range(4):
        (waiting,) = standbys(place)
        assert spawned(talk, birth(place, f"k{number}")) == waiting
        pids.add(waiting)
        until(lambda: len(standbys(place)) == 1, LIMIT)
    assert len(pids) == 4
    fds = place.fds()
    for number in range(4):
        talk.ask("remove", kernel=f"k{number}")
    assert len(place.directories()) == 1
    spawned(talk, birth(place, "last"))
    until(lambda: len(standbys(place)) == 1, LIMIT)
    assert place.fds() < fds
    assert not [child for child in psutil.Process(place.pid).children() if child.status() == psutil.STATUS_ZOMBIE]


def test_several_at_once_and_none(place: Place) -> None:
    talk = serve(place, 3)
    before = standbys(place)
    numbers = [talk.send("spawn", **birth(place, f"k{number}")) for number in range(3)]
    assert {answer["ok"]["pid"] for answer in answers(talk, numbers)} == set(before)
    until(lambda: len(standbys(place)) == 3, LIMIT)
    talk.ask("settings", idle_timeout=0.0, standby_kernels=0)
    until(lambda: not standbys(place), LIMIT)
    until(lambda: place.directories() == ["k0", "k1", "k2"], LIMIT)
    assert len(talk.kernels()) == 3


def test_it_is_no_kernel_to_anybody(place: Place) -> None:
    talk = serve(place)
    assert talk.kernels() == {}
    # The guest is idle with it.
    place.machine.script("sudo", f"touch {place.machine.root}/off")
    talk.ask("settings", idle_timeout=0.2, standby_kernels=1)
    until((place.machine.root / "off").exists, LIMIT)


def test_a_new_forkserver_has_its_own(place: Place) -> None:
    serve(place)
    (old,) = standbys(place)
    place.kill()
    until(lambda: not lives(old), LIMIT)
    place.serve(QUICK)
    # Nobody had to ask for it.
    until(lambda: len(standbys(place)) == 1, LIMIT)
    assert len(place.directories()) == 1


def test_there_is_none_while_memory_is_short(place: Place) -> None:
    short = place.machine.root / "short"
    short.touch()
    launcher = (
        "from forkserver import memory\nusual = memory.usage\n"
        f"memory.usage = lambda: {{'total': 100, 'used': 85}} if os.path.exists({str(short)!r}) else usual()\n"
    )
    talk = place.serve(QUICK + launcher)
    talk.ask("settings", idle_timeout=0.0, standby_kernels=1)
    pid = spawned(talk, birth(place, "a"))
    assert [child.pid for child in psutil.Process(place.pid).children()] == [pid]
    short.unlink()
    spawned(talk, birth(place, "b"))
    until(lambda: len(standbys(place)) == 1, LIMIT)


# What it does not serve


@pytest.mark.parametrize(
    "other",
    [
        {"arguments": ["--IPKernelApp.quiet=True"]},
        {"env": {"PYTHONPATH": "/nowhere"}},
        {"env": {"IPYTHONDIR": "/tmp/ipython-of-a-test"}},
        {"env": {"HOME": "/tmp"}},
        {"env": {"GEVENT_SUPPORT": "no"}},
    ],
    ids=["arguments", "PYTHONPATH", "IPYTHONDIR", "HOME", "GEVENT"],
)
def test_what_ipykernel_looks_at_early_has_a_fresh_kernel(place: Place, other: dict[str, Any]) -> None:
    talk = serve(place)
    (waiting,) = standbys(place)
    assert spawned(talk, birth(place, "a", **other)) != waiting
    assert waiting in standbys(place)


def test_the_debugger_works_and_sees_its_variables(place: Place, clients: list[BlockingKernelClient]) -> None:
    """It is imported before the fork, and looks at variables when it is imported."""
    talk = serve(place)
    (waiting,) = standbys(place)
    assert spawned(talk, birth(place, "standby")) == waiting
    spawned(talk, birth(place, "fresh", arguments=["--IPKernelApp.quiet=True"]))
    spawned(talk, birth(place, "own", env={"PYDEVD_LOAD_VALUES_ASYNC": "1"}))
    arguments = {"clientID": "test", "adapterID": "", "pathFormat": "path"}
    initialize = {"type": "request", "seq": 1, "command": "initialize", "arguments": arguments}
    sees = "from _pydevd_bundle import pydevd_constants as c; print(c.LOAD_VALUES_ASYNC)"
    for name, seen in (("standby", "False\n"), ("fresh", "False\n"), ("own", "True\n")):
        client = have(place, clients, name)
        assert printed(client, sees) == {"stdout": seen}
        assert control(client, "debug_request", initialize)["success"] is True


def test_a_key_of_another_kind_has_a_fresh_kernel(place: Place) -> None:
    talk = serve(place)
    (waiting,) = standbys(place)
    connection = {**place.connection("a"), "signature_scheme": "hmac-sha512"}
    assert spawned(talk, birth(place, "a", connection=connection)) != waiting


def test_a_configuration_is_the_notebooks_to_read(place: Place, clients: list[BlockingKernelClient]) -> None:
    talk = serve(place)
    (waiting,) = standbys(place)
    profile = place.machine.guest_home / ".ipython" / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text(
        "import os\nc.InteractiveShellApp.exec_lines = ['mine = %r' % os.getcwd()]\n"
    )
    # One that was made before it was written.
    assert spawned(talk, birth(place, "a")) != waiting
    expected = f"{place.machine.notebooks}\n"
    assert printed(have(place, clients, "a"), "print(mine)")["stdout"] == expected
    # And those after it.
    for name in ("b", "c"):
        spawned(talk, birth(place, name))
        assert printed(have(place, clients, name), "print(mine)")["stdout"] == expected
    until(lambda: set(place.directories()) == {"a", "b", "c"}, LIMIT)


# What befalls it


def test_one_that_was_killed_is_not_missed(place: Place) -> None:
    talk = serve(place)
    (waiting,) = standbys(place)
    os.kill(waiting, signal.SIGKILL)
    until(lambda: place.directories() == [], LIMIT)
    assert spawned(talk, birth(place, "a")) != waiting
    until(lambda: len(standbys(place)) == 1, LIMIT)


def test_one_that_dies_as_it_is_handed_out_is_replaced(place: Place, clients: list[BlockingKernelClient]) -> None:
    talk = serve(place)
    (waiting,) = standbys(place)
    os.kill(waiting, signal.SIGSTOP)
    number = talk.send("spawn", **birth(place, "a"))
    until(lambda: "a" in place.directories(), LIMIT)
    assert talk.kernels() == {}
    os.kill(waiting, signal.SIGKILL)
    answer = talk.answer(number)
    assert answer["ok"]["pid"] != waiting
    assert not [event for event in talk.events if event.get("event") == "exit"]
    assert printed(have(place, clients, "a"), "print(5)")["stdout"] == "5\n"
    assert not [child for child in psutil.Process(place.pid).children() if child.status() == psutil.STATUS_ZOMBIE]


def test_one_that_is_not_ready_yet_is_waited_for(place: Place, clients: list[BlockingKernelClient]) -> None:
    talk = place.serve(QUICK)
    talk.ask("settings", idle_timeout=0.0, standby_kernels=1)
    until(lambda: bool(psutil.Process(place.pid).children()), LIMIT)
    (child,) = psutil.Process(place.pid).children()
    child.suspend()
    number = talk.send("spawn", **birth(place, "a"))
    assert talk.kernels() == {}
    child.resume()
    assert talk.answer(number)["ok"]["pid"] == child.pid
    assert printed(have(place, clients, "a"), "print(5)")["stdout"] == "5\n"
    assert "a" in place.directories()


def test_one_that_dies_before_it_is_ready_is_replaced(place: Place) -> None:
    talk = place.serve(QUICK)
    talk.ask("settings", idle_timeout=0.0, standby_kernels=1)
    until(lambda: bool(psutil.Process(place.pid).children()), LIMIT)
    (child,) = psutil.Process(place.pid).children()
    child.suspend()
    number = talk.send("spawn", **birth(place, "a"))
    talk.kernels()
    child.kill()
    assert talk.answer(number)["ok"]["pid"] != child.pid


def test_a_start_that_is_taken_back_ends_it(place: Place) -> None:
    talk = serve(place)
    (waiting,) = standbys(place)
    os.kill(waiting, signal.SIGSTOP)
    number = talk.send("spawn", **birth(place, "a"))
    until(lambda: "a" in place.directories(), LIMIT)
    talk.ask("remove", kernel="a")
    answer = next(event for event in talk.events if event.get("id") == number)
    assert "ended before it was ready" in answer["error"]
    until(lambda: not lives(waiting), LIMIT)
    assert "a" not in place.directories()
    spawned(talk, birth(place, "a"))


def test_a_directory_that_is_gone_is_refused_as_always(place: Place) -> None:
    talk = serve(place)
    (waiting,) = standbys(place)
    answer = talk.ask("spawn", **birth(place, "a", cwd="/there/is/none"))
    assert "no directory /there/is/none" in answer["error"]
    assert standbys(place) == [waiting]


# Of environments


def test_an_environments_standby_is_its_own(place: Place, clients: list[BlockingKernelClient]) -> None:
    python = build(place)
    talk = serve(place)
    (ours,) = standbys(place)
    first = spawned(talk, birth(place, "a", python=python))
    assert first != ours
    until(lambda: standbys(place) not in ([], [ours]), LIMIT)
    (waiting,) = standbys(place)
    assert spawned(talk, birth(place, "b", python=python)) == waiting
    first, second = (report(client) for client in (have(place, clients, "a"), have(place, clients, "b")))
    assert first == second
    assert second["prefix"] == str(Path(python).parents[1])


def test_an_environment_that_has_changed_has_a_fresh_kernel(place: Place, clients: list[BlockingKernelClient]) -> None:
    python = build(place)
    talk = serve(place)
    spawned(talk, birth(place, "a", python=python))
    until(lambda: len(standbys(place)) == 1 and len(place.directories()) == 2, LIMIT)
    (waiting,) = standbys(place)
    added = packages_of(str(Path(python).parents[1])) / "added-1.dist-info"
    added.mkdir()
    (added / "RECORD").write_text("")
    assert spawned(talk, birth(place, "b", python=python)) != waiting


# From the host


def test_a_kernel_specs_standbys_serve_its_notebooks(machine: Machine, guest: FakeGuest, spec: str) -> None:
    configure(machine, standby_kernels=1)
    ours = machine.guest_home / ".lima-kernels"
    seen = []
    for _ in range(2):
        with started(machine) as notebook:
            seen.append(notebook.run("import os; print(os.getpid(), os.getcwd())").split())
            until(lambda: len(list(ours.glob("*/k/*/c-5"))) == 2, LIMIT)
    assert seen[0][1] == seen[1][1] == str(machine.notebooks)
    assert seen[0][0] != seen[1][0]
    assert json.loads(next(ours.glob("*/settings.json")).read_text())["standby_kernels"] == 1
