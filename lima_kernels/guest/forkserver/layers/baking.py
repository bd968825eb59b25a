"""A lock's environment in an image that is being built: the same program, in the image's tree in place of a guest."""

from __future__ import annotations

import json
import os
import sys

from .. import environments
from . import python


def main() -> None:
    """Build the environment, or finish it when nothing in the tree changes any more.

    Arguments: ``build`` or ``finish``, and a JSON file with
    ``environments``, ``name``, ``build``, ``lock``, ``python`` and ``pylock``.
    """
    step, file = sys.argv[1:3]
    with open(file, encoding="utf-8") as opened:
        wanted = json.load(opened)
    base = wanted["environments"]
    home = os.path.join(base, wanted["name"])
    build = os.path.join(home, "builds", wanted["build"])
    if step == "build":
        os.makedirs(os.path.dirname(build))
        python.build(base, build, wanted["pylock"])
    else:
        environments.write_manifest(build, lock=wanted["lock"], python=wanted["python"])
        environments.write_system(base, wanted["name"], lock=wanted["lock"])
        python.switch(home, build)


if __name__ == "__main__":
    main()
