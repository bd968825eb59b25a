"""Which accelerator is chosen, and what limactl is told where only emulation works."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import pytest

from lima_kernels.lima import accelerator
from lima_kernels.lima.accelerator import Accelerator, Verdict, limactl_environment, probe_kvm

EMULATED = Verdict(Accelerator.EMULATION, "no KVM")


def test_a_missing_device_is_the_reason(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    assert probe_kvm(device) == f"{device} cannot be opened: No such file or directory"


def test_a_regular_file_is_no_device(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    assert probe_kvm(device) == f"{device} does not answer KVM_CREATE_VM: Inappropriate ioctl for device"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_device_for_others_is_the_reason(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch(mode=0o000)
    assert probe_kvm(device) == f"{device} cannot be opened: Permission denied"


def test_another_device_is_no_kvm() -> None:
    assert probe_kvm(Path("/dev/null")).startswith("/dev/null does not answer KVM_CREATE_VM: ")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_probe_leaves_no_file_open(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    before = len(os.listdir("/proc/self/fd"))
    probe_kvm(device)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("platform_name", "reason", "verdict"),
    [
        ("linux", "", Verdict(Accelerator.KVM, "")),
        ("linux", "/dev/kvm cannot be opened: x", Verdict(Accelerator.EMULATION, "/dev/kvm cannot be opened: x")),
        ("darwin", "/dev/kvm cannot be opened: x", Verdict(Accelerator.MACOS, "")),
    ],
)
def test_the_verdict_follows_the_probe(
    monkeypatch: pytest.MonkeyPatch, platform_name: str, reason: str, verdict: Verdict
) -> None:
    monkeypatch.setattr(sys, "platform", platform_name)
    monkeypatch.setattr(accelerator, "probe_kvm", lambda: reason)
    assert accelerator.detect.__wrapped__() == verdict


@pytest.mark.parametrize(
    ("machine", "variable", "program"),
    [
        ("x86_64", "QEMU_SYSTEM_X86_64", "qemu-system-x86_64"),
        ("aarch64", "QEMU_SYSTEM_AARCH64", "qemu-system-aarch64"),
    ],
)
def test_emulation_is_asked_for_by_limas_own_variable(
    monkeypatch: pytest.MonkeyPatch, machine: str, variable: str, program: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.delenv(variable, raising=False)
    environment = limactl_environment(EMULATED)
    assert list(environment) == [variable]
    words = environment[variable].split()
    assert words[0] == program
    assert any(word.endswith(",accel=tcg") for word in words)


def test_the_users_own_command_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("QEMU_SYSTEM_X86_64", "/opt/qemu/bin/qemu-system-x86_64")
    assert limactl_environment(EMULATED) == {}


def test_an_unknown_cpu_is_left_to_limactl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert limactl_environment(EMULATED) == {}


@pytest.mark.parametrize("choice", [Accelerator.KVM, Accelerator.MACOS])
def test_limactl_is_left_alone_where_it_guesses_right(monkeypatch: pytest.MonkeyPatch, choice: Accelerator) -> None:
    monkeypatch.delenv("QEMU_SYSTEM_X86_64", raising=False)
    monkeypatch.delenv("QEMU_SYSTEM_AARCH64", raising=False)
    assert limactl_environment(Verdict(choice, "")) == {}
