"""`%lima` and `%%lima` in a real IPython shell, over a backend that says what it was asked for."""

from __future__ import annotations

import io
import os
import pickle
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from lima_kernels.magics import completion, magic
from lima_kernels.magics.arguments import VERBS, parser_of
from lima_kernels.magics.backend import Call, Ended, LimaError, Script, Sink, Started, Transfer, Watcher
from lima_kernels.magics.magic import ScriptFailed
from lima_kernels.magics.results import Note, Result, Table
from lima_kernels.magics.showing import SHOWN_BYTES, Terminal

NASTY = ["a b", "it's", 'say "x"', "é \N{SNOWMAN}", "$HOME", "`id`", "a;b", "--x", "*", "\\n"]


class Backend:
    """Remembers calls; a script prints what it is told to."""

    default = "ours"

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.scripts: list[Script] = []
        self.transfers: list[tuple[Transfer, dict[str, Any]]] = []
        self.stdout = b""
        self.stderr = b""
        self.code = 0
        self.result: Result = Note("done")

    def run(self, call: Call, watcher: Watcher) -> Result:
        parser_of(call.verb).parse_args(list(call.arguments))
        self.calls.append(call)
        watcher.step("doing it")
        watcher.tick()
        return self.result

    def instances(self) -> Sequence[str]:
        return ["default", "docker", "ours"]

    def push(self, transfer: Transfer, namespace: Mapping[str, Any], watcher: Watcher) -> None:
        self.transfers.append((transfer, {name: namespace[name] for name in transfer.variables}))

    def pull(self, transfer: Transfer, watcher: Watcher) -> Mapping[str, Any]:
        return dict.fromkeys(transfer.variables, "pulled")

    def execute(self, script: Script, sink: Sink) -> Ended:
        self.scripts.append(script)
        sink.stdout(self.stdout)
        sink.stderr(self.stderr)
        return Ended(self.code)

    def start(self, script: Script) -> Started:
        self.scripts.append(script)
        return Started(4711, "/home/user.guest/log")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Backend:
    for name in ("LIMA_INSTANCE", "LIMA_SHELL", "LIMA_WORKDIR", "DOCKER_HOST"):
        monkeypatch.delenv(name, raising=False)
    return Backend()


