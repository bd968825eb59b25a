"""``python -m lima_kernels.sftp DIRECTORY [--read-only] --uid N --gid N``: serve one directory on standard input.

The user and group are the guest's, which the files of ours are shown as. It ends with 0 when the client ends.
"""

from __future__ import annotations

import os
import resource
import sys

from .link import connect
from .server import MAX_HANDLES, ReadOnlyServer, Server, serve
from .tree import Owners, Tree
from .wire import Malformed

_USAGE = "Usage: python -m lima_kernels.sftp DIRECTORY [--read-only] --uid N --gid N"
# Two for each open directory, and some for the walks.
_DESCRIPTORS = 2 * MAX_HANDLES + 64


class _Arguments:
    """What the command line says. Its parser is this and not argparse, which takes as long as all else at the start.

    :raises ValueError: when it says something else.
    """

    def __init__(self, words: list[str]) -> None:
        self.read_only = False
        numbers: dict[str, int] = {}
        directories: list[str] = []
        rest = iter(words)
        for word in rest:
            if word == "--read-only":
                self.read_only = True
            elif word in ("--uid", "--gid"):
                numbers[word] = int(next(rest, ""))
            elif word.startswith("-"):
                raise ValueError(word)
            else:
                directories.append(word)
        (self.directory,) = directories
        if len(numbers) != 2 or not all(0 <= number < 2**32 for number in numbers.values()):
            raise ValueError("--uid and --gid")
        self.uid, self.gid = numbers["--uid"], numbers["--gid"]


def _allow_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _fail(message: str) -> int:
    line = "".join(character if character.isprintable() else "?" for character in message)
    print(line, file=sys.stderr)
    return 1


def main(words: list[str]) -> int:
    """Serve until the client ends; return the exit code."""
    try:
        arguments = _Arguments(words)
    except ValueError:
        return _fail(_USAGE)
    # The guest's kernel has applied the umask of whoever asks there.
    os.umask(0)
    _allow_descriptors()
    try:
        tree = Tree(arguments.directory, Owners(arguments.uid, arguments.gid))
    except OSError as error:
        return _fail(f"The directory {arguments.directory} cannot be served: {error.strerror}.")
    server = ReadOnlyServer(tree) if arguments.read_only else Server(tree)
    try:
        serve(connect(), server)
    except Malformed as error:
        return _fail(f"The SFTP client of {arguments.directory} does not speak the protocol: {error}.")
    except (BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        # Who goes before the replies have come has ended, too.
        return 0
    except OSError as error:
        return _fail(f"The connection to the SFTP client of {arguments.directory} broke: {error.strerror}.")
    finally:
        server.close()
    return 0


sys.exit(main(sys.argv[1:]))
