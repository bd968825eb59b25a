"""Panels by themselves: what they show of what they are told, what they say, and where they refuse."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from traitlets import TraitError

from lima_kernels.magics.backend import LimaError
from lima_kernels.widget import panel
from lima_kernels.widget.feeds import Feeds
from lima_kernels.widget.pending import ANSWERS, LOG_LINES, Message, Pending
from lima_kernels.widget.source import Tell, lost, refused

NAME = "lima-kernels"


def vm(name: str = NAME, state: str = "stopped", **more: Any) -> dict[str, Any]:
    known = {
        "name": name,
        "state": state,
        "status": "Stopped",
        "phase": "",
        "began": None,
        "expected": None,
        "cpus": 2,
        "memory": 4 << 30,
        "disk": 100 << 30,
        "diskUsed": None,
        "arch": "x86_64",
        "vmType": "qemu",
        "ours": True,
        "kernels": None,
        "ports": [],
        "mounts": [],
        "problem": None,
    }
    return {**known, **more}


def job(id_: str, state: str = "running", name: str = NAME, **more: Any) -> dict[str, Any]:
    known = {"verb": "start", "step": "", "began": 1.0, "expected": None, "message": "", "hint": "", "context": []}
    return {"id": id_, "vm": name, "state": state, "cancellable": True, **known, **more}


def snapshot(*vms: dict[str, Any], jobs: tuple[dict[str, Any], ...] = ()) -> Message:
    return {"type": "snapshot", "vms": list(vms), "jobs": list(jobs)}


class Link:
    """Keeps what is said to it."""

    def __init__(self, name: str, tell: Tell) -> None:
        self.name = name
        self.tell = tell
        self.said: list[Message] = []
        self.is_closed = False

    def say(self, message: Message) -> None:
        self.said.append(message)

    def close(self) -> None:
        self.is_closed = True

    def kinds(self) -> list[str]:
        return [message["type"] for message in self.said]


class Source:
    """Tells what a test says."""

    default = NAME

    def __init__(self, first: Message, own: str = "") -> None:
        self.own = own
        self.first = first
        self.links: list[Link] = []

    def open(self, name: str, tell: Tell) -> Link:
        self.links.append(Link(name, tell))
        tell(self.first)
        return self.links[-1]


@pytest.fixture
def front_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A front end, as none has to be built for these tests."""
    text = "export default { render() {} };\n"
    (tmp_path / "panel.js").write_text(text)
    monkeypatch.setattr(panel, "FRONT_END", tmp_path / "panel.js")
    return text


@pytest.fixture
def shown(front_end: str) -> Iterator[Callable[..., Any]]:
    """Make panels of a source, and close them at the end."""
    made: list[panel.Panel] = []

    def make(source: Source, name: str | None = NAME, feeds: Feeds | None = None) -> Any:
        kind = panel.VMList if name == "" else panel.VMPanel
        class_ = type(kind.__name__, (kind,), {"feeds": feeds or Feeds(source), "__module__": __name__})
        made.append(class_() if name == "" else class_(name))
        return made[-1]

    yield make
    for one in made:
        one.close()


async def settle() -> None:
    """Let the loop do what was handed to it."""
    for _ in range(3):
        await asyncio.sleep(0)


# News


async def test_a_panel_knows_its_vm_from_the_first_line(shown: Any, front_end: str) -> None:
    made = shown(Source(snapshot(vm(state="running", diskUsed=5, kernels=[{"id": "k"}]), vm("other"))))
    assert (made.state, made.cpus, made.memory, made.disk_used) == ("running", 2, 4 << 30, 5)
    assert (made.connected, made.notice, made.only) == (True, "", NAME)
    assert made.kernels == [{"id": "k"}]
    # All of it is in what a notebook saves.
    saved = made.get_state()
    assert [shown["name"] for shown in saved["vms"]] == [NAME]
    assert saved["_esm"] == front_end
    assert repr(made) == f"VMPanel('{NAME}'): running"


async def test_changes_come_in_the_kernels_own_thread(shown: Any) -> None:
    source = Source(snapshot(vm()))
    made = shown(source)
    seen: list[tuple[str, int]] = []
    changed = asyncio.Event()
    made.observe(lambda change: (seen.append((change["new"], threading.get_ident())), changed.set()), "state")
    thread = threading.Thread(target=source.links[0].tell, args=({"type": "vm", "vm": vm(state="starting")},))
    thread.start()
    thread.join()
    assert seen == []
    await asyncio.wait_for(changed.wait(), 30)
    assert seen == [("starting", threading.get_ident())]


