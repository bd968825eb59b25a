"""Jupyter kernels in Lima VMs."""

import importlib.util
from typing import Any

__version__ = "0.1.0"


def load_ipython_extension(shell: Any) -> None:
    """Give an IPython shell `%lima` and `%%lima`: what `%load_ext lima_kernels` calls."""
    # In a guest there is nothing of us but the magics. And who only asks for the version, or starts a kernel, should
    # not wait for what it may never use.
    is_host = importlib.util.find_spec(".extension", __name__) is not None
    importlib.import_module(".extension" if is_host else ".magics.guest", __name__).load(shell)
