"""`%lima` and `%%lima`, in a host's kernel and in a guest's."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from IPython.core.error import UsageError as IPythonUsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.core.magic_arguments import MagicArgumentParser, argument, magic_arguments
from IPython.display import display

from . import completion
from .arguments import (
    CELL,
    INSTANCE_VARIABLE,
    SHELL_VARIABLE,
    VERBS,
    WORKDIR_VARIABLE,
    UsageError,
    filled,
    parser_of,
)
from .backend import Backend, Call, Ended, LimaError, Script, Transfer, Watcher
from .results import Note, Result, Table
from .showing import Captured, Kept, Notebook, Shown, Terminal

NAME = "lima"
_SHELL = "bash"


class ScriptFailed(LimaError):
    """A cell's script ended with another exit code than 0; ``code`` has it."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def _words(line: str) -> list[str]:
    """Split a line as a shell would: quotes keep words together, and reach nobody."""
    try:
        return shlex.split(line)
    except ValueError as error:
        raise IPythonUsageError(f"%{NAME}: {error} in {line!r}") from None


def _overview() -> Table:
    rows = [(verb, said.help, f"%{NAME} {said.example}") for verb, said in VERBS.items()]
    return Table(
        ("verb", "what_it_does", "example"), rows, f"%{NAME} VERB --help says more; %%{NAME} runs a cell in a VM"
    )


