"""kernels list, attach, kill: the kernels that live in running VMs, with or without a Jupyter server."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import leases, paths
from ..errors import ConfigurationError, HostError, InstanceError, printable
from ..guest.forwards import Transport
from ..instances import REACH
from ..kernelspec import installed
from ..launch import Entry
from ..lima.limactl import Limactl
from ..runtime import runtime
from ..session import Session, adopt, describe
from ..settings import Settings
from ..verbs.kernels import BUSY, Living, Survey
from ..verbs.kernels import survey as survey_of


def add_commands(commands: Any) -> None:
    """Add this group's commands."""
    parser = commands.add_parser("kernels", help="see, use and end the kernels that live in running VMs")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = verbs.add_parser("list", help="list the kernels in running VMs, and who uses them")
    listing.add_argument("instance", nargs="?", help="one VM only (default: all that our kernel specs name)")
    listing.add_argument("--json", action="store_true", help="for programs")
    listing.set_defaults(command=_list)
    attach = verbs.add_parser("attach", help="let Jupyter clients use a kernel that nobody uses, until Ctrl-C")
    attach.set_defaults(command=_attach)
    kill = verbs.add_parser("kill", help="end a kernel, with all that it started")
    kill.add_argument("--force", action="store_true", help="also one that is in use")
    kill.set_defaults(command=_kill)
    for verb in (attach, kill):
        verb.add_argument("kernel", help="its name as `kernels list` shows it, or the beginning of it")
        verb.add_argument("--instance", metavar="NAME", help="look in this VM only")


# Looking


async def _survey(instance: str | None) -> list[Survey]:
    return await survey_of(Limactl(), runtime().vm, instance)


def _chosen(options: argparse.Namespace) -> Living:
    """Return the one kernel that is meant.

    :raises ConfigurationError: when there is none, or more than one.
    """
    surveys = runtime().run_blocking(_survey(options.instance))
    kernels = [kernel for survey in surveys for kernel in survey.kernels]
    # An empty name would be the beginning of every other.
    matching = [kernel for kernel in kernels if options.kernel and kernel.name.startswith(options.kernel)]
    matching = [kernel for kernel in matching if kernel.name == options.kernel] or matching
    if len(matching) == 1:
        return matching[0]
    if matching:
        names = ", ".join(f"{kernel.name} in {kernel.instance}" for kernel in matching)
        raise ConfigurationError(f"{options.kernel!r} is the beginning of more than one kernel's name: {names}.")
    raise ConfigurationError(
        f"There is no kernel {options.kernel!r} in {_named(options.instance)}.",
        hint="See them: lima-kernels kernels list",
        context=[str(survey.problem) for survey in surveys if survey.problem],
    )


def _named(instance: str | None) -> str:
    return f"the VM {instance!r}, if that runs" if instance else "a running VM that our kernel specs name"


# list


def _list(options: argparse.Namespace) -> int:
    surveys = runtime().run_blocking(_survey(options.instance))
    if options.json:
        print(json.dumps([_row(survey) for survey in surveys], indent=2))
        return 0
    kernels = [kernel for survey in surveys for kernel in survey.kernels]
    console = Console()
    if kernels:
        console.print(_table(kernels))
    elif any(survey.is_up and not survey.problem for survey in surveys):
        print("There is no kernel.")
    if silent := [f"{survey.instance} ({survey.status or 'unknown'})" for survey in surveys if not survey.is_up]:
        print(f"Does not run: {', '.join(silent)}")
    if not surveys:
        print("No kernel spec yet: lima-kernels install")
    for survey in surveys:
        if survey.problem:
            print(f"{survey.instance}: {survey.problem}", file=sys.stderr)
    return 0


def _row(survey: Survey) -> dict[str, Any]:
    return {
        "instance": survey.instance,
        "status": survey.status,
        "problem": str(survey.problem) if survey.problem else "",
        "kernels": [
            {
                "name": kernel.name,
                "session": kernel.state.facts.session,
                "spec": kernel.state.facts.spec,
                "state": BUSY[kernel.state.busy],
                "owner": {"program": kernel.owner.program, "pid": kernel.owner.pid} if kernel.owner else None,
                "started": kernel.since.isoformat(),
            }
            for kernel in survey.kernels
        ],
    }


def _table(kernels: Sequence[Living]) -> Table:
    table = Table("VM", "kernel", "notebook or kernel spec", "state", "used by", "since")
    table.columns[1].no_wrap = True
    for kernel in kernels:
        since = kernel.since.astimezone().strftime("%Y-%m-%d %H:%M")
        cells = (kernel.instance, kernel.name, kernel.title, BUSY[kernel.state.busy], kernel.user, since)
        table.add_row(*(escape(printable(cell)) for cell in cells))
    return table


