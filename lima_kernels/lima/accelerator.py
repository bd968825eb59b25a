"""Which accelerator QEMU can really use here.

limactl takes KVM wherever ``/dev/kvm`` exists; where it cannot be used the VM hangs or fails. So we ask the kernel.
"""

from __future__ import annotations

import enum
import fcntl
import functools
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

KVM_DEVICE = Path("/dev/kvm")
# linux/kvm.h: _IO(KVMIO, 0x00) and _IO(KVMIO, 0x01) with KVMIO = 0xAE.
_KVM_GET_API_VERSION = 0xAE00
_KVM_CREATE_VM = 0xAE01
_KVM_API_VERSION = 12

# limactl's own debugging variable: the only way to choose another accelerator than the one it guesses.
_EMULATION = {
    "x86_64": ("QEMU_SYSTEM_X86_64", "qemu-system-x86_64 -machine q35,accel=tcg -cpu max"),
    "aarch64": ("QEMU_SYSTEM_AARCH64", "qemu-system-aarch64 -machine virt,accel=tcg -cpu max"),
}

# Where QEMU calls an architecture otherwise than Lima does.
_QEMU_NAMES = {"armv7l": "arm"}


class Accelerator(enum.Enum):
    """How a VM of the host's own architecture runs."""

    KVM = "kvm"
    MACOS = "vz or hvf"
    EMULATION = "tcg"


class Verdict(NamedTuple):
    """The accelerator that can be used, and why no better one."""

    accelerator: Accelerator
    reason: str


def probe_kvm(device: Path = KVM_DEVICE) -> str:
    """Return why KVM cannot be used, or an empty string when it can: a VM is created on it and closed again."""
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"{device} cannot be opened: {error.strerror}"
    try:
        if fcntl.ioctl(fd, _KVM_GET_API_VERSION, 0) != _KVM_API_VERSION:
            return f"{device} speaks another version of the KVM interface"
        os.close(fcntl.ioctl(fd, _KVM_CREATE_VM, 0))
    except OSError as error:
        return f"{device} does not answer KVM_CREATE_VM: {error.strerror}"
    finally:
        os.close(fd)
    return ""


@functools.cache
def detect() -> Verdict:
    """Find the accelerator for VMs of the host's own architecture."""
    if sys.platform == "darwin":
        return Verdict(Accelerator.MACOS, "")
    reason = probe_kvm()
    return Verdict(Accelerator.EMULATION, reason) if reason else Verdict(Accelerator.KVM, "")


def with_options(environment: Mapping[str, str], arch: str, options: Sequence[str]) -> dict[str, str]:
    """Return limactl's environment with more options for the QEMU of an architecture, after those it has already."""
    arch = _QEMU_NAMES.get(arch, arch)
    name, program = f"QEMU_SYSTEM_{arch.upper()}", f"qemu-system-{arch}"
    return {**environment, name: " ".join((environment.get(name) or program, *options))}


def limactl_environment(verdict: Verdict) -> dict[str, str]:
    """Return the variables that make limactl emulate where nothing else works; a user's own setting wins."""
    if verdict.accelerator is not Accelerator.EMULATION:
        return {}
    name, command = _EMULATION.get(platform.machine(), ("", ""))
    return {name: command} if name and name not in os.environ else {}
