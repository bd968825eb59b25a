"""The verbs of `%lima` and their arguments, the same for a cell, for whom a guest asks, and for completion.

Standard library only. ``--help`` is none of the arguments: who parses says what it shows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Argument:
    """One argument, as ``argparse.ArgumentParser.add_argument`` takes it."""

    def __init__(self, *names: str, **settings: Any) -> None:
        self.names = names
        self.settings = settings


class Verb(NamedTuple):
    """What can be asked.

    :param help: one line, without a full stop.
    :param example: a line of a cell, without the magic's name.
    """

    help: str
    example: str
    arguments: Sequence[Argument] = ()


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError("it must be a positive number of seconds")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 < value < 65536:
        raise argparse.ArgumentTypeError("a port is a number from 1 to 65535")
    return value


def _ports(text: str) -> tuple[int, int]:
    """Return the guest's port and the host's, 0 for one that is free, of ``GUEST`` or ``GUEST:HOST``."""
    guest, colon, host = text.partition(":")
    return _port(guest), _port(host) if colon else 0


_NAME = Argument("name", nargs="?", metavar="NAME", help="the instance; the one in use when not given")
_THIS = Argument("name", metavar="NAME", help="the instance")
_INSTANCE = Argument("--instance", dest="name", metavar="NAME", help="the instance; the one in use when not given")
_FORCE = Argument("--force", action="store_true", help="also while it is in use")
_YES = Argument("--yes", action="store_true", help="in a kernel that ends with its VM: yes, it shall")
_OVERWRITE = Argument("--force", action="store_true", help="replace what is there")
_SIZES = (
    Argument("--cpus", type=int, metavar="N", help="how many CPUs the guest has"),
    Argument("--memory", metavar="SIZE", help="its memory, such as 4GiB; a bare number is GiB"),
    Argument("--disk", metavar="SIZE", help="its disk's size; it can only grow"),
)
_VARIABLES = Argument("variables", nargs="+", metavar="VAR", help="a variable's name")
_WHICH = "its notebook's name, or the beginning of its own as `kernels` shows it"
_PICKLE = Argument("--pickle", action="store_true", help="also what only pickle keeps: each side runs what it is sent")
_WAIT = Argument(
    "--timeout", type=_seconds, default=60.0, metavar="SECONDS", help="for a kernel that is busy (default: %(default)g)"
)


def _action(*choices: str) -> Argument:
    return Argument("action", choices=choices, help="what to do")


VERBS: Mapping[str, Verb] = {
    "status": Verb("how a VM is", "status", (_NAME,)),
    "list": Verb("every VM of this host", "list"),
    "start": Verb("start a VM, and wait until it can be used", "start default", (_NAME,)),
    "stop": Verb("shut a VM down; its kernels end", "stop default", (_NAME, _FORCE, _YES)),
    "hibernate": Verb(
        "save a VM's memory and end it; its kernels live on when it is started again",
        "hibernate default",
        (
            _NAME,
            Argument("--force", action="store_true", help="also while cells run; they go on when it wakes"),
            Argument("--discard", action="store_true", help="remove what was saved, and the kernels with it"),
        ),
    ),
    "restart": Verb("stop a VM and start it again; its kernels end", "restart default", (_NAME, _FORCE, _YES)),
    "create": Verb(
        "make a VM from one of Lima's templates, or from an environment file",
        "create web --template debian-12 --memory 2GiB",
        (
            _THIS,
            Argument("--template", default="default", metavar="NAME", help="see: template list"),
            Argument("--environment", metavar="FILE", help="instead of a template; it says what the VM has as well"),
            *_SIZES,
            Argument("--start", action="store_true", help="start it as well"),
        ),
    ),
    "delete": Verb("delete a VM, with its disk", "delete web", (_THIS, _FORCE)),
    "factory-reset": Verb("give a VM a new disk, as when it was made", "factory-reset web", (_THIS, _FORCE)),
    "edit": Verb("change what a stopped VM has", "edit web --cpus 4 --memory 8GiB", (_NAME, *_SIZES)),
    "copy": Verb(
        "copy files and directories between host and guest, the guest's as NAME:PATH or :PATH",
        "copy data.csv :/tmp/",
        (
            Argument("paths", nargs="+", metavar="PATH", help="what to copy, and at last where to"),
            _OVERWRITE,
        ),
    ),
    "shell": Verb(
        "run one command line in the guest",
        "shell uname -a",
        (
            _INSTANCE,
            Argument("--cwd", metavar="DIR", help="where; LIMA_WORKDIR or this directory when not given"),
            Argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="what to run"),
        ),
    ),
    "forward": Verb(
        "show a port of the guest on this host's loopback address",
        "forward 8000:8000",
        (Argument("ports", type=_ports, metavar="GUEST[:HOST]", help="without HOST one that is free"), _INSTANCE),
    ),
    "unforward": Verb(
        "end a forward",
        "unforward 8000",
        (Argument("port", type=_port, metavar="GUEST", help="the guest's port"), _INSTANCE),
    ),
    "ports": Verb("where something listens in the guest, and where that is on this host", "ports", (_NAME,)),
    "mount": Verb(
        "show a directory of this host to a running VM; without one, list what it shows",
        "mount ~/data",
        (
            Argument("directory", nargs="?", metavar="DIR", help="the directory of this host"),
            Argument("--read-only", action="store_true", help="the guest may not write there"),
            _INSTANCE,
        ),
    ),
    "unmount": Verb(
        "show a directory no longer",
        "unmount ~/data",
        (Argument("directory", metavar="DIR", help="the directory of this host"), _INSTANCE),
    ),
    "socket": Verb(
        "share a unix socket: the guest's on this host, or with --reverse this host's in the guest",
        "socket /var/run/docker.sock docker.sock",
        (
            Argument("source", metavar="FROM", help="the socket somebody listens on"),
            Argument("target", metavar="TO", help="where it shall be seen"),
            Argument("--reverse", action="store_true", help="FROM is on this host, TO in the guest"),
            _INSTANCE,
        ),
    ),
    "logs": Verb(
        "the end of what Lima or the guest's console said",
        "logs --source serial --lines 20",
        (
            _NAME,
            Argument("--source", choices=("hostagent", "serial", "boot"), default="hostagent", help="whose words"),
            Argument("--lines", type=int, default=50, metavar="N", help="how many (default: %(default)s)"),
        ),
    ),
    "info": Verb(
        "all that is known of a VM, or of Lima itself",
        "info default",
        (Argument("name", nargs="?", metavar="NAME", help="the instance; Lima itself when not given"),),
    ),
    "snapshot": Verb(
        "keep a VM's state, and go back to it",
        "snapshot create before-update",
        (_action("create", "apply", "delete", "list"), Argument("tag", nargs="?", metavar="TAG"), _INSTANCE),
    ),
    "clone": Verb(
        "make a copy of a stopped VM",
        "clone default other",
        (Argument("source", metavar="NAME"), Argument("target", metavar="NEW")),
    ),
    "disk": Verb(
        "Lima's additional disks",
        "disk create data --size 10GiB",
        (
            _action("list", "create", "delete", "resize", "unlock"),
            Argument("disk", nargs="?", metavar="DISK"),
            Argument("--size", metavar="SIZE", help="such as 10GiB"),
            _FORCE,
        ),
    ),
    "prune": Verb(
        "remove downloads that Lima keeps",
        "prune --keep-referred",
        (Argument("--keep-referred", action="store_true", help="but those that an instance or template needs"),),
    ),
    "template": Verb("Lima's templates", "template list", (_action("list"),)),
    "env": Verb("set what a template offers, such as DOCKER_HOST, in this kernel", "env", (_NAME,)),
    "kernels": Verb("the kernels that live in a VM", "kernels", (_NAME,)),
    "doctor": Verb("check what this machine needs, and say how to mend it", "doctor"),
    "push": Verb(
        "copy variables of this kernel into a kernel that lives in a VM",
        "push frame --to analysis.ipynb",
        (
            _VARIABLES,
            Argument("--to", dest="kernel", required=True, metavar="KERNEL", help=_WHICH),
            _PICKLE,
            _WAIT,
            _INSTANCE,
        ),
    ),
    "pull": Verb(
        "copy variables of a kernel that lives in a VM into this one",
        "pull frame --from analysis.ipynb",
        (
            _VARIABLES,
            Argument("--from", dest="kernel", required=True, metavar="KERNEL", help=_WHICH),
            _PICKLE,
            _WAIT,
            _INSTANCE,
        ),
    ),
    "use": Verb(
        "say which instance is meant when none is named", "use default", (Argument("name", nargs="?", metavar="NAME"),)
    ),
}
# What says which instance is meant, as for the command `lima`; the first that is set counts.
INSTANCE_VARIABLE = "LIMA_INSTANCE"
SHELL_VARIABLE = "LIMA_SHELL"
WORKDIR_VARIABLE = "LIMA_WORKDIR"


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


CELL: Sequence[Argument] = (
    _NAME,
    Argument("--shell", metavar="PROGRAM", help="what runs the cell; LIMA_SHELL or bash when not given"),
    Argument("--user", metavar="USER", help="as whom, by sudo"),
    Argument("--cwd", metavar="DIR", help="where; LIMA_WORKDIR or this directory when not given"),
    Argument("--env", type=_variable, action="append", default=[], metavar="NAME=VALUE", help="repeatable"),
    Argument("--timeout", type=_seconds, metavar="SECONDS", help="end it then"),
    Argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="an exit code other than 0 is an error (default)",
    ),
    Argument("--capture", metavar="VAR", help="keep stdout, stderr and code in this variable instead of showing them"),
    Argument("--background", action="store_true", help="do not wait for it"),
)


class UsageError(Exception):
    """The arguments cannot be understood."""


class Parser(argparse.ArgumentParser):
    """A parser that raises instead of ending the process."""

    def error(self, message: str) -> Any:
        raise UsageError(message)


def filled(parser: argparse.ArgumentParser, arguments: Sequence[Argument]) -> argparse.ArgumentParser:
    """Give a parser these arguments, and return it."""
    for argument in arguments:
        parser.add_argument(*argument.names, **argument.settings)
    return parser


def parser_of(verb: str, make: Callable[..., argparse.ArgumentParser] = Parser) -> argparse.ArgumentParser:
    """Return the parser of a verb's arguments.

    :param make: the class of it, where another one shows help and errors better.
    :raises KeyError: when there is no such verb.
    """
    said = VERBS[verb]
    return filled(make(prog=f"%lima {verb}", description=said.help, add_help=False), said.arguments)
