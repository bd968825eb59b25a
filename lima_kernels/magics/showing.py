"""What a cell shows while it waits, and what it shows of a long output."""

from __future__ import annotations

import codecs
import contextlib
import html
import sys
import tempfile
import time
from typing import IO, Any, NamedTuple, cast

from .results import plain

# Seconds after which what happens is shown: what takes less is over before it could be read.
_PATIENCE = 0.5
# Seconds at least between two pictures of it.
_REFRESH = 0.2
# Bytes of each stream that a cell shows; a notebook with more is of no use to anybody.
SHOWN_BYTES = 1_000_000


class _Line:
    """One line as IPython displays it."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        return f'<pre role="status">{html.escape(self._text)}</pre>'


class Notebook:
    """Shows what is going on in one place of a cell's output, which is empty when it is over."""

    def __init__(self, display: Any) -> None:
        self._display = display
        self._handle: Any = None
        self._began = self._step_began = time.monotonic()
        self._text = ""
        self._shown_at = 0.0

    def step(self, text: str) -> None:
        now = time.monotonic()
        self._text, self._step_began = plain(text), now
        # A copy says often how far it is.
        if now - self._shown_at > _REFRESH:
            self.tick()

    def tick(self) -> None:
        now = time.monotonic()
        if not self._text or now - self._began < _PATIENCE:
            return
        self._shown_at = now
        line = _Line(f"{now - self._began:5.0f} s  {self._text} ({now - self._step_began:.0f} s)")
        if self._handle is None:
            self._handle = self._display(line, display_id=True)
        else:
            self._handle.update(line)

    def close(self) -> None:
        """Leave nothing of it in the notebook."""
        if self._handle is not None:
            self._handle.update(_Line(""))


class Terminal:
    """Shows what is going on in the last line of a terminal, or in lines of a log."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._began = time.monotonic()
        self._text = ""
        self._in_place = stream.isatty()
        self._has_shown = False

    def step(self, text: str) -> None:
        self._text = plain(text)
        if self._in_place:
            self.tick()
        elif self._text:
            print(self._line(), file=self._stream, flush=True)

    def _line(self) -> str:
        return f"{time.monotonic() - self._began:5.0f} s  {self._text}"

    def tick(self) -> None:
        if self._in_place and self._text and time.monotonic() - self._began > _PATIENCE:
            print(f"\r\x1b[2K{self._line()}", end="", file=self._stream, flush=True)
            self._has_shown = True

    def close(self) -> None:
        """Leave nothing of it on the terminal."""
        if self._has_shown:
            print("\r\x1b[2K", end="", file=self._stream, flush=True)


class _Stream:
    """One of a script's streams: its beginning is shown, all of what is too long is kept in a file."""

    def __init__(self, name: str, shown: IO[str]) -> None:
        self._name = name
        self._shown = shown
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._left = SHOWN_BYTES
        self._file: IO[bytes] | None = None
        self._kept = 0

    def write(self, data: bytes) -> None:
        here, rest = data[: self._left], data[self._left :]
        if here:
            self._left -= len(here)
            self._shown.write(self._decoder.decode(here))
            self._shown.flush()
        if rest:
            if self._file is None:
                self._file = self._opened()
            self._file.write(rest)
            self._kept += len(rest)

    def _opened(self) -> IO[bytes]:
        file = tempfile.NamedTemporaryFile(prefix=f"lima-{self._name}-", suffix=".log", delete=False)  # noqa: SIM115
        self._shown.write(f"\n[The rest of {self._name} goes to {file.name}]\n")
        self._shown.flush()
        return cast(IO[bytes], file)

    def close(self) -> None:
        if self._file is not None:
            with contextlib.closing(self._file) as file:
                print(f"[{self._kept} bytes more of {self._name} are in {file.name}]", file=self._shown, flush=True)


class Shown:
    """Shows a script's output as it comes."""

    def __init__(self) -> None:
        self._stdout = _Stream("stdout", sys.stdout)
        self._stderr = _Stream("stderr", sys.stderr)

    def stdout(self, data: bytes) -> None:
        self._stdout.write(data)

    def stderr(self, data: bytes) -> None:
        self._stderr.write(data)

    def close(self) -> None:
        """Say where the rest is; may be called once."""
        self._stdout.close()
        self._stderr.close()


class Captured(NamedTuple):
    """What a script printed, and its exit code, or minus the number of the signal that ended it."""

    stdout: str
    stderr: str
    code: int

    def __repr__(self) -> str:
        return f"<code {self.code}, {len(self.stdout)} characters of stdout, {len(self.stderr)} of stderr>"


class Kept:
    """Keeps a script's output for a variable."""

    def __init__(self) -> None:
        self._stdout = bytearray()
        self._stderr = bytearray()

    def stdout(self, data: bytes) -> None:
        self._stdout += data

    def stderr(self, data: bytes) -> None:
        self._stderr += data

    def captured(self, code: int) -> Captured:
        """Return what there is."""
        return Captured(self._stdout.decode(errors="replace"), self._stderr.decode(errors="replace"), code)
