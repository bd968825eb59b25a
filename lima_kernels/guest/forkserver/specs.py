"""The guest's kernel specs: its own word on which kernels it has."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jupyter_client.kernelspec import KernelSpecManager


class NoSuchSpec(Exception):
    """The guest has no kernel spec of that name; the text names those that it has."""


def _manager(venv: str) -> KernelSpecManager:
    """Return what finds the kernel specs of our own Python, or those of an environment, and the guest's own."""
    from jupyter_client.kernelspec import KernelSpecManager

    manager = KernelSpecManager()
    if venv:
        # Ours run in our Python.
        ours = os.path.join(sys.prefix, "share", "jupyter", "kernels") if sys.prefix != sys.base_prefix else ""
        others = [directory for directory in manager.kernel_dirs if directory != ours]
        manager.kernel_dirs = [os.path.join(venv, "share", "jupyter", "kernels"), *others]
        manager.ensure_native_kernel = False
    return manager


def all_specs(venv: str) -> dict[str, Any]:
    """Return what the host wants to know of every kernel.json, by name; one that is damaged is left out.

    :param venv: of an environment; nothing for our own.
    """
    found = {}
    for name, entry in _manager(venv).get_all_specs().items():
        spec = {field: entry["spec"].get(field) for field in ("argv", "display_name", "language", "interrupt_mode")}
        argv = spec.pop("argv")
        texts = [*argv, *spec.values()] if isinstance(argv, list) and argv else [None]
        if all(isinstance(text, str) for text in texts):
            found[name] = {"argv": argv, **spec}
    return found


def find(name: str, venv: str) -> dict[str, Any]:
    """Return what is needed to run a kernel: argv, env and resource_dir.

    :param venv: of an environment; nothing for our own.
    :raises NoSuchSpec: when there is none of that name.
    """
    from jupyter_client.kernelspec import NoSuchKernel

    manager = _manager(venv)
    known = manager.find_kernel_specs()
    try:
        # The manager has our own ipykernel for every environment.
        if name.lower() not in known:
            raise NoSuchKernel(name)
        spec = manager.get_kernel_spec(name)
    except NoSuchKernel:
        names = ", ".join(sorted(known)) or "none"
        raise NoSuchSpec("the guest has no kernel %r; it has: %s" % (name, names)) from None
    if not spec.argv:
        raise NoSuchSpec("the guest's kernel spec %r has an empty argv" % name)
    return {"argv": spec.argv, "env": spec.env, "resource_dir": spec.resource_dir}
