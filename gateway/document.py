"""The configuration's text as plain values, with the line of each: YAML, but less of it.

Scalars stay text, whatever they look like. What could mean something else than it seems to is
refused with its line: anchors, aliases, tags, duplicate keys, keys that are not scalars.
"""

import re
from collections.abc import Iterable, Mapping

import yaml

# Deeper than any setting, shallower than the recursion of the parser.
_DEEPEST = 32
_DOLLAR = re.compile(r"\$(?:(\$)|\{([A-Za-z_][A-Za-z0-9_]*)\})?")

#: What the parser means by its words, by how these begin: its context, and its problem. The line
#: told is where the fault begins: with True that of the context.
_PLAINLY = (
    ("expected a single document", "", False, "a second document begins here: wanted one, no ---"),
    ("while scanning a quoted", "found unexpected end", True, "a quote begins here and never ends"),
    ("while parsing a flow sequence", "expected ','", True, "a [ begins here that no ] closes"),
    ("while parsing a flow mapping", "expected ','", True, "a { begins here that no } closes"),
    ("while parsing a flow node", "", True, "a [ or { begins here that nothing closes"),
    ("", "found character '\\t'", False, "a tab: indent with spaces"),
    ("", "found character", False, "a character that no text begins with: put the text in quotes"),
    ("", "could not find expected ':'", True, "wanted a key and its value: key: value"),
    ("", "expected <block end>", False, "does not line up with what is above, or lacks a quote"),
    ("", "mapping values are not", False, "a second : in one value, or a wrong indent; quote the "
     "value, or line the keys up"),
    ("", "sequence entries are not", False, "a list's - has to begin its own line"),
)  # fmt: skip

Path = tuple[str | int, ...]
Plain = str | None | list["Plain"] | dict[str, "Plain"]


class ConfigError(Exception):
    """The configuration cannot be used. The message is ready to print: place, key, reason."""


def path_text(path: Path) -> str:
    """`keys[3].team`; a name that would blur the path is quoted: `models["a.b"].limits`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif re.fullmatch(r"[\w-]+", step):
            text += f".{step}" if text else step
        else:
            text += f'["{step}"]' if step.isprintable() else f"[{step!a}]"
    return text


def listed(names: Iterable[str]) -> str:
    """`known: search, ads`, for the end of a message about a name that is not known."""
    every = list(names)
    return f"known: {', '.join(every[:20]) or 'none'}{', …' if len(every) > 20 else ''}"


class _Loader(yaml.BaseLoader):
    """Builds the node graph only, which without anchors is a tree."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.MarkedYAMLError(
                problem="anchors and aliases are not read: write the value out",
                problem_mark=event.start_mark,
            )
        if getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(
                problem="tags are not read: types come from the settings",
                problem_mark=event.start_mark,
            )
        if self.depth == _DEEPEST:
            raise yaml.MarkedYAMLError(problem="nested too deep", problem_mark=event.start_mark)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class Document:
    """One text, read. `value` is made of dictionaries, lists, text and None.

    `source` is what messages call the text. Raises `ConfigError`.
    """

    def __init__(self, source: str, text: str, environ: Mapping[str, str]) -> None:
        self.source = source
        self._environ = environ
        self._lines: dict[Path, int] = {(): 1}
        self._variables: dict[Path, str] = {}
        node = self._compose(text)
        self.value: Plain = None if node is None else self._plain(node, ())

    def error(self, path: Path, message: str) -> ConfigError:
        """A refusal of what stands at `path`, or of its absence from what is above. What came from
        the environment is told by its variable.
        """
        known = next(path[:end] for end in range(len(path), -1, -1) if path[:end] in self._lines)
        for place, variable in self._variables.items():
            if path and place[: len(path)] == path and self._environ[variable]:
                message = message.replace(self._environ[variable], f"${{{variable}}}")
        return self._error(self._lines[known], path, message)

    def variable(self, path: Path) -> str | None:
        """The variable that the value at `path` came from: such a value is never printed."""
        return self._variables.get(path)

    def _error(self, line: int | None, path: Path, message: str) -> ConfigError:
        place = self.source if line is None else f"{self.source}:{line}"
        return ConfigError(": ".join(part for part in (place, path_text(path), message) if part))

    def _compose(self, text: str) -> yaml.Node | None:
        try:
            node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
        except yaml.MarkedYAMLError as exc:
            raise self._error(*_plainly(exc)) from None
        except yaml.reader.ReaderError as exc:
            line = text.count("\n", 0, exc.position) + 1
            raise self._error(line, (), "a character that YAML does not allow") from None
        except (ValueError, OverflowError):
            # PyYAML lets these out of escapes and directives: "\UFFFFFFFF", %YAML 9…9
            raise self._error(None, (), "not YAML: a number out of range") from None
        return node

    def _plain(self, node: yaml.Node, path: Path) -> Plain:
        if isinstance(node, yaml.ScalarNode):
            if node.style is None and node.value in ("", "~", "null"):
                return None
            return self._expanded(node.value, path)
        if isinstance(node, yaml.SequenceNode):
            items: list[Plain] = []
            for index, item in enumerate(node.value):
                self._lines[*path, index] = item.start_mark.line + 1
                items.append(self._plain(item, (*path, index)))
            return items
        return self._mapping(node, path)

    def _mapping(self, node: yaml.Node, path: Path) -> dict[str, Plain]:
        values: dict[str, Plain] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(line, path, "a key must be text, not a list or a mapping")
            inner = (*path, key.value)
            if key.value in values:
                first = self._lines[inner]
                raise self._error(line, inner, f"is here twice; first on line {first}")
            self._lines[inner] = line
            values[key.value] = self._plain(value, inner)
        return values

    def _expanded(self, text: str, path: Path) -> str:
        """`${NAME}` from the environment, `$$` as a dollar; any other dollar is refused."""

        def piece(found: re.Match[str]) -> str:
            name = found[2]
            if found[1]:
                return "$"
            if not name:
                raise self.error(path, "a dollar is written $$, a variable ${NAME}")
            if name not in self._environ:
                raise self.error(path, f"the environment has no {name}")
            self._variables[path] = name
            return self._environ[name]

        expanded = _DOLLAR.sub(piece, text)
        if any("\ud800" <= char <= "\udfff" for char in expanded):
            raise self.error(path, "not text: bytes that are not UTF-8, or half a character")
        return expanded


def _plainly(exc: yaml.MarkedYAMLError) -> tuple[int | None, Path, str]:
    """The line, the path and the words for what the parser cannot read."""
    context, problem = exc.context or "", exc.problem or "not YAML"
    mark = exc.problem_mark
    for of, what, begins, words in _PLAINLY:
        if context.startswith(of) and problem.startswith(what):
            mark, problem = (exc.context_mark if begins else None) or mark, words
            break
    return mark.line + 1 if mark else None, (), problem