async def test_a_cell_that_blocks_its_kernel_makes_no_queue_grow(shown: Any) -> None:
    source = Source(snapshot(vm()))
    made = shown(source)
    for number in range(10_000):
        source.links[0].tell({"type": "vm", "vm": vm(cpus=number)})
        source.links[0].tell({"type": "log", "name": NAME, "lines": [str(number)]})
    seen: list[int] = []
    made.observe(lambda change: seen.append(change["new"]), "cpus")
    await settle()
    assert seen == [9999]


async def test_no_cell_sets_what_is_shown(shown: Any) -> None:
    made = shown(Source(snapshot(vm())))
    with pytest.raises(TraitError, match="read-only"):
        made.state = "running"
    assert made.state == "stopped"


async def test_what_is_deleted_is_shown_as_gone_and_comes_back(shown: Any) -> None:
    source = Source(snapshot(vm(kernels=[], state="running")))
    made, everything = shown(source), shown(source, "")
    for link in source.links:
        link.tell({"type": "gone", "name": NAME})
    await settle()
    assert (made.state, made.kernels, made.cpus, made.vms[0]["state"]) == ("gone", None, 2, "gone")
    assert everything.vms == []
    source.links[0].tell(snapshot(vm(state="creating")))
    await settle()
    assert made.state == "creating"


async def test_of_jobs_that_ended_the_last_is_kept(shown: Any) -> None:
    source = Source(snapshot(vm()))
    made = shown(source)
    for id_, state in (("a", "done"), ("b", "failed"), ("c", "running")):
        source.links[0].tell({"type": "job", "job": job(id_, state)})
        await settle()
    assert [one["id"] for one in made.jobs] == ["c"]


