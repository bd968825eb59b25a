"""`%lima` on a real VM: the notebook that shows it, each verb, and what it costs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import nbformat
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient

from lima_kernels.environment.image import DEFAULT_IMAGE, find_image
from lima_kernels.lima.limactl import Limactl
from lima_kernels.magics.backend import LimaError
from tests.client import CellError, Notebook

from .conftest import INSTANCE, Figures, Start, guest_shell, run, until

pytestmark = pytest.mark.timeout(900)
EXAMPLE = Path(__file__).parents[2] / "notebooks" / "02-magics.ipynb"
MAIN = threading.main_thread().ident or 0
MEBIBYTE = 1024 * 1024
STATUS = "print([row['name'] for row in get_ipython().run_line_magic('lima', 'status')])"


@pytest.fixture
def shell(start: Start, notebooks: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    """A host's IPython, with a VM that runs and shows the notebook's directory."""
    monkeypatch.setenv("LIMA_INSTANCE", INSTANCE)
    monkeypatch.setenv("IPYTHONDIR", str(notebooks.parent / "ipython"))
    monkeypatch.chdir(notebooks)
    start().manager.shutdown_kernel(now=True)
    made = InteractiveShell.instance()
    made.run_line_magic("load_ext", "lima_kernels")
    yield made
    made.history_manager.end_session()
    InteractiveShell.clear_instance()


@pytest.fixture
def private(directories: Path) -> Iterator[Path]:
    """A directory that nobody else may enter."""
    made = directories / "private"
    made.mkdir(mode=0o700)
    yield made
    shutil.rmtree(made)


def test_the_notebook_of_the_magics(
    start: Start, notebooks: Path, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The notebook stops the VM, which it may while nobody uses it.
    start().manager.shutdown_kernel(now=True)
    monkeypatch.setenv("LIMA_INSTANCE", INSTANCE)
    example = nbformat.read(EXAMPLE, as_version=4)
    with figures.timed("the notebook of the magics"):
        NotebookClient(example, timeout=600, resources={"metadata": {"path": str(notebooks)}}).execute()
    printed = "".join(
        output.get("text", "")
        for cell in example.cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream"
    )
    assert "Ada: Linux" in printed
    assert "from the VM" in printed
    statuses = [
        output["data"]["text/plain"]
        for cell in example.cells
        if cell.source == "%lima status"
        for output in cell.outputs
        if output.output_type == "execute_result"
    ]
    assert ["Running" in statuses[0], "Stopped" in statuses[1]] == [True, True]


def test_a_script_its_output_and_its_end(shell: InteractiveShell, notebooks: Path) -> None:
    shell.run_cell_magic("lima", "--capture said --no-check", "pwd; echo err >&2; exit 7")
    said = shell.user_ns["said"]
    assert (said.stdout, said.stderr, said.code) == (f"{notebooks}\n", "err\n", 7)
    shell.run_cell_magic("lima", "--user root --capture said", "id -u; cat /proc/self/cmdline | tr '\\0' ' '")
    assert shell.user_ns["said"].stdout.startswith("0\n")
    with pytest.raises(LimaError, match="did not end within 2 s"):
        shell.run_cell_magic("lima", "--timeout 2", "sleep 600")

    def interrupt() -> None:
        until(lambda: guest_shell("pgrep -fc '^sleep 4321$' || true") == "2", "the script does not run")
        signal.pthread_kill(MAIN, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        shell.run_cell_magic("lima", "", "sleep 4321 & sleep 4321")
    until(lambda: guest_shell("pgrep -fc '^sleep 4321$' || true") == "0", "the script's processes live on")


def test_what_it_costs(shell: InteractiveShell, figures: Figures) -> None:
    """A status costs no subprocess; a cell no more than two round trips beside a plain command."""

    def median(work: Any) -> float:
        taken = []
        for _ in range(15):
            began = time.monotonic()
            work()
            taken.append(time.monotonic() - began)
        return statistics.median(taken)

    control = Path(os.environ["LIMA_HOME"]) / INSTANCE / "ssh.config"
    ssh = ["ssh", "-F", str(control), f"lima-{INSTANCE}"]
    plain = median(lambda: subprocess.run([*ssh, "true"], stdin=subprocess.DEVNULL, check=True, capture_output=True))
    ours = median(lambda: shell.run_cell_magic("lima", "", "true"))
    status = median(lambda: shell.run_line_magic("lima", "status"))
    trip = median(lambda: shell.run_line_magic("lima", "kernels"))
    figures.seconds |= {
        "ssh -S master true": round(plain, 4),
        "%%lima true": round(ours, 4),
        "%lima status": round(status, 4),
        "%lima kernels": round(trip, 4),
    }
    # The guest starts a shell either way; ours starts one more program there.
    assert ours < plain * 3
    assert status < plain


@pytest.mark.long
def test_a_large_file_is_copied_both_ways(shell: InteractiveShell, notebooks: Path, figures: Figures) -> None:
    size = 100 * MEBIBYTE
    source = notebooks.parent / "large"
    with source.open("wb") as file:
        for _ in range(size // MEBIBYTE):
            file.write(os.urandom(MEBIBYTE))
    limactl = [str(Limactl().path), "--tty=false", "copy", "--backend=scp"]

    def timed(name: str, work: Any) -> float:
        began = time.monotonic()
        work()
        figures.seconds[name] = round(time.monotonic() - began, 2)
        return figures.seconds[name]

    def lima(*words: str) -> None:
        subprocess.run([*limactl, *words], stdin=subprocess.DEVNULL, check=True, capture_output=True, timeout=300)

    theirs = timed("limactl copy, 100 MiB up", lambda: lima(str(source), f"{INSTANCE}:/tmp/theirs"))
    ours = timed("%lima copy, 100 MiB up", lambda: shell.run_line_magic("lima", f"copy {source} :/tmp/ours --force"))
    assert guest_shell("cmp /tmp/theirs /tmp/ours && echo same") == "same"
    back = notebooks.parent / "back"
    down = timed("limactl copy, 100 MiB down", lambda: lima(f"{INSTANCE}:/tmp/ours", str(back)))
    ours_down = timed(
        "%lima copy, 100 MiB down", lambda: shell.run_line_magic("lima", f"copy :/tmp/ours {back} --force")
    )
    assert back.read_bytes() == source.read_bytes()
    guest_shell("rm /tmp/ours /tmp/theirs")
    back.unlink()
    source.unlink()
    # Not by how much: what else this machine does decides that. The figures say it.
    assert ours < theirs * 2
    assert ours_down < down * 2


def test_directories_and_ports(shell: InteractiveShell, notebooks: Path) -> None:
    tree = notebooks.parent / "tree é"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("content")
    (tree / "link").symlink_to("/etc/hostname")
    shell.run_line_magic("lima", f"copy '{tree}' :/tmp/")
    assert guest_shell("cat '/tmp/tree é/sub/file'; readlink '/tmp/tree é/link'") == "content/etc/hostname"
    shell.run_line_magic("lima", f"copy ':/tmp/tree é' '{notebooks.parent}/came back'")
    assert (notebooks.parent / "came back" / "link").is_symlink()
    guest_shell("rm -r '/tmp/tree é'")
    for made in (tree, notebooks.parent / "came back"):
        shutil.rmtree(made)
    assert 22 in [row["port"] for row in shell.run_line_magic("lima", "ports")]


# Answers on a port and on a socket, and ends with the third answer.
SERVER = """
import os, selectors, socket
path = "/tmp/it's here.sock"
ours = socket.socket(socket.AF_UNIX)
ours.bind(path)
ears = selectors.DefaultSelector()
for ear in (socket.create_server(("127.0.0.1", 8124)), ours):
    ear.listen()
    ears.register(ear, selectors.EVENT_READ)