@pytest.fixture
def shell(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.chdir(tmp_path)
    made = InteractiveShell.instance()
    magic.load(made, backend)
    before = dict(os.environ)
    yield made
    # What `use` and `env` set is meant to last as long as the kernel.
    os.environ.clear()
    os.environ.update(before)
    made.history_manager.end_session()
    InteractiveShell.clear_instance()


def test_every_example_can_be_read() -> None:
    for name, verb in VERBS.items():
        word, *arguments = shlex.split(verb.example)
        assert word == name
        parser_of(name).parse_args(arguments)


def test_a_verb_reaches_the_backend_with_its_arguments(shell: InteractiveShell, backend: Backend) -> None:
    assert shell.run_line_magic("lima", "stop 'web server' --force") == "done"
    assert backend.calls == [Call("stop", ["web server", "--force"], "ours")]


def test_alone_it_lists_the_verbs(shell: InteractiveShell) -> None:
    assert [row["verb"] for row in shell.run_line_magic("lima", "")] == list(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(shell: InteractiveShell, backend: Backend, verb: str) -> None:
    said = repr(shell.run_line_magic("lima", f"{verb} --help"))
    assert f"%lima {verb}" in said
    assert VERBS[verb].help.split()[0] in said
    assert backend.calls == []


def test_the_question_mark_explains_the_magic(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run_line_magic("pinfo", "%lima")
    said = capsys.readouterr().out
    assert "Do something with a Lima VM" in said
    assert "VERB" in said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("strat", "no verb 'strat'. Did you mean 'start'?"),
        ("xyzzy", "no verb 'xyzzy'. %lima lists them."),
        ("stop a b", "unrecognized arguments: b"),
        ("create", "arguments are required: NAME"),
        ("edit --cpus many", "invalid int value: 'many'"),
        ("forward 99999", "a port is a number from 1 to 65535"),
        ("stop 'web", "No closing quotation"),
        ("shell", "needs a command"),
    ],
)
def test_what_cannot_be_understood_is_one_line(
    shell: InteractiveShell, backend: Backend, line: str, words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        shell.run_line_magic("lima", line)
    assert words in str(caught.value)
    assert backend.calls == []


def test_the_instance_in_use(shell: InteractiveShell, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMA_INSTANCE", "default")
    shell.run_line_magic("lima", "status")
    shell.run_line_magic("lima", "use docker")
    shell.run_line_magic("lima", "status")
    assert [call.default for call in backend.calls] == ["default", "docker"]
    with pytest.raises(LimaError, match=r"There is no Lima instance 'dokcer'\. Did you mean 'docker'\?"):
        shell.run_line_magic("lima", "use dokcer")
    assert os.environ["LIMA_INSTANCE"] == "docker"


def test_env_sets_variables_of_this_kernel(shell: InteractiveShell, backend: Backend) -> None:
    backend.result = Table(("name", "value"), [("DOCKER_HOST", "unix:///a/docker.sock")])
    shell.run_line_magic("lima", "env")
    assert os.environ["DOCKER_HOST"] == "unix:///a/docker.sock"


def test_an_error_is_lines_and_no_traceback(
    shell: InteractiveShell, backend: Backend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(call: Call, watcher: Watcher) -> Result:
        raise LimaError("It failed.", "Do this.", ["the end of a log"])

    monkeypatch.setattr(backend, "run", fail)
    done = shell.run_cell("%lima start")
    assert isinstance(done.error_in_exec, LimaError)
    assert capsys.readouterr().out.splitlines() == ["LimaError: It failed. Do this.", "the end of a log"]


# Cells


def test_a_cell_reaches_the_guest_as_typed(shell: InteractiveShell, backend: Backend, tmp_path: Path) -> None:
    text = "\n".join(f"echo {word}" for word in NASTY) + "\n"
    shell.run_cell_magic("lima", "", text)
    (script,) = backend.scripts
    assert script == Script("ours", text, ["bash"], "", "", str(tmp_path), {}, None)


def test_the_options_of_a_cell(shell: InteractiveShell, backend: Backend) -> None:
    line = "docker --shell 'python3 -u' --user root --cwd '/a b' --env A=1 --env 'B=x y=z' --timeout 2.5"
    shell.run_cell_magic("lima", line, "1")
    (script,) = backend.scripts
    assert script.instance == "docker"
    assert script.shell == ["python3", "-u"]
    assert (script.user, script.cwd, script.timeout) == ("root", "/a b", 2.5)
    assert script.env == {"A": "1", "B": "x y=z"}


def test_variables_are_put_into_the_line_as_for_bash(shell: InteractiveShell, backend: Backend) -> None:
    shell.user_ns["answer"] = 42
    shell.run_cell("%%lima --env A=$answer --env B={answer + 1}\necho $answer {answer}\n")
    (script,) = backend.scripts
    assert script.env == {"A": "42", "B": "43"}
    assert script.text == "echo $answer {answer}\n"


def test_the_defaults_of_the_command_lima(
    shell: InteractiveShell, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMA_SHELL", "zsh")
    monkeypatch.setenv("LIMA_WORKDIR", "/srv")
    shell.run_cell_magic("lima", "", "pwd")
    (script,) = backend.scripts
    assert (script.shell, script.cwd) == (["zsh"], "/srv")


def test_output_is_shown_apart(shell: InteractiveShell, backend: Backend, capsys: pytest.CaptureFixture[str]) -> None:
    backend.stdout, backend.stderr = "größer\n".encode(), b"bad \xff\n"
    shell.run_cell_magic("lima", "", "x")
    assert capsys.readouterr() == ("größer\n", "bad \N{REPLACEMENT CHARACTER}\n")


def test_a_failing_script_is_a_short_error_with_its_code(shell: InteractiveShell, backend: Backend) -> None:
    backend.code = 3
    with pytest.raises(ScriptFailed, match="ended with exit code 3") as caught:
        shell.run_cell_magic("lima", "", "exit 3")
    assert caught.value.code == 3
    assert len(caught.value._render_traceback_()) == 1
    assert shell.run_cell_magic("lima", "--no-check", "exit 3") is None
    backend.code = -signal.SIGKILL
    with pytest.raises(ScriptFailed, match="ended by signal 9"):
        shell.run_cell_magic("lima", "", "kill -9 $$")


def test_what_is_captured_is_there_also_when_the_script_fails(
    shell: InteractiveShell, backend: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    backend.stdout, backend.stderr, backend.code = b"out", b"err", 2
    with pytest.raises(ScriptFailed):
        shell.run_cell_magic("lima", "--capture said", "x")
    said = shell.user_ns["said"]
    assert (said.stdout, said.stderr, said.code) == ("out", "err", 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--capture 1x", "needs a variable's name"),
        ("--background --capture x", "exclude each other"),
        ("--env X", "is not NAME=VALUE"),
        ("--timeout 0", "must be a positive number"),
        ("--timeout nan", "must be a positive number"),
    ],
)
def test_wrong_options_of_a_cell_are_one_line(shell: InteractiveShell, backend: Backend, line: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        shell.run_cell_magic("lima", line, "x")
    assert words in str(caught.value)
    assert backend.scripts == []


def test_a_script_in_the_background_says_where_it_is(shell: InteractiveShell) -> None:
    said = shell.run_cell_magic("lima", "--background", "sleep 1")
    assert said == "It runs in ours as process 4711; what it prints goes to /home/user.guest/log."


def test_a_long_output_goes_on_in_a_file(
    shell: InteractiveShell, backend: Backend, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(Path.cwd()))
    backend.stdout = b"x" * (SHOWN_BYTES + 5)
    shell.run_cell_magic("lima", "", "yes")
    said = capsys.readouterr().out
    assert said.startswith("x" * SHOWN_BYTES + "\n[The rest of stdout goes to ")
    (file,) = Path.cwd().glob("lima-stdout-*.log")
    assert file.read_bytes() == b"xxxxx"
    assert said.endswith(f"[5 bytes more of stdout are in {file}]\n")
    assert file.stat().st_mode & 0o777 == 0o600


def test_one_command_line(shell: InteractiveShell, backend: Backend) -> None:
    shell.run_line_magic("lima", "shell --instance docker echo -n 'a b' $HOME")
    (script,) = backend.scripts
    assert (script.instance, script.text) == ("docker", "echo -n 'a b' '$HOME'")


def test_variables_go_and_come(shell: InteractiveShell, backend: Backend) -> None:
    shell.user_ns["x"] = 1
    assert shell.run_line_magic("lima", "push x --to note.ipynb --timeout 5") == "Copied x to note.ipynb."
    assert backend.transfers == [(Transfer("ours", "note.ipynb", ["x"], False, 5.0), {"x": 1})]
    assert shell.run_line_magic("lima", "pull a b --from k1 --pickle") == "Copied a, b from k1."
    assert (shell.user_ns["a"], shell.user_ns["b"]) == ("pulled", "pulled")


# Completion


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("%lima sta", ["start", "status"]),
        ("%lima start d", ["default", "docker"]),
        ("%lima stop docker --", ["--force", "--yes"]),
        ("%lima snapshot ", ["--instance", "apply", "create", "delete", "list"]),
        ("%lima snapshot create x --instance o", ["ours"]),
        ("%lima logs --source s", ["serial"]),
        ("vms = %lima li", ["list"]),
        ("%%lima do", ["docker"]),
        ("%%lima docker --c", ["--capture", "--check", "--cwd"]),
    ],
)
def test_completion(shell: InteractiveShell, line: str, found: list[str]) -> None:
    # As ipykernel asks.
    with provisionalcompleter():
        completed = list(shell.Completer.completions(line, len(line)))
    assert sorted(completion.text for completion in completed) == found


def test_where_nothing_can_be_offered(backend: Backend) -> None:
    assert completion.offered("%lima create x --template d", backend) == ("d", [])
    assert completion.offered("%lima nonsense x", backend) == ("x", [])
    assert completion.offered("%limaa start ", backend) is None
    assert completion.offered("%lima", backend) is None


def test_the_extension_can_be_loaded_again(shell: InteractiveShell, backend: Backend) -> None:
    before = len(shell.Completer.custom_matchers)
    magic.load(shell, backend)
    assert len(shell.Completer.custom_matchers) == before


# Results


def test_a_table_is_shown_and_is_a_list() -> None:
    table = Table(("name", "is_up"), [("a<b>", True), ("日本", None)], "VMs")
    assert repr(table).splitlines() == ["VMs", "name  is up", "a<b>  yes", "日本"]
    assert "<th" in table._repr_html_()
    assert "a&lt;b&gt;" in table._repr_html_()
    assert table[0] == {"name": "a<b>", "is_up": True}
    assert pickle.loads(pickle.dumps(table)) == table
    assert repr(Table(("x",), [])) == "(none)"


def test_a_log_has_a_line_for_each_step_and_none_for_the_end() -> None:
    log = io.StringIO()
    terminal = Terminal(log)
    terminal.step("booting")
    terminal.step("")
    terminal.close()
    assert log.getvalue().split() == ["0", "s", "booting"]


def test_what_a_guest_wrote_does_not_steer_a_terminal() -> None:
    assert "\x1b" not in repr(Table(("x",), [("\x1b[2Jgone\nnext",)]))
    assert "\x1b" not in repr(Note("\x1b[2Jgone"))
    assert "<script>" not in Table(("x",), [("<script>",)], "<script>")._repr_html_()
