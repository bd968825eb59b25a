"""The routes that only read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lima_kernels import paths
from lima_kernels.kernelspec import make_request, write
from lima_kernels.lima.limactl import Limactl
from lima_kernels.server.app import ROUTES
from tests.unit.conftest import Machine
from tests.unit.verbs import CONFIG, log_line

from .conftest import Ask


async def make(name: str, config: str = CONFIG) -> None:
    await Limactl().create(name, config)


async def test_all_vms_and_jobs(ask: Ask) -> None:
    assert await ask("GET", "vms") == (200, {"vms": [], "jobs": []})
    await make("one")
    await make("two", f"{CONFIG}cpus: 3\nmemory: 2GiB\n")
    code, said = await ask("GET", "vms")
    assert (code, said["jobs"]) == (200, [])
    assert [(vm["name"], vm["state"], vm["cpus"], vm["memory"]) for vm in said["vms"]] == [
        ("one", "stopped", 2, 4 << 30),
        ("two", "stopped", 3, 2 << 30),
    ]
    assert await ask("GET", "vms", "two") == (200, said["vms"][1])


async def test_a_vm_that_is_not_there(ask: Ask, machine: Machine) -> None:
    await make("one")
    for route in (("vms", "onee"), ("vms", "onee", "log"), ("vms", "onee", "kernels")):
        assert await ask("GET", *route) == (
            404,
            {"message": "There is no Lima instance 'onee'.", "hint": "Did you mean 'one'?", "context": []},
        )
    assert not (machine.lima_home / "_lima-kernels" / "onee").exists()


BAD_NAMES = ("..", ".", "../../etc", "_config", "-x", "a b", "a/b", "é", "\N{SNOWMAN}", "x" * 10_000, "a\nb", "x.yaml")


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name[:12]))
async def test_what_cannot_be_a_name(ask: Ask, machine: Machine, name: str) -> None:
    for method, *rest in (("GET",), ("GET", "log"), ("GET", "kernels"), ("PATCH",), ("DELETE",), ("POST", "stop")):
        code, said = await ask(method, "vms", name, *rest)
        assert (code, "cannot be a Lima instance's name" in said["message"]) == (400, True), (method, rest)
        assert len(said["message"]) < 300
    # Nothing was looked for.
    assert not (machine.lima_home / "_calls").exists()
    assert not (machine.lima_home / "_lima-kernels").exists()


async def test_the_end_of_a_log(ask: Ask, machine: Machine) -> None:
    await make("one")
    assert await ask("GET", "vms", "one", "log") == (200, {"lines": []})
    lines = [log_line("info", f"line {number}") for number in range(300)]
    lines.append(log_line("warning", "a \x1b]0;title\x07 that steers"))
    paths.host_agent_log(machine.lima_home / "one").write_text("".join(lines))
    code, said = await ask("GET", "vms", "one", "log", params={"lines": "3"})
    assert (code, said) == (200, {"lines": ["line 298", "line 299", "warning: a ]0;title that steers"]})
    assert len((await ask("GET", "vms", "one", "log")).said["lines"]) == 200


@pytest.mark.parametrize("lines", ["0", "-1", "x", "1e3", "10001", "9" * 5000, "\N{ARABIC-INDIC DIGIT ONE}", ""])
async def test_how_many_lines_there_cannot_be(ask: Ask, lines: str) -> None:
    await make("one")
    code, said = await ask("GET", "vms", "one", "log", params={"lines": lines})
    assert (code, said["message"]) == (400, f"expected a number from 1 to 10000, got {lines[:20]!r} at lines.")


async def test_lima_s_templates(ask: Ask) -> None:
    code, said = await ask("GET", "templates")
    assert code == 200
    assert [template["name"] for template in said["templates"]] == ["debian-12", "debian-13", "ubuntu-24.04"]


async def test_our_kernel_specs(ask: Ask, spec: str, machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "env.yaml"
    file.write_text("cpus: 3\n")
    write(make_request("mine", "Mine", environment=file, instance=None, attach=False), user=True, prefix=None)
    (machine.root / "jupyter" / "kernels" / "broken").mkdir()
    (machine.root / "jupyter" / "kernels" / "broken" / "kernel.json").write_text("{")
    assert await ask("GET", "environments") == (
        200,
        {
            "environments": [
                {"name": "lima", "displayName": "Linux (Lima)", "instance": "lima-kernels", "file": ""},
                {"name": "mine", "displayName": "Mine", "instance": "lima-kernels-mine", "file": str(file)},
            ]
        },
    )


async def test_a_kernel_that_is_none_of_ours(ask: Ask) -> None:
    for id_ in ("x", "9d1e2f3a-0000-0000-0000-000000000000", "..%2f", "x" * 5000):
        assert await ask("GET", "kernels", id_, "vm") == (
            404,
            {"message": "No kernel of that id lives in a Lima VM.", "hint": "", "context": []},
        )


def test_every_route_stands_in_its_page() -> None:
    page = (Path(__file__).parents[3] / "docs" / "server.md").read_text()
    said = set(re.findall(r"^\| `(?:\w+ )?([\w/]+)`", page, re.MULTILINE))
    for route, _ in ROUTES[:-1]:
        pattern = route.removeprefix("lima-kernels/api/")
        assert any(re.fullmatch(pattern, stands) for stands in said), pattern
    assert {re.sub(r"\b(NAME|ID)\b", "x", stands) for stands in said} >= {"vms/x/start", "vms/x/stop", "vms/x/restart"}


async def test_no_such_route(ask: Ask) -> None:
    for route in (("vm",), ("vms", "one", "log", "x"), ("events", "x"), ("",)):
        code, said = await ask("GET", *route)
        assert (code, said["message"][:19]) == (404, "There is nothing at")
    for method, *route in (("PUT", "vms"), ("DELETE", "vms"), ("POST", "vms", "one", "log"), ("PATCH", "jobs")):
        code, said = await ask(method, *route, body="{}")
        assert (code, said["message"]) == (405, "Method Not Allowed")


async def test_without_limactl(ask: Ask, monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    monkeypatch.setenv("PATH", str(machine.root))
    for route in (("vms",), ("vms", "one"), ("vms", "one", "kernels"), ("templates",), ("jobs",)):
        code, said = await ask("GET", *route)
        assert (code, said["message"]) == (500, "limactl was not found on PATH.")
        assert said["hint"].startswith("Install Lima: ")


async def test_limactl_that_fails_or_says_what_it_should_not(ask: Ask, machine: Machine) -> None:
    machine.tell(fail={"list": "the disk is on fire"})
    code, said = await ask("GET", "vms")
    assert (code, said["message"].partition(" failed ")[2]) == (502, "with exit code 1: the disk is on fire")
    machine.tell(fail={}, garbage=["list"])
    code, said = await ask("GET", "vms")
    assert (code, said["message"].partition(":")[0]) == (502, "limactl list printed what is no list of instances")
    # It is asked again the next time.
    machine.tell(garbage=[])
    assert await ask("GET", "vms") == (200, {"vms": [], "jobs": []})
