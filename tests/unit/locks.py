"""A lock and a guest that is what it says, for tests of what comes of them."""

from __future__ import annotations

from typing import Any

import msgspec

from lima_kernels.environment.lock import LOCK_VERSION, Lock, Platform
from lima_kernels.reproduce.state import GuestState, Package

IMAGE, RECORD, OTHER = "1" * 64, "2" * 64, "3" * 64
APT = {"bash": "5.2.15-2+b7", "libc6": "2.36-9+deb12u9", "libc6:i386": "2.36-9+deb12u9"}
KERNEL, PYTHON = "6.1.0-28-amd64", "3.11.2"


def locked(name: str, version: str, **more: Any) -> dict[str, Any]:
    wheel = f"{name}-{version}-py3-none-any.whl"
    return {
        "name": name,
        "version": version,
        "wheels": [{"name": wheel, "url": f"https://example.invalid/{wheel}", "hashes": {"sha256": OTHER}}],
        **more,
    }


def lock(*packages: dict[str, Any], inputs: str = "4" * 64, **platform: Any) -> Lock:
    """A lock for x86_64 of these packages; IPython and NumPy when none is given."""
    said = {"image": "debian-12", "image_sha256": IMAGE, "kernel": KERNEL, "python": PYTHON, "apt": APT, **platform}
    found = packages or (locked("ipython", "9.1.0"), locked("numpy", "2.1.0"))
    pylock = {"lock-version": "1.0", "created-by": "a test", "packages": list(found)}
    return Lock(
        version=LOCK_VERSION, name="tables", inputs=inputs, platforms={"x86_64": Platform(**said)}, pylock=pylock
    )


def state(of: Lock, **changed: Any) -> GuestState:
    """A guest that is what a lock says, but for what is changed."""
    platform = of.platforms["x86_64"]
    packages = {package["name"]: Package(package["version"], RECORD) for package in of.pylock["packages"]}
    made = GuestState(
        arch="x86_64",
        kernel=platform.kernel,
        python=platform.python,
        apt=platform.apt,
        packages=packages,
        built=packages,
        python_digest=of.python_digest("x86_64"),
        image_sha256=platform.image_sha256,
    )
    return msgspec.structs.replace(made, **changed)
