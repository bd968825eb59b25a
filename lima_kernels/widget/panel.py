"""The panels themselves: what they show as traits, and what can be asked of a VM through them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from IPython.core.getipython import get_ipython
from traitlets import Bool, Dict, Enum, Float, Int, List, Unicode, default

from ..magics.arguments import INSTANCE_VARIABLE
from ..magics.backend import LimaError
from ..magics.results import Note
from .asked import Asked, Waiting
from .feeds import Feeds, Member
from .news import ENDINGS, News
from .pending import Message, Pending

try:
    import anywidget
except ImportError:
    raise LimaError(
        "Panels need anywidget, which the Python of this kernel does not have.", "%pip install anywidget"
    ) from None

logger = logging.getLogger(__name__)

STATES = ("stopped", "asleep", "creating", "starting", "running", "stopping", "broken", "gone")
# What a VM is after what was done with it, and seconds that news of that may take.
_AFTER = {"start": "running", "stop": "stopped", "hibernate": "asleep", "restart": "running", "delete": "gone"}
_NEWS = 5.0
# Where the build puts the front end.
FRONT_END = Path(__file__).parent / "static" / "panel.js"
# What the front end, and a saved notebook, have of any panel.
_SHOWN = ("vms", "jobs", "connected", "notice")
# What the traits of a panel are called in a message.
_OF_VM = {
    "state": "state",
    "status": "status",
    "phase": "phase",
    "began": "began",
    "expected": "expected",
    "cpus": "cpus",
    "memory": "memory",
    "disk": "disk",
    "disk_used": "diskUsed",
    "arch": "arch",
    "vm_type": "vmType",
    "ours": "ours",
    "kernels": "kernels",
    "ports": "ports",
    "mounts": "mounts",
    "problem": "problem",
}


class Panel(anywidget.AnyWidget):
    """What VMPanel and VMList have in common.

    Traits change in the event loop in which the panel was made, a kernel's own: while a cell blocks it, none does.
    No cell can set them.
    """

    #: Where news come from: a host has another place than a guest.
    feeds: ClassVar[Feeds]

    _esm = Unicode(read_only=True).tag(sync=True)
    only = Unicode(read_only=True, help="The one VM that is shown; empty for all.").tag(sync=True)
    vms = List(Dict(), read_only=True, help="The VMs as the front end has them.").tag(sync=True)
    jobs = List(Dict(), read_only=True, help="What is under way, and what ended last.").tag(sync=True)
    connected = Bool(False, read_only=True, help="Whether news come.").tag(sync=True)
    notice = Unicode(read_only=True, help="What a person should know of the panel itself.").tag(sync=True)

    def __init__(self, name: str) -> None:
        self._member: Member | None = None
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise LimaError("A panel needs an event loop that runs, as the kernel of a notebook has one.") from None
        self._pending = Pending()
        self._news = News()
        self._asked = Asked(self._cancel)
        # The VM and the verb of what was clicked, until the host has answered.
        self._clicks: dict[str, tuple[str, str]] = {}
        self._has_changed = False
        # Before there is anything in a notebook: it may not be had.
        self._member = self.feeds.join(name, self._tell)
        try:
            self.set_trait("only", name)
            # So that the front end, and who saves a notebook without one, has all of it from the first message.
            self._take()
            super().__init__()
        except BaseException:
            self._leave()
            raise
        self.on_msg(self._heard)
        if shell := get_ipython():
            shell.events.register("post_run_cell", self._say_again)

    @default("_esm")
    def _front_end(self) -> str:
        try:
            return FRONT_END.read_text(encoding="utf-8")
        except OSError:
            raise LimaError(
                f"The front end of panels was not built: this lima_kernels has no {FRONT_END.name}.",
                "Install lima-kernels from its wheel, or build it in its sources: make front-end",
            ) from None

    def close(self) -> None:
        """Show nothing more; the last panel of a VM ends the watch of it."""
        super().close()
        if self._member is not None and (shell := get_ipython()):
            shell.events.unregister("post_run_cell", self._say_again)
        self._leave()

    def _leave(self) -> None:
        member, self._member = self._member, None
        if member is not None:
            member.leave()
            # In a loop that was closed nobody waits.
            with contextlib.suppress(RuntimeError):
                self._asked.close()

    # News

    def _tell(self, message: Message) -> None:
        """Keep a message for the loop, whatever thread it comes from."""
        if self._pending.add(message):
            # A loop that was closed takes no more news, and nobody is there to miss them.
            with contextlib.suppress(RuntimeError):
                # In no cell's context: it then belongs to whichever runs, and is saved with the notebook.
                self._loop.call_soon_threadsafe(self._take, context=contextvars.Context())

    def _take(self) -> None:
        """Take notice of all that was told."""
        messages = self._pending.take()
        if self._member is None:
            return
        for message in messages:
            self._news.note(message)
            match message:
                case {"type": "snapshot"}:
                    self._asked.known(self._news.jobs)
                case {"type": "job", "job": job}:
                    self._asked.judge(job)
                case {"type": "lost", "message": text, "hint": hint}:
                    self._asked.unanswered(LimaError(text, hint))
                    self._refuse_clicks(text, hint)
                case {"type": "acted" | "refused"}:
                    self._answered(message)
                case {"type": "usage"} | {"type": "log"}:
                    self._pass_on(message)
        self._has_changed = self._has_changed or bool(messages)
        self._show()

    def _say_again(self, _result: object = None) -> None:
        """Say at a cell's end what is shown, if it may have changed between two cells.

        Who executes a notebook without a front end, as nbclient does, hears nothing then: it would save an older state.
        """
        if self._has_changed:
            self._has_changed = False
            self.send_state(list(_SHOWN))

    def _answered(self, message: Message) -> None:
        if not self._asked.answered(message) and message["ref"] in self._clicks:
            del self._clicks[message["ref"]]
            if message["type"] == "refused":
                self._refuse(message["message"], message["hint"])

    def _refuse_clicks(self, message: str, hint: str) -> None:
        if self._clicks:
            self._clicks.clear()
            self._refuse(message, hint)

    def _refuse(self, message: str, hint: str) -> None:
        """Show why nothing comes of a click."""
        self.send({"type": "refused", "message": message, "hint": hint})

    def _pass_on(self, message: Message) -> None:
        """Have the front end know what is not kept."""
        self.send(dict(message))

    def _show(self) -> None:
        self._set(
            {
                "vms": self._vms(),
                "jobs": list(self._news.jobs.values()),
                "connected": self._news.lost is None,
                "notice": self._notice(),
            }
        )

    def _vms(self) -> list[dict[str, Any]]:
        return list(self._news.vms.values())

    def _notice(self) -> str:
        lost, own = self._news.lost, self.feeds.source.own
        # What was clicked is said before the host is asked: it may be as quick as that.
        is_asked_for = any(vm == own and verb in ENDINGS for vm, verb in self._clicks.values())
        if own and (is_asked_for or self._news.is_ending(own)):
            return f"The VM {own} stops, and with it the kernel of this panel."
        return f"{lost['message']} {lost['hint']}".rstrip() if lost is not None else ""

    def _set(self, values: Mapping[str, Any]) -> None:
        with self.hold_sync(), self.hold_trait_notifications():
            for name, value in values.items():
                self.set_trait(name, value)

    # Requests

    def _say_act(self, ref: str, vm: str, verb: str, arguments: Mapping[str, Any], *, yes: bool) -> None:
        if self._member is None:
            raise LimaError("This panel is closed.", "Make another one.")
        self._member.say({"type": "act", "ref": ref, "vm": vm, "verb": verb, "arguments": arguments, "yes": yes})

    def _cancel(self, job: str) -> None:
        if self._member is not None:
            self._member.say({"type": "cancel", "job": job})

    def _heard(self, _widget: Any, said: object, _buffers: object) -> None:
        """Do what the front end says; nothing of it takes time, or is believed to be what it should."""
        match said:
            case {"type": "act", "vm": str(vm), "verb": str(verb), "arguments": dict(arguments)}:
                ref = secrets.token_hex(8)
                self._clicks[ref] = vm, verb
                self._show()
                # Before a person's click on what ends something, the front end has asked.
                self._say_act(ref, vm, verb, arguments, yes=True)
            case {"type": "cancel", "job": str(job)}:
                self._cancel(job)
            case {"type": "visible", "names": names} if names is None or _are_names(names):
                # What is drawn of a saved notebook, or of a kernel that is no more, gets no answer.
                self.send({"type": "here"})
                if self._member is not None:
                    self._member.show(names)
            case {"type": "follow", "name": str() | None as name}:
                if self._member is not None:
                    self._member.follow(name)
            case _:
                logger.warning("The front end of a panel said what is nothing known: %.200r", said)


def _are_names(said: object) -> bool:
    return isinstance(said, list) and all(isinstance(name, str) for name in said)


class VMPanel(Panel):
    """The panel of one VM: its state as traits, and what can be done with it.

    Sizes are bytes, times seconds since the epoch. `start`, `stop`, `restart`, `edit` and `delete` begin at once;
    awaited, each returns what came of it. Who is interrupted while he waits cancels it.

    :param name: the VM; without one that in use, as `%lima use` says, else the default: in a guest the guest itself.
    :raises LimaError: when there is no such VM, or no panel can be had.
    """

    state = Enum(STATES, default_value="gone", read_only=True)
    status = Unicode(read_only=True, help="Lima's own word.")
    phase = Unicode(read_only=True, help="What is under way; empty when nothing is.")
    began = Float(None, allow_none=True, read_only=True, help="When that began.")
    expected = Float(None, allow_none=True, read_only=True, help="Seconds that such a start took before.")
    cpus = Int(read_only=True)
    memory = Int(read_only=True)
    disk = Int(read_only=True)
    disk_used = Int(None, allow_none=True, read_only=True, help="What its disk takes on the host.")
    arch = Unicode(read_only=True)
    vm_type = Unicode(read_only=True)
    ours = Bool(read_only=True, help="Whether lima-kernels made it.")
    kernels = List(
        Dict(), default_value=None, allow_none=True, read_only=True, help="None until a front end shows the panel."
    )
    ports = List(Dict(), read_only=True)
    mounts = List(Dict(), read_only=True)
    problem = Dict(default_value=None, allow_none=True, read_only=True)
    cpu_used = Float(
        None, allow_none=True, read_only=True, help="The share of its CPUs, 0 to 1; while a front end shows the panel."
    )
    memory_used = Int(None, allow_none=True, read_only=True, help="While a front end shows the panel.")

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name or os.environ.get(INSTANCE_VARIABLE) or self.feeds.source.default)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.only!r}): {self.state}"

    def _vms(self) -> list[dict[str, Any]]:
        shown = [vm for vm in super()._vms() if vm["name"] == self.only]
        # What is gone is shown as it was.
        return shown or [{**vm, "state": "gone", "phase": "", "kernels": None} for vm in self.vms]

    def _show(self) -> None:
        super()._show()
        for vm in self.vms:
            self._set({trait: vm[name] for trait, name in _OF_VM.items()})

    def _pass_on(self, message: Message) -> None:
        super()._pass_on(message)
        if message["type"] == "usage":
            usage = message["usage"]
            self._set({"cpu_used": usage["cpu"], "memory_used": usage["memory"]})

    def _act(self, verb: str, *, yes: bool = False, **arguments: Any) -> Waiting:
        ref, waiting = self._asked.begin(self._loop)
        said = {name: value for name, value in arguments.items() if value is not None}
        self._say_act(ref, self.only, verb, said, yes=yes)
        done = asyncio.ensure_future(self._settled(waiting, _AFTER.get(verb, self.state)))
        # Also one that is cancelled before it has begun to wait.
        done.add_done_callback(lambda _done: waiting.cancel())
        return done

    async def _settled(self, waiting: Waiting, state: str) -> Note:
        """Wait for a job, and then for the news of what came of it, which come a moment later."""
        note = await waiting
        shows = asyncio.Event()

        def look(_change: object = None) -> None:
            if self.state == state:
                shows.set()

        self.observe(look, "state")
        try:
            look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(shows.wait(), _NEWS)
        finally:
            self.unobserve(look, "state")
        return note

    def start(self) -> Waiting:
        """Start it; done when it can be used.

        :raises LimaError: when awaited, and it cannot be started.
        """
        return self._act("start")

    def stop(self, *, force: bool = False, yes: bool = False) -> Waiting:
        """Shut it down.

        :param force: also while it is in use.
        :param yes: also where this kernel ends with it.
        :raises LimaError: when awaited, and it cannot be stopped.
        """
        return self._act("stop", yes=yes, force=force)

    def hibernate(self, *, force: bool = False) -> Waiting:
        """Save its memory and end it; its kernels live on when it is started again.

        :param force: also while cells run.
        :raises LimaError: when awaited, and it cannot be.
        """
        return self._act("hibernate", force=force)

    def restart(self, *, force: bool = False, yes: bool = False) -> Waiting:
        """Stop it and start it again.

        :param force: also while it is in use.
        :param yes: also where this kernel ends with it.
        :raises LimaError: when awaited, and it cannot be.
        """
        return self._act("restart", yes=yes, force=force)

    def edit(self, *, cpus: int | None = None, memory: str | None = None, disk: str | None = None) -> Waiting:
        """Change what it has while it is stopped.

        :param memory: a size such as 4GiB, as ``disk`` is.
        :raises LimaError: when awaited, and it cannot be changed.
        """
        return self._act("edit", cpus=cpus, memory=memory, disk=disk)

    def delete(self, *, force: bool = False) -> Waiting:
        """Delete it with its disk.

        :param force: also what others made, or somebody uses.
        :raises LimaError: when awaited, and it cannot be deleted.
        """
        return self._act("delete", force=force)


class VMList(Panel):
    """The panel of all VMs that this kernel may know of; `vms` has them, and `VMPanel` what can be done with one.

    :raises LimaError: when no panel can be had.
    """

    def __init__(self) -> None:
        super().__init__("")
