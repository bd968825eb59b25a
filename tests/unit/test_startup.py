"""How a guest's forkserver is started: as a service of the guest's system, whatever its paths are called."""

from __future__ import annotations

import configparser
import shlex

import pytest

from lima_kernels import paths
from lima_kernels.guest import startup
from lima_kernels.guest.readiness import Facts
from lima_kernels.guest.startup import Layout

# Without what systemd means by them: specifiers, variables, its own escapes.
PLAIN = {"%%": "%", "$$": "$", "\\\\": "\\", '\\"': '"'}


def words(line: str) -> list[str]:
    """Read a command line as systemd.service(5) says."""
    found = []
    for word in shlex.split(line, posix=False):
        text = word.removeprefix('"').removesuffix('"')
        for written, meant in PLAIN.items():
            text = text.replace(written, meant)
        found.append(text)
    return found


@pytest.mark.parametrize("home", ["/home/me.guest", "/home/100% $me", "/home/my home"])
def test_systemd_starts_what_we_would(home: str) -> None:
    facts = Facts(home, 1001, 1002, "/opt/lima-kernels/venv/bin/python")
    layout = Layout(facts)
    argv = [facts.python, layout.program, "--root", layout.root]
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(startup._service(facts, argv))
    service = unit["Service"]
    assert words(service["ExecStart"]) == argv
    assert (service["User"], service["Group"]) == ("1001", "1002")
    assert service["WorkingDirectory"].replace("%%", "%") == home
    # What is started at boot is there before anybody comes, and kernels outlive its end.
    assert "lima-kernels-init.service" in unit["Unit"]["After"].split()
    assert service["KillMode"] == "process"
    assert layout.unit.startswith("lima-kernels-1001-")


def test_another_program_is_another_service(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = Facts("/home/me", 1, 1, "/usr/bin/python3")
    before = Layout(facts).unit
    monkeypatch.setattr(startup, "program", lambda: b"other")
    assert Layout(facts).unit != before
    monkeypatch.undo()
    monkeypatch.setattr(paths, "GUEST_ENVIRONMENTS", "/elsewhere")
    assert Layout(facts).unit != before
