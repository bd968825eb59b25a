"""Which kernel spec a notebook is run with."""

from __future__ import annotations

from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from nbformat import NotebookNode

from .. import kernelspec
from ..errors import ConfigurationError, nearest
from ..reproduce.running import Kernel

# Of a kernel spec that lives as long as a run.
_SPARE = "lima-environment"


def named(name: str, specs: KernelSpecManager | None = None) -> Kernel:
    """Return the kernel spec of a name.

    :raises ConfigurationError: when there is none.
    """
    specs = specs or KernelSpecManager()
    try:
        language = specs.get_kernel_spec(name).language
    except NoSuchKernel as error:
        hint = nearest(name, sorted(specs.find_kernel_specs())) or "Write the spec first: lima-kernels install"
        raise ConfigurationError(f"There is no kernel spec {name!r}.", hint=hint) from error
    return Kernel(name, specs, language)


def instance_of(name: str) -> str:
    """Return the VM that a kernel spec of ours names.

    :raises ConfigurationError: when it is none of ours.
    """
    ours = {found.name: found.instance for found in kernelspec.installed()}
    named(name)
    if name.lower() not in ours:
        raise ConfigurationError(f"The kernel spec {name!r} is none of ours, and has no lock.")
    return ours[name.lower()]


def of_environment(file: Path, instance: str, name: str | None, notebook: NotebookNode, spare: Path) -> Kernel:
    """Return a kernel spec of an environment: the one of the name, else the notebook's own, else Python's.

    :param instance: the VM that the environment is in.
    :param spare: a directory for a kernel spec where none is installed.
    :raises ConfigurationError: when the kernel spec of that name is another environment's.
    """
    environment = str(file.resolve())
    ours = {
        found.name: found
        for found in kernelspec.installed()
        if found.instance == instance and found.config.get("environment") == environment
    }
    if name is not None:
        kernel = named(name)
        if kernel.name.lower() not in ours:
            raise ConfigurationError(
                f"The kernel spec {name!r} is not one of the environment {file}.",
                hint=f"Choose: {', '.join(ours)}." if ours else f"Write one: lima-kernels install --environment {file}",
            )
        return kernel
    asked = notebook.metadata.get("kernelspec")
    if isinstance(asked, dict) and str(asked.get("name")) in ours:
        return named(str(asked["name"]))
    python = next((found.name for found in ours.values() if not found.config.get("kernel")), None)
    return named(python) if python else _spare(file, instance, spare)


def _spare(file: Path, instance: str, directory: Path) -> Kernel:
    request = kernelspec.make_request(
        _SPARE, kernelspec.DEFAULT_DISPLAY_NAME, environment=file, instance=instance, attach=False
    )
    written = kernelspec.write(request, user=False, prefix=str(directory))
    specs = KernelSpecManager()
    specs.kernel_dirs = [str(written.parent), *specs.kernel_dirs]
    return named(request.name, specs)
