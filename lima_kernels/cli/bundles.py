"""env image, env export, env import: an environment with all its bytes, for a host without network."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import places
from ..reproduce import baking, bundle
from .image import told_build


def add_verbs(verbs: Any) -> None:
    """Add these verbs to the group ``env``."""
    image = verbs.add_parser("image", help="build a guest image that brings a locked environment with it (Linux only)")
    _add_file(image)
    image.add_argument("--name", help="the image's name on this host (default: env- and the environment's)")
    image.set_defaults(command=_image)
    out = verbs.add_parser("export", help="write a locked environment and its image into one file")
    _add_file(out)
    out.add_argument("--output", "-o", type=Path, help="the archive (default: NAME.lima-env.tar in this directory)")
    out.set_defaults(command=_export)
    back = verbs.add_parser("import", help="take an environment and its image from such a file, checking all of it")
    back.add_argument("archive", type=Path, metavar="ARCHIVE", help="what env export wrote")
    back.add_argument("--directory", type=Path, help="where its files go, new or empty (default: NAME, here)")
    back.add_argument("--name", help="the image's name on this host (default: the one that it had)")
    back.set_defaults(command=_import)


def _add_file(parser: argparse.ArgumentParser) -> None:
    says = "the environment file, with its lock beside it (default: lima-env.yaml, here or above)"
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help=says)


def _image(options: argparse.Namespace) -> int:
    place = places.find(options.file, None, Path())
    name = options.name or f"env-{place.locked.lock.name}"
    told_build(lambda report: asyncio.run(baking.bake(place.file, name, report)))
    return 0


def _export(options: argparse.Namespace) -> int:
    place = places.find(options.file, None, Path())
    output = options.output or Path(f"{place.locked.lock.name}.lima-env.tar")
    with Console(stderr=True).status("exporting") as status:
        written = bundle.export(place.file, output, status.update)
    print(f"Wrote {written} ({written.stat().st_size / 1024**2:.0f} MiB)")
    return 0


def _import(options: argparse.Namespace) -> int:
    with Console(stderr=True).status("importing") as status:
        done = bundle.unpack(options.archive, options.directory, options.name, status.update)
    print(f"Imported {os.path.relpath(done.environment)}, and its image {done.image}")
    for wish in done.wishes:
        print(f"With it, {wish}")
    return 0