print("listening", flush=True)
for _ in range(3):
    (found, _), *_ = ears.select()
    line, _ = found.fileobj.accept()
    line.sendall(b"the guest heard " + line.recv(100))
    line.close()
os.unlink(path)
print("done")
"""


def said(line: socket.socket, address: Any, text: bytes) -> bytes:
    """Say something to whoever listens at an address, and return what that answers."""
    with line:
        line.settimeout(30)
        line.connect(address)
        line.sendall(text)
        return b"".join(iter(lambda: line.recv(100), b""))


def test_a_script_in_the_background_its_port_and_its_socket(shell: InteractiveShell, private: Path) -> None:
    def lima(line: str) -> str:
        return str(shell.run_line_magic("lima", line))

    log = str(shell.run_cell_magic("lima", "--background --shell python3", SERVER)).split()[-1].rstrip(".")
    until(lambda: guest_shell(f"cat {log}") == "listening", "the script in the background does not run")
    port = int(lima("forward 8124").split("127.0.0.1:")[1].split()[0])
    here = private / "here.sock"
    lima(f'socket "/tmp/it\'s here.sock" {here}')
    assert said(socket.socket(), ("127.0.0.1", port), b"a port") == b"the guest heard a port"
    assert said(socket.socket(socket.AF_UNIX), str(here), b"a socket") == b"the guest heard a socket"
    with pytest.raises(LimaError, match=rf"in use by \S+ \(pid {os.getpid()}\)"):
        lima(f"forward 8125:{port}")
    assert "8124" in lima("ports")
    lima("unforward 8124")
    with pytest.raises(ConnectionRefusedError):
        said(socket.socket(), ("127.0.0.1", port), b"a port")
    with pytest.raises(LimaError, match="8124 of lk-test is not forwarded by this kernel"):
        lima("unforward 8124")
    assert said(socket.socket(socket.AF_UNIX), str(here), b"again") == b"the guest heard again"
    until(lambda: guest_shell(f"tail -n 1 {log}") == "done", "the script in the background does not end")


def test_a_socket_of_this_host_in_the_guest(shell: InteractiveShell, private: Path) -> None:
    with socket.socket(socket.AF_UNIX) as ear:
        ear.bind(str(private / "host.sock"))
        ear.listen()
        shell.run_line_magic("lima", f"socket --reverse {private}/host.sock ~/new/host.sock")
        assert guest_shell("stat --format %a ~/new ~/new/host.sock").split() == ["700", "600"]

        def answer() -> None:
            line, _ = ear.accept()
            with line:
                line.sendall(b"the host heard " + line.recv(100))

        answering = threading.Thread(target=answer)
        answering.start()
        asked = "import socket; s = socket.socket(1); s.connect('new/host.sock'); s.sendall(b'it'); print(s.recv(99))"
        shell.run_cell_magic("lima", "--capture heard --cwd '~' --shell python3", asked)
        answering.join(30)
    assert shell.user_ns["heard"].stdout == "b'the host heard it'\n"
    with pytest.raises(LimaError, match="/etc/passwd exists in the guest and is no socket"):
        shell.run_line_magic("lima", f"socket --reverse {private}/host.sock /etc/passwd")


def test_a_directory_is_shown_and_taken_away(shell: InteractiveShell, private: Path) -> None:
    (private / "file").write_text("content")
    shell.run_line_magic("lima", f"mount {private} --read-only")
    assert guest_shell(f"cat {private}/file; touch {private}/new 2>&1 || true").endswith("Read-only file system")
    assert [row["directory"] for row in shell.run_line_magic("lima", "mount") if row["added"]] == [str(private)]
    with pytest.raises(LimaError, match="runs and shows"):
        shell.run_line_magic("lima", "snapshot create while-it-runs")
    shell.run_line_magic("lima", f"unmount {private}")
    assert guest_shell(f"ls -A {private} 2>/dev/null || true") == ""


def test_disks_and_downloads(shell: InteractiveShell, private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lima(line: str) -> Any:
        return shell.run_line_magic("lima", line)

    lima("disk create lk-data --size 1GiB")
    lima("disk resize lk-data --size 2GiB")
    assert [(row["name"], row["size"]) for row in lima("disk list")] == [("lk-data", "2 GiB")]
    with pytest.raises(LimaError, match="cannot shrink"):
        lima("disk resize lk-data --size 1GiB")
    lima("disk unlock lk-data")
    lima("disk delete lk-data")
    assert lima("disk list") == []
    # Not what this account has downloaded.
    monkeypatch.setenv("XDG_CACHE_HOME", str(private / "cache"))
    download = private / "cache" / "lima" / "download" / "by-url-sha256" / "x"
    download.mkdir(parents=True)
    (download / "data").write_bytes(os.urandom(MEBIBYTE))
    assert "1 MiB are freed" in lima("prune")
    assert not download.exists()


def test_variables_go_to_a_kernel_in_the_vm_and_come_back(shell: InteractiveShell, start: Start) -> None:
    notebook = start()
    (kernel,) = shell.run_line_magic("lima", "kernels")
    shell.user_ns |= {"frame": pd.DataFrame({"a": [1, 2], "b": ["x", "é"]}), "array": np.arange(100_000)}
    shell.run_line_magic("lima", f"push frame array --to {kernel['kernel']}")
    notebook.run("frame['a'] += len(array); doubled = array * 2")
    shell.run_line_magic("lima", f"pull frame doubled --from {kernel['kernel']}")
    assert shell.user_ns["frame"].to_dict("list") == {"a": [100_001, 100_002], "b": ["x", "é"]}
    assert shell.user_ns["doubled"].sum() == np.arange(100_000).sum() * 2
    assert guest_shell("ls -d ~/.lima-kernels/values-* 2>/dev/null || true") == ""


def test_verbs_that_look(shell: InteractiveShell) -> None:
    for line in ("list", "info", f"info {INSTANCE}", "logs --lines 3", "logs --source serial --lines 3", "mount"):
        assert len(shell.run_line_magic("lima", line)) > 0, line
    for line in ("template list", "doctor"):
        assert len(shell.run_line_magic("lima", line)) > 3, line
    with pytest.raises(LimaError, match="offers no socket or kubeconfig"):
        shell.run_line_magic("lima", "env")


@pytest.mark.long
def test_verbs_on_a_stopped_vm(shell: InteractiveShell, start: Start) -> None:
    """edit, snapshot, clone: on the real limactl."""

    def lima(line: str) -> Any:
        return shell.run_line_magic("lima", line)

    with pytest.raises(LimaError):
        lima("snapshot create while-it-runs")
    with pytest.raises(LimaError):
        lima(f"edit {INSTANCE} --cpus 1")
    lima("stop")
    lima(f"edit {INSTANCE} --cpus 1")
    assert lima(f"info {INSTANCE}") != []
    assert run(Limactl().get(INSTANCE)).cpus == 1
    lima(f"edit {INSTANCE} --cpus 2")
    lima("snapshot create before")
    assert [row["tag"] for row in lima("snapshot list")] == ["before"]
    lima("snapshot apply before")
    lima("snapshot delete before")
    lima(f"clone {INSTANCE} lk-clone")
    assert "lk-clone" in [row["name"] for row in lima("list")]
    lima("delete lk-clone")
    assert start().run("print(1 + 1)") == "2"


@pytest.fixture
def made(shell: InteractiveShell, directories: Path) -> Iterator[str]:
    """The name of a VM of a template of Lima's kind, which offers a socket and a kubeconfig to its host."""
    image = find_image(DEFAULT_IMAGE)
    assert image is not None
    template = {
        "images": [
            {
                "location": str(image.disk),
                "kernel": {"location": str(image.kernel), "cmdline": image.cmdline},
                "initrd": {"location": str(image.initrd)},
            }
        ],
        "containerd": {"system": False, "user": False},
        "portForwards": [{"guestSocket": "/run/docker.sock", "hostSocket": "{{.Dir}}/sock/docker.sock"}],
        "copyToHost": [{"guest": "/etc/hostname", "host": "{{.Dir}}/copied-from-guest/kubeconfig.yaml"}],
    }
    place = directories / "lima" / "_templates" / "lk-template.yaml"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(template))
    yield "lk-made"
    for name in ("lk-made", "lk-copy"):
        with contextlib.suppress(LimaError):
            shell.run_line_magic("lima", f"delete {name} --force")


