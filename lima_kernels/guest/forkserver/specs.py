"""The guest's kernel specs: its own word on which kernels it has."""

from __future__ import annotations

from typing import Any


class NoSuchSpec(Exception):
    """The guest has no kernel spec of that name; the text names those that it has."""


def all_specs() -> dict[str, Any]:
    """Return the content of every kernel.json, by name."""
    from jupyter_client.kernelspec import KernelSpecManager

    return {name: entry["spec"] for name, entry in KernelSpecManager().get_all_specs().items()}


def find(name: str) -> dict[str, Any]:
    """Return what is needed to run a kernel: argv, env and resource_dir.

    :raises NoSuchSpec: when there is none of that name.
    """
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    manager = KernelSpecManager()
    try:
        spec = manager.get_kernel_spec(name)
    except NoSuchKernel:
        known = ", ".join(sorted(manager.find_kernel_specs())) or "none"
        raise NoSuchSpec("the guest has no kernel %r; it has: %s" % (name, known)) from None
    return {"argv": spec.argv, "env": spec.env, "resource_dir": spec.resource_dir}