# attach


def _attach(options: argparse.Namespace) -> int:
    kernel = _chosen(options)
    if kernel.owner:
        raise _in_use(kernel)
    with _ended_by(signal.SIGTERM, signal.SIGHUP), ExitStack() as stack:
        session = runtime().run_blocking(_adopted(kernel))
        stack.callback(lambda: runtime().run_blocking(_given_back(session)))
        file = paths.attached_connection_file(kernel.name)
        stack.callback(file.unlink, missing_ok=True)
        try:
            _write_private(file, _connection(kernel, session))
            print(f"jupyter console --existing {shlex.quote(str(file))}", flush=True)
            print(f"The kernel {kernel.name} ({kernel.title}) can be used until Ctrl-C here.", file=sys.stderr)
            code = runtime().run_blocking(session.wait())
        except KeyboardInterrupt:
            print("The kernel lives on without a user.", file=sys.stderr)
            return 0
    print(f"The kernel {describe(code)}.", file=sys.stderr)
    return int(code != 0)


def _in_use(kernel: Living) -> InstanceError:
    return InstanceError(
        f"The kernel {kernel.name} in the VM {kernel.instance!r} is used by {kernel.user}.",
        hint="That process's own connection file serves: jupyter console --existing",
    )


def _taken_meanwhile(kernel: Living) -> InstanceError:
    return InstanceError(
        f"The kernel {kernel.name} in the VM {kernel.instance!r} has just been taken by another process.",
        hint="See by which: lima-kernels kernels list",
    )


async def _adopted(kernel: Living) -> Session:
    """Take the kernel over.

    :raises InstanceError: when a live process has taken it meanwhile.
    """
    facts = kernel.state.facts
    config = next((spec.config for spec in installed() if spec.name == facts.spec), {})
    settings = Settings(**config)
    entry = Entry(Transport(settings.transport), f"attached-{kernel.name}", facts)
    session = await adopt(runtime().vm(kernel.instance), REACH, kernel.guest, kernel.name, entry)
    if session is None:
        raise _taken_meanwhile(kernel)
    return session


async def _given_back(session: Session) -> None:
    """Leave the kernel as it was, or clean up behind one that has ended."""
    if session.exit is not None:
        session.keep_no_longer()
    await session.close()


def _connection(kernel: Living, session: Session) -> dict[str, Any]:
    """Return the content of a connection file for clients on this host."""
    assert session.address is not None
    return {
        **session.connection,
        "transport": session.address.transport.value,
        "ip": session.address.ip,
        **session.address.ports,
        "jupyter_session": kernel.state.facts.session,
    }


def _write_private(path: Path, content: dict[str, Any]) -> None:
    """Write JSON in one step, for this user's eyes only.

    :raises HostError: when it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        paths.replace_privately(path, json.dumps(content, indent=2).encode())
    except OSError as error:
        raise HostError(f"The connection file {path} cannot be written: {error.strerror}.") from error


@contextmanager
def _ended_by(*signals: signal.Signals) -> Iterator[None]:
    """Let signals end the block as Ctrl-C does."""

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # What nohup(1) ignores stays ignored.
    heard = [signum for signum in signals if signal.getsignal(signum) is not signal.SIG_IGN]
    before = {signum: signal.signal(signum, interrupt) for signum in heard}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


# kill


def _kill(options: argparse.Namespace) -> int:
    kernel = _chosen(options)
    if kernel.owner and not options.force:
        raise InstanceError(
            f"The kernel {kernel.name} in the VM {kernel.instance!r} is used by {kernel.user}.",
            hint=f"To end it all the same: lima-kernels kernels kill --force {kernel.name}",
        )
    runtime().run_blocking(_end(kernel, force=options.force))
    used = f", which was used by {kernel.user}" if kernel.owner else ""
    print(f"Ended the kernel {kernel.name} ({kernel.title}) in the VM {kernel.instance}{used}.")
    return 0


async def _end(kernel: Living, *, force: bool) -> None:
    # Nobody is to take it over meanwhile.
    lease = leases.acquire(kernel.instance, kernel.name, kernel.state.facts)
    if lease is None and not force:
        raise _taken_meanwhile(kernel)
    try:
        await kernel.guest.forkserver.remove(kernel.name)
    finally:
        if lease is not None:
            lease.release()