def _check_verb(verb: str) -> None:
    if verb not in VERBS:
        near = get_close_matches(verb, VERBS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"%{NAME} lists them."
        raise IPythonUsageError(f"%{NAME} has no verb {verb!r}. {hint}")


@magics_class
class LimaMagics(Magics):
    """The magic and its cell form, for one IPython shell."""

    def __init__(self, shell: Any, backend: Backend) -> None:
        super().__init__(shell=shell)
        self._backend = backend
        self._cell_parser = filled(MagicArgumentParser(prog=f"%%{NAME}"), CELL)

    @magic_arguments()
    @argument("verb", nargs="?", metavar="VERB", help="what to do; all of them are listed when it is missing")
    @argument("arguments", nargs="...", metavar="ARGUMENTS", help="see %%lima VERB --help")
    @line_cell_magic(NAME)  # type: ignore[arg-type]
    def lima(self, line: str, cell: str | None = None) -> Any:
        """Do something with a Lima VM; as %%lima, run the cell as a script in one.

        %lima lists the verbs, %lima VERB --help says what one takes. %%lima [NAME] [--shell PROGRAM] [--user USER]
        [--cwd DIR] [--env NAME=VALUE] [--timeout SECONDS] [--no-check] [--capture VAR] [--background] runs a cell.
        """
        words = _words(line)
        if cell is not None:
            return self._cell(words, cell)
        if not words or words == ["--help"]:
            return _overview()
        verb, *arguments = words
        _check_verb(verb)
        return self._verb(verb, arguments)

    def _default(self) -> str:
        return os.environ.get(INSTANCE_VARIABLE) or self._backend.default

    # Verbs

    def _verb(self, verb: str, arguments: Sequence[str]) -> Result:
        parser = parser_of(verb, MagicArgumentParser)
        if "--help" in (arguments[:1] if verb == "shell" else arguments):
            return Note(parser.format_help())
        # To be told of a mistake before anybody begins.
        options = parser.parse_args(arguments)
        if verb == "use":
            return self._use(options.name)
        if verb == "shell":
            return self._shell(options)
        if verb in ("push", "pull"):
            return self._transfer(verb, options)
        try:
            with self._watcher() as watcher:
                result = self._backend.run(Call(verb, arguments, self._default()), watcher)
        except UsageError as error:
            raise IPythonUsageError(str(error)) from None
        if verb == "env" and isinstance(result, Table):
            os.environ.update({str(row["name"]): str(row["value"]) for row in result})
        return result

    def _watcher(self) -> AbstractContextManager[Watcher]:
        """Return what shows what is going on, and is gone when it is over."""
        return closing(Notebook(display) if hasattr(self.shell, "kernel") else Terminal(sys.stderr))

    def _transfer(self, verb: str, options: Any) -> Note:
        assert self.shell is not None
        transfer = Transfer(
            instance=options.name or self._default(),
            kernel=options.kernel,
            variables=options.variables,
            pickle=options.pickle,
            timeout=options.timeout,
        )
        names = ", ".join(options.variables)
        with self._watcher() as watcher:
            if verb == "push":
                self._backend.push(transfer, self.shell.user_ns, watcher)
                return Note(f"Copied {names} to {options.kernel}.")
            self.shell.user_ns.update(self._backend.pull(transfer, watcher))
        return Note(f"Copied {names} from {options.kernel}.")

    def _use(self, name: str | None) -> Note:
        if name is not None:
            known = self._backend.instances()
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"See them: %{NAME} list"
                raise LimaError(f"There is no Lima instance {name!r}.", hint)
            os.environ[INSTANCE_VARIABLE] = name
        return Note(f"The instance in use is {self._default()}.")

    def _shell(self, options: Any) -> Note:
        if not options.command:
            raise IPythonUsageError(f"%{NAME} shell needs a command; a cell of several lines begins with %%{NAME}.")
        text = shlex.join(options.command)
        script = self._script(options.name, text, shell=None, user="", cwd=options.cwd, env=[], timeout=None)
        self._to_its_end(script, check=True)
        return Note("")

    # Cells

    def _script(self, name: str | None, text: str, **said: Any) -> Script:
        shell = said["shell"] or os.environ.get(SHELL_VARIABLE) or _SHELL
        return Script(
            instance=name or self._default(),
            text=text,
            shell=shlex.split(shell),
            user=said["user"] or "",
            cwd=said["cwd"] or os.environ.get(WORKDIR_VARIABLE) or "",
            here=str(Path.cwd()),
            env=dict(said["env"]),
            timeout=said["timeout"],
        )

    def _cell(self, words: Sequence[str], cell: str) -> Note | None:
        if "--help" in words:
            return Note(self._cell_parser.format_help())
        options = self._cell_parser.parse_args(words)
        if options.capture and not options.capture.isidentifier():
            raise IPythonUsageError(f"--capture needs a variable's name, which {options.capture!r} is not.")
        if options.background and options.capture:
            raise IPythonUsageError("--background and --capture exclude each other: its output goes to a file.")
        script = self._script(
            options.name,
            cell,
            shell=options.shell,
            user=options.user,
            cwd=options.cwd,
            env=options.env,
            timeout=options.timeout,
        )
        if options.background:
            started = self._backend.start(script)
            return Note(f"It runs in {script.instance} as process {started.pid}; what it prints goes to {started.log}.")
        if options.capture:
            self._captured(script, options.capture, check=options.check)
        else:
            self._to_its_end(script, check=options.check)
        return None

    def _captured(self, script: Script, variable: str, *, check: bool) -> None:
        kept = Kept()
        ended = self._backend.execute(script, kept)
        captured: Captured = kept.captured(ended.code)
        assert self.shell is not None
        self.shell.user_ns[variable] = captured
        self._judge(ended, check=check)

    def _to_its_end(self, script: Script, *, check: bool) -> None:
        shown = Shown()
        try:
            ended = self._backend.execute(script, shown)
        finally:
            shown.close()
        self._judge(ended, check=check)

    @staticmethod
    def _judge(ended: Ended, *, check: bool) -> None:
        if check and ended.code > 0:
            raise ScriptFailed(f"The script ended with exit code {ended.code}.", ended.code)
        if check and ended.code < 0:
            raise ScriptFailed(f"The script was ended by signal {-ended.code}.", ended.code)


def load(shell: Any, backend: Backend) -> None:
    """Give an IPython shell the magic and its completion."""
    shell.register_magics(LimaMagics(shell, backend))
    # An extension that is loaded again is not asked twice.
    known = shell.Completer.custom_matchers
    known[:] = [other for other in known if getattr(other, "__name__", "") != NAME]
    known.append(completion.matcher(backend))
