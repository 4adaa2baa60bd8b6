"""A document's plain values as the nouns of `settings`: their types decide what is read.

Every refusal names the key and the line, says what was wanted and what was given, and never
repeats a value that may be a secret.
"""

import difflib
import re
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from gateway.document import ConfigError, Document, Path, Plain, listed
from gateway.settings import Override, Settings
from gateway.units import NEVER_NULL, ONE_OR_MANY, OVER_GLOBAL, Text

S = TypeVar("S", bound=Settings)

#: Said without what follows the colon: that may be a secret.
_NO_BLANK = "a blank is missing after its colon"
_WORDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number"}


def unwrapped(wanted: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without `| None` and `Annotated`, and every mark it bore; None is the mark of both."""
    if get_origin(wanted) is Annotated:
        bare, marks = unwrapped(wanted.__origin__)
        return bare, (*wanted.__metadata__, *marks)
    if get_origin(wanted) in (Union, UnionType):
        inner = next(part for part in get_args(wanted) if part is not NoneType)
        bare, marks = unwrapped(inner)
        return bare, (*marks, None)
    return wanted, ()


def text_of(marks: Iterable[Any]) -> Text | None:
    return next((mark for mark in marks if isinstance(mark, Text)), None)


def _meant(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}? " if close else ""


class Reader:
    """Reads one document. `over` holds, by type, what a model's own settings are laid over."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self.over: dict[type[Settings], Settings] = {}

    def noun(self, noun: type[S], given: Plain, path: Path) -> S:
        """A mapping as a `noun`. Raises `ConfigError`."""
        fields = self._fields(noun, given, path, partial=False)
        try:
            return noun(**fields)
        except ValueError as exc:
            raise self._document.error(path, str(exc)) from None

    def _override(self, noun: type[S], given: Plain, path: Path) -> Override[S]:
        return Override(self._fields(noun, given, path, partial=True))

    def _fields(
        self, noun: type[Settings], given: Plain, path: Path, *, partial: bool
    ) -> dict[str, Any]:
        fields = {f.name: f for f in msgspec.structs.fields(noun) if f.name not in noun.internal}
        if isinstance(given, str) and (key := _unparted(given)) in fields:
            raise self._document.error((*path, key), _NO_BLANK)
        if not isinstance(given, dict):
            raise self._refused("a mapping", given, path)
        for name in given:
            if name not in fields:
                if key := _unparted(name):
                    raise self._document.error((*path, key), _NO_BLANK)
                hint = f"{_meant(name, fields)}{listed(fields)}"
                raise self._document.error((*path, name), f"unknown key; {hint}")
        values: dict[str, Any] = {}
        for name, field in fields.items():
            inner = (*path, name)
            bare, marks = unwrapped(field.type)
            if name in given:
                if partial and _is_a(bare, Settings):
                    values[name] = self._override(bare, given[name], inner)
                else:
                    values[name] = self._value(field.type, given[name], inner)
            elif OVER_GLOBAL in marks:
                values[name] = self.over[bare]
            elif field.required and not partial:
                raise self._document.error(path, f"{name} is missing")
        return values

    def _value(self, wanted: Any, given: Plain, path: Path) -> Any:
        bare, marks = unwrapped(wanted)
        if given is None:
            if NEVER_NULL in marks:
                raise self._document.error(
                    path, "is empty: leave the key out to allow all, write [] to allow none"
                )
            if None in marks:
                return None
        if ONE_OR_MANY in marks and not isinstance(given, list):
            return (self._value(get_args(bare)[0], given, path),)
        text = text_of(marks)
        if text is not None and isinstance(given, str):
            return self._parsed(text, bare, marks, given, path)
        if text is not None and not (isinstance(given, dict) and _is_a(bare, Settings)):
            raise self._refused(text.wanted, given, path)
        if OVER_GLOBAL in marks:
            return self._override(bare, given, path).over(self.over[bare])
        if _is_a(bare, Settings):
            return self.noun(bare, given, path)
        return self._composed(bare, marks, given, path)

    def _composed(self, bare: Any, marks: tuple[Any, ...], given: Plain, path: Path) -> Any:
        inner = get_args(bare)
        family = get_origin(bare)
        if family is Override:
            return self._override(inner[0], given, path)
        if family is dict:
            if not isinstance(given, dict):
                raise self._refused("a mapping", given, path)
            pairs = ((key, value, (*path, key)) for key, value in given.items())
            return {
                self._value(inner[0], key, place): self._value(inner[1], value, place)
                for key, value, place in pairs
            }
        if family is tuple:
            if not isinstance(given, list):
                raise self._refused("a list", given, path)
            return tuple(
                self._value(inner[0], item, (*path, index)) for index, item in enumerate(given)
            )
        if family is Literal:
            if given not in inner:
                wanted = f"one of {', '.join(inner)}" if len(inner) > 1 else inner[0]
                raise self._refused(wanted, given, path)
            return given
        return self._converted(bare, marks, given, path)

    def _parsed(self, text: Text, bare: Any, marks: tuple[Any, ...], given: str, path: Path) -> Any:
        try:
            value = text.parse(given)
        except msgspec.ValidationError:
            raise self._refused(text.wanted, given, path) from None
        except ValueError as exc:
            hidden = text.hidden or self._hidden(given, path)
            tail = "" if hidden else f"; given {_short(given)}"
            raise self._document.error(path, f"{exc}{tail}") from None
        if bare in (int, float) and not _within(value, bare, marks):
            raise self._refused(f"{text.wanted} above 0", given, path)
        return value

    def _converted(self, bare: Any, marks: tuple[Any, ...], given: Plain, path: Path) -> Any:
        if isinstance(given, str) and (bare is not bool or given in ("true", "false")):
            try:
                value = msgspec.convert(given, bare, strict=False)
            except msgspec.ValidationError:
                raise self._refused(_described(bare, marks), given, path) from None
            if _within(value, bare, marks):
                return value
        raise self._refused(_described(bare, marks), given, path)

    def _refused(self, wanted: str, given: Plain, path: Path) -> ConfigError:
        if given is None:
            what = "nothing"
        elif isinstance(given, str):
            variable = self._document.variable(path)
            hidden = f"the value of ${{{variable}}}" if variable else "a value with an @"
            what = hidden if self._hidden(given, path) else _short(given)
        else:
            what = "a mapping" if isinstance(given, dict) else "a list"
        return self._document.error(path, f"wanted {wanted}; given {what}")

    def _hidden(self, given: str, path: Path) -> bool:
        """Whether a value must not be printed: from the environment, or a URL with a password."""
        return self._document.variable(path) is not None or "@" in given


def _unparted(text: str) -> str:
    """The key in a `key:value` that YAML takes for one word; empty where it is none."""
    found = re.match(r"(\w+):(?!//)", text)
    return found[1] if found else ""


def _is_a(bare: Any, family: type) -> bool:
    return isinstance(bare, type) and issubclass(bare, family)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _within(value: Any, bare: Any, marks: tuple[Any, ...]) -> bool:
    """Whether a value keeps the bounds its type is marked with."""
    try:
        for mark in _bounds(marks):
            msgspec.convert(value, Annotated[bare, mark])
    except msgspec.ValidationError:
        return False
    return True


def _described(bare: Any, marks: tuple[Any, ...]) -> str:
    if bare is str:
        return "text that is not empty"
    words = _WORDS[bare]
    for mark in _bounds(marks):
        if mark.ge is not None:
            words += f" of at least {mark.ge}"
        if mark.le is not None and mark.le < 1 << 53:
            words += f" and at most {mark.le}"
    return words


def _bounds(marks: tuple[Any, ...]) -> list[Meta]:
    return [mark for mark in marks if isinstance(mark, Meta)]
