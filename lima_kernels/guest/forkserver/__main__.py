"""Run the package by its directory's path, whatever the directory is called."""

import importlib
import os
import sys

here = os.path.dirname(os.path.abspath(__file__))
sys.path[0] = os.path.dirname(here)
part = ".zygote" if sys.argv[1:] == ["zygote"] else ".main"
main = importlib.import_module(os.path.basename(here) + part).main
# A kernel has no path of ours.
del sys.path[0]
sys.exit(main())
