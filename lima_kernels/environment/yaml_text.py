"""YAML that remembers where in the text a value stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from ..errors import ConfigurationError

# Nobody writes that much; what a stranger's file is made of must not keep this process busy for minutes.
MAX_CHARACTERS = 1024**2
MAX_VALUES = 100_000
_SEGMENT = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


class Document(NamedTuple):
    """A YAML text as Python's own types; ``source`` is how messages name it."""

    source: str
    value: Any
    node: yaml.Node | None

    def line(self, path: str) -> int | None:
        """Return the line of what a path such as ``mounts[0].location`` leads to, or of what is nearest to it."""
        node, line = self.node, None
        for key, number in _SEGMENT.findall(path):
            step = _item(node, int(number)) if number else _member(node, key)
            if step is None:
                break
            line, node = step
        return line

    def error(self, path: str, what: str, hint: str = "") -> ConfigurationError:
        """Return the error that says what is wrong at a path."""
        line = self.line(path)
        where = self.source if line is None else f"{self.source}, line {line}"
        return ConfigurationError(f"{where}: {what}", hint=hint)


def read(text: str, source: str) -> Document:
    """Read a YAML text; an empty one has the value None.

    :raises ConfigurationError: one line that names line and column.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigurationError(f"{source}: it is too long: at most {MAX_CHARACTERS} characters.")
    loader: yaml.SafeLoader | None = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node and _size(node, {}) > MAX_VALUES:
            what = f"it is too long: at most {MAX_VALUES} values, with what aliases repeat."
            raise ConfigurationError(f"{source}: {what}")
        _refuse_duplicates(node, source)
        return Document(source, loader.construct_document(node) if node else None, node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigurationError(f"{source}{where}: not YAML: {problem}.") from error
    except RecursionError as error:
        raise ConfigurationError(f"{source}: not YAML: it is nested too deeply.") from error
    except (ValueError, TypeError, AttributeError) as error:
        # A date or a tagged value that Python cannot make; PyYAML checks few of them.
        raise ConfigurationError(f"{source}: not YAML: {str(error).splitlines()[0]}.") from error
    finally:
        if loader is not None:
            loader.dispose()


def _item(node: yaml.Node | None, number: int) -> tuple[int, yaml.Node] | None:
    if not isinstance(node, yaml.SequenceNode) or number >= len(node.value):
        return None
    return node.value[number].start_mark.line + 1, node.value[number]


def _member(node: yaml.Node | None, key: str) -> tuple[int, yaml.Node] | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    found = [(name.start_mark.line + 1, value) for name, value in node.value if name.value == key]
    # What a merge key brought comes before the mapping's own word.
    return found[-1] if found else None


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Count the values that a node becomes when every alias in it is written out; one in itself is endless."""
    if id(node) not in sizes:
        sizes[id(node)] = MAX_VALUES + 1
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in _parts(node))
    return sizes[id(node)]


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    return [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else []


def _nodes(top: yaml.Node | None) -> Iterator[yaml.Node]:
    """Yield every node; one that aliases lead to comes as often as they do."""
    left = [top] if top else []
    while left:
        node = left.pop()
        yield node
        left += _parts(node)


def _refuse_duplicates(top: yaml.Node | None, source: str) -> None:
    """YAML forbids a key that is there twice; PyYAML would silently take the second."""
    for node in _nodes(top):
        if not isinstance(node, yaml.MappingNode):
            continue
        first: dict[str, int] = {}
        for key, _value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            line = key.start_mark.line + 1
            if key.value in first:
                what = f"the key {key.value!r} is there already, in line {first[key.value]}."
                raise ConfigurationError(f"{source}, line {line}: {what}")
            first[key.value] = line
