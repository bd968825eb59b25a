"""Jupyter kernels in Lima VMs."""

import importlib
import importlib.util
from typing import Any

__version__ = "0.1.0"


def _is_host() -> bool:
    """Tell whether all of us is here: in a guest there is nothing but the magics and the panels."""
    return importlib.util.find_spec(".extension", __name__) is not None


def load_ipython_extension(shell: Any) -> None:
    """Give an IPython shell `%lima` and `%%lima`: what `%load_ext lima_kernels` calls."""
    # Who only asks for the version, or starts a kernel, should not wait for what it may never use.
    importlib.import_module(".extension" if _is_host() else ".magics.guest", __name__).load(shell)


def __getattr__(name: str) -> Any:
    """Return `VMPanel` or `VMList`, which take a while to import.

    :raises LimaError: when this Python has no anywidget.
    """
    if name not in ("VMPanel", "VMList"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".watch.panels" if _is_host() else ".widget.guest", __name__), name)


def __dir__() -> list[str]:
    return sorted((*globals(), "VMPanel", "VMList"))


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    """Return what Jupyter Server loads of us."""
    return [{"module": __name__, "app": importlib.import_module(".server.app", __name__).LimaKernelsApp}]
