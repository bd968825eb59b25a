"""What limactl 2.2 really prints, as types; the samples lie in tests/data/limactl-2.2."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from lima_kernels.lima.limactl import parse_version
from lima_kernels.lima.models import Instance, LogLine, Mount, Status, User, decode_instances, decode_log_line

DATA = Path(__file__).parents[1] / "data" / "limactl-2.2"


def sample(name: str) -> str:
    return (DATA / name).read_text()


def one(text: str) -> Instance:
    (instance,) = decode_instances(text)
    return instance


def test_a_running_instance() -> None:
    instance = one(sample("list-running.json"))
    assert instance.name == "lima-kernels"
    assert instance.status is Status.RUNNING
    assert instance.dir == Path("/home/user/.lima/lima-kernels")
    assert (instance.vm_type, instance.arch, instance.cpus) == ("qemu", "x86_64", 2)
    assert (instance.memory, instance.disk) == (4 << 30, 100 << 30)
    assert (instance.ssh_address, instance.ssh_local_port) == ("127.0.0.1", 34909)
    assert (instance.host_agent_pid, instance.driver_pid) == (19465, 19487)
    assert instance.errors == ()
    assert instance.config.user == User("user", "/home/user.guest", 1001)
    assert instance.config.mounts == (Mount("/home/user/nb", "/home/user/nb", writable=True),)
    assert [entry.path for entry in instance.config.provision] == [
        "/etc/lima-kernels/instance.json",
        "/etc/cloud/cloud.cfg.d/90-lima-kernels.cfg",
        "",
    ]


def test_a_stopped_instance_has_neither_port_nor_processes() -> None:
    instance = one(sample("list-stopped.json"))
    assert instance.status is Status.STOPPED
    assert (instance.ssh_local_port, instance.host_agent_pid, instance.driver_pid) == (0, 0, 0)
    assert instance.config.user.name == "user"


def test_a_broken_instance_is_a_value() -> None:
    instance = one(sample("list-broken.json"))
    assert instance.status is Status.BROKEN
    assert instance.errors == ()
    assert instance.config.mounts != ()


def test_the_reasons_of_a_broken_instance_are_kept() -> None:
    reasons = ("qemu driver is running but host agent is not", "a\ttab and a\nline")
    line = "\t".join([sample("list-broken.json").strip(), *map(json.dumps, reasons)])
    assert one(line).errors == reasons


def test_reasons_that_go_could_not_print_are_no_error() -> None:
    told = json.loads(sample("list-broken.json"))
    told["errors"] = [{}]
    assert one(json.dumps(told)).status is Status.BROKEN


def test_an_instance_whose_config_lima_cannot_read_is_a_value() -> None:
    instance = one(sample("list-garbled.json"))
    assert instance.name == "garbled"
    assert instance.status is Status.UNKNOWN
    assert instance.config.provision == ()
    assert instance.config.mounts == ()


def test_instances_keep_their_order() -> None:
    text = "".join(sample(f"list-{name}.json") for name in ("stopped", "garbled", "running"))
    assert [instance.name for instance in decode_instances(text)] == ["stopped", "garbled", "lima-kernels"]


@pytest.mark.parametrize("text", ["", "\n", "\n\n"])
def test_no_output_is_no_instance(text: str) -> None:
    assert decode_instances(text) == ()


def test_null_is_as_good_as_nothing() -> None:
    text = (
        '{"name": "a", "dir": "/a", "status": null, "errors": null, "config": {"mounts": null, "user": {"name": null}}}'
    )
    assert one(text) == Instance("a", "/a")


def test_an_unknown_state_is_no_error() -> None:
    assert one('{"name": "a", "dir": "/a", "status": "Hibernating"}').status is Status.UNKNOWN


def test_a_line_of_a_large_instance_is_decoded() -> None:
    told = json.loads(sample("list-stopped.json"))
    told["config"]["caCerts"] = {"certs": ["x" * 200_000]}
    assert one(json.dumps(told)).name == "stopped"


@pytest.mark.parametrize(
    "text", ["<html>", "{", "[]", "3", '{"name": "a"}', '{"dir": "/a"}', '{"name": 3, "dir": "/a"}']
)
def test_what_is_no_instance_is_refused(text: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_instances(text)


def test_a_mount_without_a_point_is_at_the_same_path() -> None:
    assert Mount("/a").guest_path == "/a"
    assert Mount("/a", "/b").guest_path == "/b"


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "list-missing.log",
            [LogLine("No instance matching nosuch found.", "warning"), LogLine("unmatched instances", "fatal")],
        ),
        ("list-none.log", [LogLine("No instance found. Run `limactl create` to create an instance.", "warning")]),
        ("list-broken.log", [LogLine("instance `broken` has errors", "warning")]),
    ],
)
def test_what_limactl_logs_is_read(name: str, lines: list[LogLine]) -> None:
    assert [decode_log_line(line) for line in sample(name).splitlines()] == lines


@pytest.mark.parametrize("line", ["panic: runtime error", "{", '{"msg": 3}', "[]", ""])
def test_a_line_of_another_form_is_the_message_itself(line: str) -> None:
    assert decode_log_line(line) == LogLine(line)


def test_the_version_is_read() -> None:
    assert parse_version(sample("version.txt")) == (2, 2, 0)
