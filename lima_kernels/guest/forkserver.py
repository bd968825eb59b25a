"""The program that runs IN the guest: it has ipykernel imported and forks kernels.

Standard library and ipykernel only; Python 3.10 and later, as guests have it. One thread and one selector, so that a
fork copies no lock in use. It is reached through a unix socket in a 0700 directory and speaks JSON lines:

    {"id": 1, "op": "spawn", "kernel": ID, "cwd": DIR, "env": {...}, "connection": {...}, "arguments": [...]}
    {"id": 2, "op": "signal", "kernel": ID, "signum": 2}
    {"id": 3, "op": "list"}
    {"id": 4, "op": "remove", "kernel": ID}

Every request is answered by a line with its id and either "ok" or "error". The end of a kernel is told to every client
as {"event": "exit", "kernel": ID, "code": N}; N is negative for a signal, as subprocess has it.
"""

import argparse
import contextlib
import fcntl
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import sys

PRELOAD = ("ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.zmqshell", "IPython.core.completer", "psutil")
OUTPUT_LOG = "output.log"
# The last lines of a kernel's raw output say why it died; what a cell prints does not go there.
LOG_TAIL = 20
LINE_LIMIT = 1 << 20
# What systemd or sshd tells us of ourselves is no kernel's business.
OURS_ONLY = (
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "SYSTEMD_EXEC_PID",
    "MAINPID",
    "SSH_CLIENT",
    "SSH_CONNECTION",
    "SSH_TTY",
)


class Kernel:
    """One kernel's process, its directory, and whom to tell that it is ready."""

    def __init__(self, name, pid, directory, ready):
        self.name = name
        self.pid = pid
        self.directory = directory
        self.ready = ready
        self.code = None
        self.waiting = None

    def log_tail(self):
        try:
            with open(os.path.join(self.directory, OUTPUT_LOG), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
                return file.read().decode(errors="replace").splitlines()[-LOG_TAIL:]
        except OSError:
            return []


class Client:
    """One connection to us; what cannot be sent at once is kept until it can."""

    def __init__(self, sock):
        self.sock = sock
        self.incoming = b""
        self.outgoing = b""


class Refused(Exception):
    """A request that cannot be obeyed; its text goes back to the client."""


class Spawned(BaseException):
    """Carries the child of a fork out of the server's loop, so that a kernel runs on a clean stack."""

    def __init__(self, request, directory, ready):
        self.request = request
        self.directory = directory
        self.ready = ready


class Server:
    def __init__(self, root, listener):
        self.root = root
        self.listener = listener
        self.kernels = {}
        self.clients = {}
        self.failure = ""
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ, self.accept)
        self.wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self.wake[1], warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.selector.register(self.wake[0], selectors.EVENT_READ, self.reap)

    def serve(self):
        while True:
            for key, mask in self.selector.select():
                key.data(key.fileobj, mask)

    # Clients

    def accept(self, listener, _mask):
        sock, _ = listener.accept()
        sock.setblocking(False)
        self.clients[sock] = Client(sock)
        self.selector.register(sock, selectors.EVENT_READ, self.exchange)

    def drop(self, client):
        self.clients.pop(client.sock, None)
        self.selector.unregister(client.sock)
        client.sock.close()

    def exchange(self, sock, mask):
        client = self.clients.get(sock)
        if client is None:
            return
        try:
            if mask & selectors.EVENT_WRITE:
                self.flush(client)
            if mask & selectors.EVENT_READ:
                data = sock.recv(65536)
                if data:
                    self.receive(client, data)
                else:
                    self.drop(client)
        except BlockingIOError:
            pass
        except OSError:
            self.drop(client)

    def receive(self, client, data):
        *lines, client.incoming = (client.incoming + data).split(b"\n")
        if len(client.incoming) > LINE_LIMIT:
            self.drop(client)
            return
        for line in lines:
            self.answer(client, line)

    def send(self, client, message):
        client.outgoing += json.dumps(message).encode() + b"\n"
        try:
            self.flush(client)
        except OSError:
            self.drop(client)

    def flush(self, client):
        with contextlib.suppress(BlockingIOError):
            while client.outgoing:
                client.outgoing = client.outgoing[client.sock.send(client.outgoing) :]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.outgoing else 0)
        self.selector.modify(client.sock, events, self.exchange)

    def answer(self, client, line):
        number = None
        try:
            request = json.loads(line)
            number = request.get("id")
            operations = {"spawn": self.spawn, "signal": self.signal, "list": self.list, "remove": self.remove}
            reply = operations[request["op"]](client, request)
        except Refused as error:
            reply = {"error": str(error)}
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            reply = {"error": "%s: %s" % (type(error).__name__, error)}
        if reply is not None:
            self.send(client, {"id": number, **reply})

    # Operations

    def spawn(self, client, request):
        if self.failure:
            raise Refused(self.failure)
        name = request["kernel"]
        if not name.isalnum() or name in self.kernels:
            raise Refused("a kernel's name must be new and alphanumeric")
        request["cwd"] = os.path.expanduser(request["cwd"])
        if not os.path.isdir(request["cwd"]):
            raise Refused("there is no directory %s in the guest" % request["cwd"])
        directory = os.path.join(self.root, "k", name)
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory, mode=0o700)
        ready_r, ready_w = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ready_r)
            raise Spawned(request, directory, ready_w)
        os.close(ready_w)
        kernel = Kernel(name, pid, directory, ready_r)
        kernel.waiting = (client, request.get("id"))
        self.kernels[name] = kernel
        self.selector.register(ready_r, selectors.EVENT_READ, lambda *_: self.settle(kernel))

    def settle(self, kernel):
        """The child said that its sockets are bound, or ended before."""
        bound = os.read(kernel.ready, 1)
        self.selector.unregister(kernel.ready)
        os.close(kernel.ready)
        client, number = kernel.waiting
        kernel.waiting = None
        if bound:
            reply = {"id": number, "ok": {"pid": kernel.pid}}
        else:
            reply = {"id": number, "error": "the kernel ended before it was ready", "log": kernel.log_tail()}
        if client.sock in self.clients:
            self.send(client, reply)

    def signal(self, _client, request):
        kernel = self.kernels[request["kernel"]]
        if kernel.code is None:
            # The child calls setsid first thing; until it has, there is no group of its own to signal.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(kernel.pid, int(request["signum"]))
        return {"ok": {}}

    def list(self, _client, _request):
        return {"ok": {name: {"pid": kernel.pid, "code": kernel.code} for name, kernel in self.kernels.items()}}

    def remove(self, _client, request):
        kernel = self.kernels.get(request["kernel"])
        if kernel is not None:
            end_session(kernel.pid)
            if kernel.code is None:
                with contextlib.suppress(ChildProcessError):
                    self.exited(kernel, os.waitpid(kernel.pid, 0)[1])
            del self.kernels[kernel.name]
            shutil.rmtree(kernel.directory, ignore_errors=True)
        return {"ok": {}}

    # Children

    def reap(self, wake, _mask):
        with contextlib.suppress(BlockingIOError):
            while os.read(wake, 4096):
                pass
        for kernel in list(self.kernels.values()):
            if kernel.code is None:
                pid, status = os.waitpid(kernel.pid, os.WNOHANG)
                if pid:
                    self.exited(kernel, status)

    def exited(self, kernel, status):
        kernel.code = os.waitstatus_to_exitcode(status)
        event = {"event": "exit", "kernel": kernel.name, "code": kernel.code, "log": kernel.log_tail()}
        for client in list(self.clients.values()):
            self.send(client, event)

    def close_in_child(self):
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in self.wake:
            os.close(fd)
        for kernel in self.kernels.values():
            if kernel.waiting is not None:
                os.close(kernel.ready)
        self.listener.close()
        for client in self.clients.values():
            client.sock.close()
        self.selector.close()


