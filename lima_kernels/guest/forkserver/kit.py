"""What a kernel has of our package: `%lima` and panels. It lies beside this package.

The magic is imported once for all kernels; panels, which take longer, by the cell that wants one.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

# The directory, relative to this package's, in which Python finds it.
KIT = "kit"
_MODULE = "lima_kernels.magics.guest"


def preload() -> None:
    """Import it where this Python and IPython can: every kernel then has it, and no path of ours.

    Whatever hinders that, a kernel without it is better than none.
    """
    place = os.path.join(os.path.dirname(os.path.abspath(__file__)), KIT)
    sys.path.insert(0, place)
    try:
        importlib.import_module(_MODULE)
    except Exception as error:
        print("There is no %%lima in this guest's kernels: %s" % error, file=sys.stderr, flush=True)
    finally:
        sys.path.remove(place)


def load(shell: Any) -> None:
    """Give a kernel's shell the magic, where it could be imported."""
    if _MODULE in sys.modules:
        sys.modules[_MODULE].load(shell)
