"""image build, image list: guest images made on this host."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from ..environment import building, image


def add_commands(commands: Any) -> None:
    """Add this group's commands."""
    parser = commands.add_parser("image", help="build guest images")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    build = verbs.add_parser("build", help="build a Debian image with ipykernel and a data-science set (Linux only)")
    build.add_argument("--name", default=image.DEFAULT_IMAGE, help="the image's name in environment files")
    build.add_argument("--force", action="store_true", help="also when it is there and current")
    build.set_defaults(command=_build)
    verbs.add_parser("list", help="list the images built here").set_defaults(command=_list)


def _build(options: argparse.Namespace) -> int:
    if not options.force and image.is_current(options.name):
        print(f"The image {options.name} is current. To build it all the same: --force")
        return 0
    told_build(lambda report: asyncio.run(building.build_image(options.name, report)))
    return 0


def told_build(build: Callable[[Callable[[str], None]], image.LocalImage]) -> None:
    """Build an image, and tell how far it is and what it has become.

    :param build: is given what takes each line of output.
    """
    console, began = Console(stderr=True), time.monotonic()
    with console.status("building the guest image") as status:

        def report(line: str) -> None:
            if console.is_terminal:
                status.update(f"building the guest image, {time.monotonic() - began:.0f} s: {line[:100]}")
            elif line in building.STEPS:
                print(f"{time.monotonic() - began:5.1f} s  building the guest image: {line}", flush=True)

        built = build(report)
    size = built.disk.stat().st_size / 1024**2
    print(f"Built {built.disk} ({size:.0f} MiB) in {time.monotonic() - began:.0f} s")
    print(f"SHA-256 {built.sha256}")


def _list(_options: argparse.Namespace) -> int:
    for name in image.list_images():
        print(name, "" if image.is_current(name) else "(built by another version)")
    return 0