def end_session(leader):
    """Kill every process of a session: the kernel's own group, and the groups of what it started."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.getsid(int(entry)) == leader:
                    os.kill(int(entry), signal.SIGKILL)


def run_kernel(spawned):
    """Become a kernel: in the child, on a clean stack; returns when the kernel ends."""
    request, directory = spawned.request, spawned.directory
    os.setsid()
    log = os.open(os.path.join(directory, OUTPUT_LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(null)
    for name in OURS_ONLY:
        os.environ.pop(name, None)
    binaries = os.path.dirname(sys.executable)
    os.environ["PATH"] = binaries + os.pathsep + os.environ.get("PATH", os.defpath)
    os.environ.update(request["env"])
    # An interpreter of its own would have taken PYTHONPATH over at its start.
    sys.path[:0] = [entry for entry in request["env"].get("PYTHONPATH", "").split(os.pathsep) if entry]
    os.chdir(request["cwd"])
    connection_file = os.path.join(directory, "connection.json")
    with open(os.open(connection_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(request["connection"], file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(signum, signal.SIG_IGN if signum == signal.SIGPIPE else signal.SIG_DFL)

    import ipykernel_launcher
    from ipykernel.kernelapp import IPKernelApp

    sys.argv = [ipykernel_launcher.__file__, "-f", connection_file, *request.get("arguments", ())]
    gc.unfreeze()
    # As if systemd were the parent: nothing to watch, and no advice to press Ctrl-C.
    app = IPKernelApp.instance(parent_handle=1)
    app.initialize(sys.argv[1:])
    os.write(spawned.ready, b"1")
    os.close(spawned.ready)
    app.start()


def preload():
    """Import what every kernel needs; returns why that failed, or nothing."""
    try:
        importlib.import_module(PRELOAD[0])
    except ImportError as error:
        return "ipykernel cannot be imported by %s: %s" % (sys.executable, error)
    for name in PRELOAD[1:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # What was imported stays shared with the children: the collector must not touch its pages.
    gc.collect()
    gc.freeze()
    return ""


def notify_started():
    """Tell systemd, where it started us, that the socket is there (sd_notify(3)); returns the exit code for that."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            sock.send(b"READY=1")
    return 0


def detach():
    """Go on in a process of a session of its own; the first process ends when the socket is there."""
    started_r, started_w = os.pipe()
    if os.fork():
        os.close(started_w)
        os._exit(0 if os.read(started_r, 1) else 1)
    os.close(started_r)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    return started_w


def listen(path):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(64)
    return listener


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="our 0700 directory")
    parser.add_argument("--socket", required=True, help="where to listen")
    parser.add_argument("--detach", action="store_true", help="return when the socket is there")
    options = parser.parse_args()
    os.umask(0o077)
    lock = os.open(options.socket + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # Another server was started at the same moment, and serves.
        return notify_started()
    # What kernels left that a shutdown of the guest ended.
    shutil.rmtree(os.path.join(options.root, "k"), ignore_errors=True)
    os.makedirs(os.path.join(options.root, "k"))
    started = detach() if options.detach else None
    server = Server(options.root, listen(options.socket))
    notify_started()
    if started is not None:
        os.write(started, b"1")
        os.close(started)
    os.umask(0o022)
    server.failure = preload()
    try:
        server.serve()
    except Spawned as caught:
        spawned = caught
    os.close(lock)
    server.close_in_child()
    # What it raises goes to the kernel's log, as an interpreter's own.
    run_kernel(spawned)
    return 0


if __name__ == "__main__":
    sys.exit(main())
