"""Every command, option and setting stands in the README."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lima_kernels.cli.main import make_parser
from lima_kernels.provisioner import LimaProvisioner

README = Path(__file__).parents[2] / "README.md"


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and all below it; each ``prog`` is the whole command."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


COMMANDS = list(parsers(make_parser()))
OPTIONS = sorted({option for parser in COMMANDS for action in parser._actions for option in action.option_strings})
TRAITS = sorted(LimaProvisioner.class_trait_names(config=True))


def readme() -> str:
    return README.read_text(encoding="utf-8")


def stands(words: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(words)}(?![\w-])", text) is not None


def test_the_command_line_was_walked() -> None:
    progs = {parser.prog for parser in COMMANDS}
    assert {"lima-kernels", "lima-kernels install", "lima-kernels image build"} <= progs
    assert {"--environment", "--allow-errors", "--version"} <= set(OPTIONS)


@pytest.mark.parametrize("command", [parser.prog for parser in COMMANDS])
def test_every_command_stands_in_the_readme(command: str) -> None:
    assert stands(command, readme())


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_stands_in_the_readme(option: str) -> None:
    assert stands(option, readme())


@pytest.mark.parametrize("trait", TRAITS)
def test_every_setting_of_the_provisioner_stands_in_the_readme_as_code(trait: str) -> None:
    assert re.search(rf'`{trait}`|"{trait}"|LimaProvisioner\.{trait}\b', readme())


@pytest.mark.parametrize("parser", COMMANDS, ids=lambda parser: parser.prog)
def test_every_command_and_option_has_help(parser: argparse.ArgumentParser) -> None:
    silent = [
        action.option_strings
        for action in parser._actions
        if action.option_strings and (not action.help or action.help is argparse.SUPPRESS)
    ]
    assert silent == []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert {choice.dest for choice in action._choices_actions if choice.help} == set(action.choices)
