"""`%lima` in a guest's kernel: cells run here, and whatever concerns the VM itself is asked of the host."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import magic, protocol
from .arguments import parser_of
from .backend import Call, Ended, LimaError, Script, Sink, Started, Transfer, Watcher
from .results import Note, Result

# Seconds: between two looks at the clock, and for a script's programs to end by themselves.
_TICK = 0.5
_GRACE = 2.0
_CHUNK = 65536
# The script comes as standard input, and is read from elsewhere: its own programs find nothing there.
_WRAPPER = 'exec 3<&0 </dev/null; exec "$@" /dev/fd/3'


class GuestBackend:
    """Does what a cell of this guest asks for.

    :param address: where its host is asked.
    """

    def __init__(self, address: protocol.Address) -> None:
        self.default = address.instance
        self._address = address

    def instances(self) -> Sequence[str]:
        """Return this VM's name: a guest knows of no other."""
        return [self.default]

    # Verbs

    def run(self, call: Call, watcher: Watcher) -> Result:
        """Copy here; have the host do everything else."""
        if call.verb == "copy":
            return _copied(parser_of("copy").parse_args(list(call.arguments)), self.default)
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(self._address.path)
                sock.sendall(self._address.request(call.verb, call.arguments))
                for message in protocol.messages(_received(sock, watcher)):
                    if "step" in message:
                        watcher.step(str(message["step"]))
                    elif (result := protocol.decoded(message)) is not None:
                        return result
        except (OSError, ValueError, TypeError) as error:
            raise protocol.unreachable(error) from None
        raise LimaError(f"The host hung up before it said how `{call.verb}` ended.", "See: %lima status")

    def push(self, transfer: Transfer, namespace: Mapping[str, Any], watcher: Watcher) -> None:
        """Refuse: a guest's kernel reaches no other kernel."""
        raise LimaError(_NO_OTHERS)

    def pull(self, transfer: Transfer, watcher: Watcher) -> Mapping[str, Any]:
        """Refuse: a guest's kernel reaches no other kernel."""
        raise LimaError(_NO_OTHERS)

    # Cells

    def execute(self, script: Script, sink: Sink) -> Ended:
        """Run a cell to its end; an interrupt ends all that it started and left in its process group."""
        with self._running(script, subprocess.PIPE, subprocess.PIPE) as process:
            try:
                _pump(process, sink, script.timeout)
                return Ended(process.wait())
            except TimeoutError:
                _end(process)
                raise LimaError(f"The script did not end within {script.timeout:g} s, and was ended.") from None
            except BaseException:
                _end(process)
                raise

    def start(self, script: Script) -> Started:
        """Run a cell in the background."""
        handle, log = tempfile.mkstemp(prefix="lima-background-", suffix=".log")
        try:
            process = self._start(script, handle, handle)
        finally:
            os.close(handle)
        # Somebody has to take notice of its end.
        threading.Thread(target=process.wait, name="lima-background", daemon=True).start()
        return Started(process.pid, log)

    @contextlib.contextmanager
    def _running(self, script: Script, stdout: int, stderr: int) -> Iterator[subprocess.Popen[bytes]]:
        with self._start(script, stdout, stderr) as process:
            yield process

    def _start(self, script: Script, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
        if script.instance != self.default:
            raise LimaError(f"A cell of this kernel runs in its own VM {self.default!r}, not in {script.instance!r}.")
        if shutil.which(script.shell[0]) is None:
            raise LimaError(f"There is no {script.shell[0]!r} in this VM.")
        argv = ["sh", "-c", _WRAPPER, "sh", *script.shell]
        if script.user:
            kept = ",".join(script.env)
            argv = ["sudo", "-n", *([f"--preserve-env={kept}"] if kept else []), "-u", script.user, "--", *argv]
        with tempfile.TemporaryFile() as text:
            text.write(script.text.encode(errors="surrogateescape"))
            text.seek(0)
            try:
                return subprocess.Popen(
                    argv,
                    stdin=text,
                    stdout=stdout,
                    stderr=stderr,
                    cwd=script.cwd or script.here,
                    env={**os.environ, **script.env},
                    start_new_session=True,
                )
            except OSError as error:
                raise LimaError(f"The script cannot be run: {error.strerror}: {error.filename}.") from None


_NO_OTHERS = "A kernel in a VM reaches no other kernel: push and pull are for a kernel of the host."


def _received(sock: socket.socket, watcher: Watcher) -> Iterator[bytes]:
    """Yield what the host says until it hangs up."""
    sock.settimeout(_TICK)
    while True:
        try:
            data = sock.recv(_CHUNK)
        except TimeoutError:
            watcher.tick()
            continue
        if not data:
            return
        yield data


def _pump(process: subprocess.Popen[bytes], sink: Sink, timeout: float | None) -> None:
    """Hand a process's output on until there is no more.

    :raises TimeoutError: when it takes longer.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, sink.stdout)
        selector.register(process.stderr, selectors.EVENT_READ, sink.stderr)
        clock = _Clock(timeout)
        while selector.get_map():
            for key, _ in selector.select(clock.left()):
                data = os.read(key.fd, _CHUNK)
                if data:
                    key.data(data)
                else:
                    selector.unregister(key.fileobj)


class _Clock:
    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else _now() + timeout

    def left(self) -> float | None:
        """Return how many seconds are left, None for any number.

        :raises TimeoutError: when none are.
        """
        if self._end is None:
            return None
        left = self._end - _now()
        if left <= 0:
            raise TimeoutError
        return left


def _now() -> float:
    return os.times().elapsed


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a script with all that is in its process group, at first gently."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
            break
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _copied(options: Any, instance: str) -> Note:
    """Copy within the guest: it sees the host's directory at the same path, and nothing else of it."""
    *sources, target = (_local(path, instance) for path in options.paths)
    if not sources:
        raise LimaError("`copy` needs what to copy, and where to.")
    for source in sources:
        _copy(Path(source), Path(target), force=options.force)
    return Note(f"Copied {', '.join(sources)} to {target}.")


def _local(path: str, instance: str) -> str:
    for prefix in (":", f"{instance}:"):
        if path.startswith(prefix):
            return path[len(prefix) :]
    return path


def _copy(source: Path, target: Path, *, force: bool) -> None:
    if target.is_dir():
        target = target / source.name
    if target.exists() and not force:
        raise LimaError(f"{target} exists already.", "To replace it: --force")
    try:
        if source.is_dir():
            if target.is_file():
                raise LimaError(f"{source} is a directory, and {target} a file.")
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        else:
            # What is there stays until the copy is complete.
            partial = target.with_name(f".{target.name}.{os.getpid()}")
            try:
                shutil.copy2(source, partial)
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise LimaError(f"{source} could not be copied to {target}: {error.strerror or error}.") from None


def load(shell: Any) -> None:
    """Give a kernel's shell `%lima` and `%%lima`."""
    magic.load(shell, GuestBackend(protocol.Address.of(shell)))
