"""Every command, option and setting stands in the README."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from msgspec.structs import fields

from lima_kernels.cli.main import make_parser
from lima_kernels.control import OWN
from lima_kernels.environment.schema import schema
from lima_kernels.environment.spec import parse
from lima_kernels.magics.arguments import CELL, VERBS
from lima_kernels.provisioner import LimaProvisioner

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


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


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_of_the_magic_is_in_its_page_with_an_example(verb: str) -> None:
    page = (ROOT / "docs" / "magics.md").read_text(encoding="utf-8")
    assert f"| `%lima {VERBS[verb].example}` | {VERBS[verb].help[0].upper()}{VERBS[verb].help[1:]}. |" in page


@pytest.mark.parametrize("option", [name for argument in CELL for name in argument.names if name.startswith("--")])
def test_every_option_of_a_cell_is_in_its_page(option: str) -> None:
    page = (ROOT / "docs" / "magics.md").read_text(encoding="utf-8")
    assert f"- `{option}" in page or f"- `{option.replace('--', '--no-', 1)}" in page


def test_what_a_guests_kernel_may_ask_for_is_in_the_page() -> None:
    page = (ROOT / "docs" / "magics.md").read_text(encoding="utf-8")
    allowed = page.partition("With `control` at `own-vm`")[2].partition("With `all`")[0]
    assert set(re.findall(r"`([a-z-]+)`", allowed)) == set(OWN)


def keys_of_an_environment_file() -> Iterator[str]:
    made = schema()
    for part in (made, *made["$defs"].values()):
        yield from part.get("properties", {})


@pytest.mark.parametrize("key", sorted(set(keys_of_an_environment_file())))
def test_every_key_of_an_environment_file_is_in_its_page(key: str) -> None:
    page = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
    assert re.search(rf"`(\w+(\[\])?\.)*{key}`", page)


def test_the_environment_file_of_the_page_can_be_obeyed(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
    example = page.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "requirements.txt").write_text("scipy\n")
    environment = parse(example, source="docs/environments.md", base=tmp_path)
    assert {field.encode_name for field in fields(environment)} - set(yaml.safe_load(example)) == {"mountInotify"}