@pytest.mark.long
def test_a_vm_of_a_template_from_its_making_to_its_end(
    shell: InteractiveShell, made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """create, env, snapshots of a VM that runs, restart, clone, factory-reset, delete: of a VM that is not ours."""

    def lima(line: str) -> Any:
        return shell.run_line_magic("lima", line)

    with pytest.raises(LimaError, match="Did you mean 'lk-template'"):
        lima(f"create {made} --template lk-templat")
    assert "1 CPUs, 1 GiB" in lima(f"create {made} --template lk-template --cpus 1 --memory 1GiB --disk 8GiB --start")
    lima(f"use {made}")
    for name in ("DOCKER_HOST", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    lima("env")
    assert os.environ["DOCKER_HOST"].endswith("/lk-made/sock/docker.sock")
    assert Path(os.environ["KUBECONFIG"]).read_text() == "lima-lk-made\n"

    # Back to a moment at which it ran; what is forwarded goes on.
    script = "cd /tmp && echo before >file && exec python3 -m http.server 8126"
    shell.run_cell_magic("lima", "--background", script)
    url = next(word for word in lima("forward 8126").split() if word.startswith("http"))
    until(lambda: page(f"{url}/file") == "before\n", "no page comes")
    lima("snapshot create running")
    shell.run_cell_magic("lima", "", "echo after >/tmp/file")
    lima("snapshot apply running")
    shell.run_cell_magic("lima", "--capture said", "cat /tmp/file")
    assert shell.user_ns["said"].stdout == "before\n"
    until(lambda: page(f"{url}/file") == "before\n", "no page comes after the snapshot")
    lima("snapshot delete running")
    lima("unforward 8126")

    with pytest.raises(LimaError, match="only a stopped VM can be copied"):
        lima(f"clone {made} lk-copy")
    # Also of a VM that has gone back: its host agent's own connection was lost by that.
    lima("restart")
    shell.run_cell_magic("lima", "--capture said", "cat /proc/sys/kernel/hostname")
    assert shell.user_ns["said"].stdout == "lima-lk-made\n"
    lima("stop")
    lima(f"clone {made} lk-copy")
    assert [row["made_by"] for row in lima("list") if row["name"] in (made, "lk-copy")] == ["others", "others"]
    lima("factory-reset lk-copy")
    with pytest.raises(LimaError, match="has no disk yet"):
        lima("snapshot create nothing --instance lk-copy")
    with pytest.raises(LimaError, match="was not made by lima-kernels"):
        lima("delete lk-copy")
    for name in ("lk-copy", made):
        lima(f"delete {name} --force")
    assert [row["name"] for row in lima("list")] == [INSTANCE]


def page(url: str) -> str:
    try:
        with urlopen(url, timeout=30) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


# In a guest's kernel


def answered(notebook: Notebook) -> bool:
    try:
        return notebook.run(STATUS) == f"['{INSTANCE}']"
    except CellError:
        return False


def test_a_guests_kernel_has_it(start: Start, notebooks: Path) -> None:
    notebook = start()
    assert notebook.outputs("%%lima\npwd; whoami >&2\n")["stdout"] == f"{notebooks}\n"
    until(lambda: answered(notebook), "the host does not answer")
    with pytest.raises(CellError, match="may not ask for 'delete'"):
        notebook.run(f"%lima delete {INSTANCE}")
    with pytest.raises(CellError, match="may ask for nothing of 'default'"):
        notebook.run("%lima stop default")
    with pytest.raises(CellError, match="would end with it"):
        notebook.run("%lima stop")
    assert notebook.run("kernels = %lima kernels\nprint(len(kernels))") == "1"
    notebook.run("import subprocess; subprocess.run(['sudo', 'pkill', '-f', '^sshd: .*@notty'])")
    until(lambda: answered(notebook), "the host does not answer after a lost connection")


# In a cell: what the host answers to a request, and what becomes of one that is none.
ATTACKER = """
import json, os, socket
from lima_kernels.magics import protocol
path, key = os.environ[protocol.SOCKET_VARIABLE], get_ipython().kernel.session.key

def connected():
    line = socket.socket(socket.AF_UNIX)
    # One with a limit would not wait for a place in the queue.
    line.connect(path)
    line.settimeout(60)
    return line

def heard(data):
    with connected() as line:
        try:
            line.sendall(data)
            answer = b"".join(iter(lambda: line.recv(65536), b""))
        except (BrokenPipeError, ConnectionResetError):
            return "cut off"
    return json.loads(answer.splitlines()[-1])["error"]["message"] if answer else "cut off"

def asked(verb, *arguments, token=protocol.token(key), version=protocol.VERSION):
    return heard(protocol.line({"version": version, "token": token, "verb": verb, "arguments": arguments}))
"""
ATTACKS = (
    ("asked('stop', 'default')", "may ask for nothing of 'default'"),
    ("asked('status', '../../other')", "may ask for nothing of '../../other'"),
    ("asked('logs', '/etc')", "may ask for nothing of '/etc'"),
    ("asked('copy', '/etc/passwd', ':/tmp/x')", "may not ask for 'copy'"),
    ("asked('mount', '/')", "may not ask for 'mount'"),
    ("asked('socket', '/etc', '/tmp/x', '--reverse')", "may not ask for 'socket'"),
    ("asked('create', 'more', '--start')", "may not ask for 'create'"),
    ("asked('eval')", "There is no verb 'eval'"),
    ("asked('forward', '80:8888')", "may not choose its host's port"),
    ("asked('stop')", "would end with it"),
    ("asked('status', token=protocol.token(b'guessed'))", "does not know who asks"),
    ("asked('status', token='')", "does not know who asks"),
    ("asked('status', version=99)", "speaks version 99"),
    ("heard(os.urandom(500).replace(b'\\n', b'') + b'\\n')", "what is no request"),
    ("heard(b'[' * 50_000 + b'\\n')", "what is no request"),
    ("heard(b'x' * 10_000_000)", "cut off"),
)


def test_what_a_hostile_guest_gets_from_its_host(start: Start) -> None:
    notebook = start()
    until(lambda: answered(notebook), "the host does not answer")
    notebook.run(ATTACKER)
    for attack, answer in ATTACKS:
        assert answer in notebook.run(f"print({attack})"), attack
    # Many at once, none of which says what it wants; then somebody in the guest takes the socket's place.
    notebook.run("many = [connected() for _ in range(200)]")
    assert notebook.run("print(sum(line.recv(1) == b'' for line in many[100:]))") == "100"
    notebook.run("for line in many: line.close()")
    until(lambda: answered(notebook), "the host does not answer after 200 connections")
    notebook.run("os.unlink(path); fake = socket.socket(socket.AF_UNIX); fake.bind(path); fake.close()")
    assert not answered(notebook)
    notebook.run("import subprocess; subprocess.run(['sudo', 'pkill', '-f', '^sshd: .*@notty'])")
    until(lambda: answered(notebook), "the host does not answer after its socket was replaced")