async def test_usage_and_log_go_to_the_front_end(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(snapshot(vm()))
    made = shown(source)
    sent: list[Message] = []
    monkeypatch.setattr(made, "send", sent.append)
    usage = {"name": NAME, "time": 1.0, "cpu": 0.5, "memory": 1 << 30}
    source.links[0].tell({"type": "usage", "usage": usage})
    source.links[0].tell({"type": "log", "name": NAME, "lines": ["a"]})
    await settle()
    assert [message["type"] for message in sent] == ["usage", "log"]
    assert (made.cpu_used, made.memory_used) == (0.5, 1 << 30)


async def test_an_observer_that_fails_costs_no_news(shown: Any) -> None:
    source = Source(snapshot(vm()))
    made = shown(source)
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    made.observe(lambda _change: 1 / 0, "state")
    source.links[0].tell({"type": "vm", "vm": vm(state="starting")})
    await settle()
    source.links[0].tell({"type": "vm", "vm": vm(state="running", cpus=8)})
    await settle()
    assert (made.state, made.cpus, made.vms[0]["cpus"]) == ("running", 8, 8)
    assert complaints


# One watch


async def test_panels_of_one_vm_share_a_watch_and_the_last_ends_it(shown: Any) -> None:
    source = Source(snapshot(vm(state="running")))
    feeds = Feeds(source)
    first, second, all_ = (shown(source, name, feeds) for name in (NAME, NAME, ""))
    mine, everything = source.links
    assert (mine.name, everything.name) == (NAME, "")
    source.links[0].tell({"type": "vm", "vm": vm(state="stopping")})
    await settle()
    assert (first.state, second.state) == ("stopping", "stopping")
    first.close()
    first.close()
    assert not mine.is_closed
    second.close()
    assert mine.is_closed
    assert not everything.is_closed
    mine.tell({"type": "vm", "vm": vm(state="broken")})
    await settle()
    assert second.state == "stopping"
    third = shown(source, NAME, feeds)
    assert third.state == "running"
    assert len(source.links) == 3
    all_.close()


async def test_who_comes_later_knows_all_that_was_told(shown: Any) -> None:
    source = Source(snapshot(vm()))
    feeds = Feeds(source)
    shown(source, NAME, feeds)
    source.links[0].tell({"type": "vm", "vm": vm(state="running")})
    source.links[0].tell({"type": "job", "job": job("a")})
    later = shown(source, NAME, feeds)
    assert (later.state, [one["id"] for one in later.jobs]) == ("running", ["a"])
    source.links[0].tell(lost(LimaError("No host.", "Wait."), is_final=False))
    assert shown(source, NAME, feeds).notice == "No host. Wait."


async def test_usage_is_asked_for_by_who_is_seen(shown: Any) -> None:
    source = Source(snapshot(vm()))
    feeds = Feeds(source)
    first, second = shown(source, "", feeds), shown(source, "", feeds)
    (link,) = source.links

    def visible() -> Any:
        return link.said[-1]["names"] if link.said else None

    first._heard(first, {"type": "visible", "names": ["a"]}, [])
    second._heard(second, {"type": "visible", "names": ["b", "a"]}, [])
    assert visible() == ["a", "b"]
    second._heard(second, {"type": "visible", "names": None}, [])
    assert visible() is None
    second.close()
    assert visible() == ["a"]
    first._heard(first, {"type": "visible", "names": []}, [])
    assert visible() == []
    first._heard(first, {"type": "visible", "names": []}, [])
    assert link.kinds() == ["visible"] * 5


# Actions


async def asked(made: Any, source: Source, start: Callable[[], Any]) -> tuple[Any, str]:
    """Ask for something, and have it begin."""
    waiting = start()
    act = source.links[0].said[-1]
    source.links[0].tell({"type": "job", "job": job("j1")})
    source.links[0].tell({"type": "acted", "ref": act["ref"], "job": job("j1")})
    await settle()
    assert not waiting.done()
    return waiting, act["ref"]


async def test_a_method_returns_what_came_of_it(shown: Any) -> None:
    source = Source(snapshot(vm()))
    made = shown(source)
    waiting, _ = await asked(made, source, lambda: made.edit(cpus=4, memory="8GiB"))
    said = source.links[0].said[-1]
    assert {**said, "ref": ""} == {
        "type": "act",
        "ref": "",
        "vm": NAME,
        "verb": "edit",
        "arguments": {"cpus": 4, "memory": "8GiB"},
        "yes": False,
    }
    source.links[0].tell({"type": "job", "job": job("j1", "done", message="It is.")})
    assert await asyncio.wait_for(waiting, 30) == "It is."


async def test_a_job_that_ends_at_once_is_not_missed(shown: Any) -> None:
    source = Source(snapshot(vm()))
    made = shown(source)
    waiting = made.edit(cpus=2)
    ref = source.links[0].said[-1]["ref"]
    source.links[0].tell({"type": "acted", "ref": ref, "job": job("j1")})
    source.links[0].tell({"type": "job", "job": job("j1", "done", message="Over.")})
    source.links[0].tell({"type": "job", "job": job("j2", "running")})
    assert await asyncio.wait_for(waiting, 30) == "Over."


async def test_what_fails_is_one_line(shown: Any) -> None:
    source = Source(snapshot(vm()))
    made = shown(source)
    waiting, _ = await asked(made, source, made.start)
    source.links[0].tell({"type": "job", "job": job("j1", "failed", message="No.", hint="So.", context=["log"])})
    with pytest.raises(LimaError, match=r"^No\. So\.$") as caught:
        await waiting
    assert caught.value.context == ("log",)
    waiting, _ = await asked(made, source, made.restart)
    source.links[0].tell({"type": "job", "job": job("j1", "cancelled", verb="restart")})
    with pytest.raises(LimaError, match=f"`restart` of {NAME} was cancelled"):
        await waiting
    waiting = made.delete()
    source.links[0].tell(refused(source.links[0].said[-1]["ref"], LimaError("It may not.")))
    with pytest.raises(LimaError, match="It may not"):
        await waiting


async def test_who_is_interrupted_wants_it_no_longer(shown: Any) -> None:
    source = Source(snapshot(vm()))
    made = shown(source)
    waiting, _ = await asked(made, source, made.start)
    waiting.cancel()
    await settle()
    assert source.links[0].said[-1] == {"type": "cancel", "job": "j1"}
    # Also where it was not known yet which job it is.
    waiting = made.start()
    ref = source.links[0].said[-1]["ref"]
    waiting.cancel()
    await settle()
    source.links[0].tell({"type": "acted", "ref": ref, "job": job("j2")})
    await settle()
    assert source.links[0].said[-1] == {"type": "cancel", "job": "j2"}


async def test_who_waits_when_the_host_is_lost_is_told(shown: Any) -> None:
    source = Source(snapshot(vm()))
    made = shown(source)
    begun, _ = await asked(made, source, made.start)
    unanswered = made.stop()
    source.links[0].tell(lost(LimaError("No host."), is_final=False))
    with pytest.raises(LimaError, match="No host"):
        await unanswered
    assert not begun.done()
    source.links[0].tell(snapshot(vm(state="running"), jobs=(job("j1", "done", message="Ready."),)))
    # The news of the VM, too.
    assert await asyncio.wait_for(begun, 30) == "Ready."
    begun, _ = await asked(made, source, made.start)
    source.links[0].tell(snapshot(vm()))
    with pytest.raises(LimaError, match="no longer knows"):
        await begun


async def test_a_closed_panel_does_nothing_and_says_so(shown: Any) -> None:
    source = Source(snapshot(vm()))
    made = shown(source)
    waiting, _ = await asked(made, source, made.start)
    made.close()
    with pytest.raises(LimaError, match="it goes on without it"):
        await waiting
    with pytest.raises(LimaError, match="panel is closed"):
        made.start()
    assert "cancel" not in source.links[0].kinds()


# The front end


async def test_a_click_is_an_action_that_nobody_waits_for(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(snapshot(vm()))
    made = shown(source)
    sent: list[Message] = []
    monkeypatch.setattr(made, "send", sent.append)
    made._heard(made, {"type": "act", "vm": NAME, "verb": "stop", "arguments": {"force": True}}, [])
    said = source.links[0].said[-1]
    assert (said["verb"], said["arguments"], said["yes"]) == ("stop", {"force": True}, True)
    source.links[0].tell(refused(said["ref"], LimaError("It is in use.", "With force.")))
    await settle()
    assert sent == [{"type": "refused", "message": "It is in use.", "hint": "With force."}]
    made._heard(made, {"type": "act", "vm": NAME, "verb": "start", "arguments": {}}, [])
    source.links[0].tell(lost(LimaError("No host."), is_final=False))
    await settle()
    assert sent[1:] == [{"type": "refused", "message": "No host.", "hint": ""}]


@pytest.mark.parametrize(
    "said",
    [
        None,
        "stop",
        [],
        {},
        {"type": "act"},
        {"type": "act", "vm": 1, "verb": "stop", "arguments": {}},
        {"type": "act", "vm": NAME, "verb": "stop", "arguments": []},
        {"type": "visible", "names": "all"},
        {"type": "visible", "names": [1]},
        {"type": "follow", "name": 1},
        {"type": "cancel", "job": None},
        {"type": "of tomorrow"},
    ],
)
async def test_what_is_nothing_known_is_dropped(shown: Any, said: Any, caplog: pytest.LogCaptureFixture) -> None:
    source = Source(snapshot(vm()))
    made = shown(source)
    made._heard(made, said, [])
    assert source.links[0].said == []
    assert "nothing known" in caplog.text


async def test_a_front_end_that_asks_learns_that_the_kernel_lives(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shown(Source(snapshot(vm())))
    sent: list[Message] = []
    monkeypatch.setattr(made, "send", sent.append)
    made._heard(made, {"type": "visible", "names": [NAME]}, [])
    assert sent == [{"type": "here"}]


# A host that is lost


async def test_a_lost_host_is_said_and_what_was_wanted_is_said_again(shown: Any) -> None:
    source = Source(snapshot(vm()))
    made = shown(source)
    (link,) = source.links
    made._heard(made, {"type": "visible", "names": [NAME]}, [])
    made._heard(made, {"type": "follow", "name": NAME}, [])
    link.said.clear()
    link.tell(lost(LimaError("No host.", "Wait."), is_final=False))
    await settle()
    assert (made.connected, made.notice, made.state) == (False, "No host. Wait.", "stopped")
    link.tell(snapshot(vm(state="running")))
    await settle()
    assert (made.connected, made.notice, made.state) == (True, "", "running")
    assert link.said == [{"type": "visible", "names": [NAME]}, {"type": "follow", "name": NAME}]


async def test_the_end_of_the_vm_that_a_kernel_lives_in_is_said_before_it_comes(shown: Any) -> None:
    source = Source(snapshot(vm(state="running")), own=NAME)
    made = shown(source)
    assert made.notice == ""
    ends = f"The VM {NAME} stops, and with it the kernel of this panel."
    for message, notice in (
        (
            {"type": "job", "job": job("j1", verb="restart")},
            f"The VM {NAME} stops, and with it the kernel of this panel.",
        ),
        ({"type": "job", "job": job("j1", "failed", verb="restart")}, ""),
        ({"type": "vm", "vm": vm(state="stopping")}, ends),
        (lost(LimaError("No host."), is_final=False), ends),
    ):
        source.links[0].tell(message)
        await settle()
        assert made.notice == notice


async def test_a_click_that_ends_its_own_kernel_is_said_before_the_host_is_asked(
    shown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(snapshot(vm(state="running")), own=NAME)
    made = shown(source)
    link = source.links[0]
    notices: list[str] = []
    monkeypatch.setattr(link, "say", lambda said: (link.said.append(said), notices.append(made.notice)))
    for verb, vm_name, notice in (
        ("stop", NAME, f"The VM {NAME} stops, and with it the kernel of this panel."),
        ("stop", "another", ""),
        ("edit", NAME, ""),
    ):
        made._heard(made, {"type": "act", "vm": vm_name, "verb": verb, "arguments": {}}, [])
        assert notices.pop() == notice
        # It goes on where the host does not do it.
        link.tell(refused(link.said[-1]["ref"], LimaError("It is in use.")))
        await settle()
        assert made.notice == ""


async def test_what_the_host_refuses_is_an_error(shown: Any) -> None:
    source = Source(lost(LimaError("There is no such VM.", "Did you mean 'x'?"), is_final=True))
    with pytest.raises(LimaError, match=r"There is no such VM\. Did you mean"):
        shown(source)
    assert source.links[0].is_closed


# Where there can be none


def test_without_an_event_loop_there_is_no_panel(shown: Any) -> None:
    source = Source(snapshot(vm()))
    with pytest.raises(LimaError, match="needs an event loop that runs"):
        shown(source)
    assert source.links == []


async def test_without_its_front_end_there_is_no_panel(
    shown: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panel, "FRONT_END", tmp_path / "missing.js")
    source = Source(snapshot(vm()))
    with pytest.raises(LimaError, match=r"was not built: this lima_kernels has no missing\.js"):
        shown(source)
    assert [link.is_closed for link in source.links] == [True]


@pytest.mark.parametrize("module", ["lima_kernels.watch.panels", "lima_kernels.widget.guest"])
def test_without_anywidget_there_is_one_line(module: str) -> None:
    program = (
        "import sys\n"
        "sys.modules['anywidget'] = None\n"
        "import importlib, lima_kernels\n"
        "from lima_kernels.magics.backend import LimaError\n"
        f"lima_kernels._is_host = lambda: {module == 'lima_kernels.watch.panels'}\n"
        "try:\n"
        "    from lima_kernels import VMPanel\n"
        "except LimaError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout == (
        "Panels need anywidget, which the Python of this kernel does not have. %pip install anywidget\n"
    )


@pytest.mark.parametrize("module", ["lima_kernels", "lima_kernels.magics.guest", "lima_kernels.provisioner"])
def test_what_needs_no_panel_does_not_wait_for_one(module: str) -> None:
    program = (
        "import sys, importlib\n"
        f"importlib.import_module({module!r})\n"
        "assert 'VMPanel' in dir(sys.modules['lima_kernels'])\n"
        "assert not hasattr(sys.modules['lima_kernels'], 'VMPanels')\n"
        "assert not {'anywidget', 'ipywidgets', 'jupyter_server'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# What waits


def test_of_each_thing_the_newest_waits() -> None:
    pending = Pending()
    assert pending.add({"type": "vm", "vm": vm("a")})
    assert not pending.add({"type": "vm", "vm": vm("b")})
    pending.add({"type": "gone", "name": "a"})
    for number in range(LOG_LINES + 5):
        pending.add({"type": "log", "name": "b", "lines": [str(number)]})
    for number in range(ANSWERS + 5):
        pending.add(refused(str(number), LimaError("no")))
    taken = pending.take()
    assert [message["type"] for message in taken[:3]] == ["vm", "gone", "log"]
    assert taken[2]["lines"] == [str(number) for number in range(5, LOG_LINES + 5)]
    assert [message["ref"] for message in taken[3:]] == [str(number) for number in range(5, ANSWERS + 5)]
    assert pending.take() == []


def test_a_snapshot_makes_what_waits_void_but_no_answer() -> None:
    pending = Pending()
    pending.add({"type": "vm", "vm": vm("a")})
    pending.add({"type": "job", "job": job("j")})
    pending.add(refused("r", LimaError("no")))
    pending.add(snapshot())
    pending.add({"type": "vm", "vm": vm("b")})
    assert [message["type"] for message in pending.take()] == ["refused", "snapshot", "vm"]
