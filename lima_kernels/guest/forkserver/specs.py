"""The guest's kernel specs: its own word on which kernels it has."""

from __future__ import annotations

from typing import Any


class NoSuchSpec(Exception):
    """The guest has no kernel spec of that name; the text names those that it has."""


def all_specs() -> dict[str, Any]:
    """Return what the host wants to know of every kernel.json, by name; one that is damaged is left out."""
    from jupyter_client.kernelspec import KernelSpecManager

    found = {}
    for name, entry in KernelSpecManager().get_all_specs().items():
        spec = {field: entry["spec"].get(field) for field in ("argv", "display_name", "language", "interrupt_mode")}
        argv = spec.pop("argv")
        texts = [*argv, *spec.values()] if isinstance(argv, list) and argv else [None]
        if all(isinstance(text, str) for text in texts):
            found[name] = {"argv": argv, **spec}
    return found


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
    if not spec.argv:
        raise NoSuchSpec("the guest's kernel spec %r has an empty argv" % name)
    return {"argv": spec.argv, "env": spec.env, "resource_dir": spec.resource_dir}
