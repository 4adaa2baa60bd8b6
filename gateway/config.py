"""Reading the configuration: text in, `Config` out, and every refusal names its key and line.

The only place that opens the file and looks at the environment. What a setting is called and
means is in `settings`, what must hold between settings in `checks`.
"""

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from gateway.checks import aliased, problems
from gateway.document import ConfigError, Document, Path, path_text
from gateway.membership import in_file
from gateway.reader import Reader, text_of, unwrapped
from gateway.settings import (
    Caps,
    Config,
    ReplicaSettings,
    Settings,
    Timeouts,
)
from gateway.units import ADDRESS_SCHEMA, Address

logger = logging.getLogger("fairgate")

__all__ = ["ConfigError", "discovered", "load", "override", "read", "schema", "text"]

_DEFAULT_BACKEND = "http://127.0.0.1:8000"
_SHORT_FORMS: dict[str, dict[str, Any]] = {
    "Rate": {"type": "integer", "minimum": 1},
    "ReplicaSettings": {"type": "string", "format": "uri"},
}
#: What types cannot say: of these keys, a mapping has exactly one.
_ONE_OF = {"ReplicaSettings": ("url", "dns", "file")}


def load(source: str, text: str, environ: Mapping[str, str]) -> Config:
    """The configuration that a text means; `source` only names it in messages.

    Looks at the file system for one thing: whether the certificates named can be read.
    Raises `ConfigError`.
    """
    document = Document(source, text, environ)
    given = {} if document.value is None else document.value
    reader = Reader(document)
    if isinstance(given, dict):
        # First, because what a model gives is laid over them.
        for name, noun in (("timeouts", Timeouts), ("request", Caps)):
            reader.over[noun] = reader.noun(noun, given[name], (name,)) if name in given else noun()
    config = reader.noun(Config, given, ())
    _check(config, document.error)
    _warn(config, document.error)
    return _resolved(config, environ, document.error)


def read(path: str, environ: Mapping[str, str]) -> Config:
    """The configuration in a file, `-` for standard input. Raises `ConfigError`."""
    return load("standard input" if path == "-" else path, text(path), environ)


def text(path: str) -> str:
    """What a file says, `-` for standard input. Raises `ConfigError`."""
    source = "standard input" if path == "-" else path
    try:
        if path == "-":
            return sys.stdin.read()
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as exc:
        raise ConfigError(f"{source}: {exc.strerror}") from None
    except ValueError:
        raise ConfigError(f"{source}: not a text in UTF-8") from None


def discovered(backends: Sequence[str], **overrides: Any) -> Config:
    """The configuration without a file: the models are what the backends say they serve.

    Takes what `override` takes. Raises `ConfigError`.
    """
    return override(Config(), backends=backends or (_DEFAULT_BACKEND,), **overrides)


def override(config: Config, *, backends: Sequence[str] = (), **settings: Any) -> Config:
    """A configuration with settings of the command line in place of its own, checked again.

    `listen` may be text or several, `admin_listen` may be text; every other setting has its type
    in `Config`.
    Raises `ConfigError`.
    """

    def error(path: Path, message: str) -> ConfigError:
        return ConfigError(f"{path_text(path)}: {message}")

    if "listen" in settings:
        settings["listen"] = _addresses(settings["listen"], ("listen",), error)
    if isinstance(settings.get("admin_listen"), str):
        (settings["admin_listen"],) = _addresses(settings["admin_listen"], ("admin_listen",), error)
    if backends:
        settings["backends"] = tuple(_backend(url, error) for url in backends)
    changed = msgspec.structs.replace(config, **settings)
    _check(changed, error)
    return changed


def schema() -> dict[str, Any]:
    """The configuration's JSON Schema, of the form that people write."""
    nouns = msgspec.json.schema(Config)
    definitions: dict[str, Any] = nouns["$defs"]
    for noun in Settings.__subclasses__():
        definitions[noun.__name__] = _as_written(noun, definitions[noun.__name__])
    definitions["Address"] = ADDRESS_SCHEMA
    for name, keys in _ONE_OF.items():
        definitions[name]["oneOf"] = [{"required": [key]} for key in keys]
    for name, short in _SHORT_FORMS.items():
        definitions[name] = {"anyOf": [short, definitions[name]]}
    used: dict[str, Any] = {}
    _collect(definitions["Config"], definitions, used)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **definitions["Config"],
        "title": "fairgate configuration",
        "$defs": used,
    }


_Error = Callable[[Path, str], ConfigError]


def _check(config: Config, error: _Error) -> None:
    for path, message in problems(config):
        raise error(path, message)


def _warn(config: Config, error: _Error) -> None:
    """Of what is good and hardly meant: `check` and `serve` show it on standard error."""
    names = aliased(config.models)
    for index, key in enumerate(config.keys):
        if key.expires is not None and key.expires.timestamp() <= time.time():
            told = f"{key.expires:%Y-%m-%d} is past: the key {key.name} is refused"
            logger.warning("%s", error(("keys", index, "expires"), told))
        team = config.teams[key.team]
        if team.models is None:
            continue
        allowed = _named(team.models, names) or ()
        for at, model in enumerate(key.models or ()):
            if names.get(model, model) not in allowed:
                told = f"team {key.team} may not use {model}, so the key {key.name} may not either"
                logger.warning("%s", error(("keys", index, "models", at), told))


def _resolved(config: Config, environ: Mapping[str, str], error: _Error) -> Config:
    """With credentials from the environment, and names in place of aliases in permissions."""
    models = {
        name: msgspec.structs.replace(
            model,
            replicas=tuple(
                _proven(replica, environ, ("models", name, "replicas", index), error)
                for index, replica in enumerate(model.replicas)
            ),
        )
        for name, model in config.models.items()
    }
    names = aliased(models)
    teams = {
        name: msgspec.structs.replace(
            team,
            models=_named(team.models, names),
            limits_by_model={names.get(k, k): v for k, v in team.limits_by_model.items()},
        )
        for name, team in config.teams.items()
    }
    keys = tuple(
        msgspec.structs.replace(key, models=_named(key.models, names)) for key in config.keys
    )
    return msgspec.structs.replace(config, models=models, teams=teams, keys=keys)


def _named(given: tuple[str, ...] | None, names: Mapping[str, str]) -> tuple[str, ...] | None:
    return None if given is None else tuple(dict.fromkeys(names.get(n, n) for n in given))


def _proven(
    replica: ReplicaSettings, environ: Mapping[str, str], path: Path, error: _Error
) -> ReplicaSettings:
    """An entry with its credential; a list of servers that is of no use is refused at once."""
    entry = _with_key(replica, environ, path, error)
    if entry.file is not None:
        try:
            in_file(entry)
        except ConfigError as exc:
            raise error((*path, "file"), str(exc)) from None
    return entry


def _with_key(
    replica: ReplicaSettings, environ: Mapping[str, str], path: Path, error: _Error
) -> ReplicaSettings:
    name = replica.api_key_env
    if name is None:
        return replica
    key = environ.get(name, "")
    if not key:
        raise error((*path, "api_key_env"), f"the environment has no {name}, or it is empty")
    # RFC 9110 section 5.5: it becomes a field's value; a line's end from a file is the usual slip.
    if not key.isascii() or not key.isprintable() or " " in key:
        raise error((*path, "api_key_env"), f"{name} holds more than visible ASCII characters")
    return msgspec.structs.replace(replica, api_key=key)


def _addresses(given: Any, path: Path, error: _Error) -> tuple[Address, ...]:
    several = (given,) if isinstance(given, str | Address) else tuple(given)
    try:
        return tuple(Address.parse(one) if isinstance(one, str) else one for one in several)
    except ValueError as exc:
        raise error(path, str(exc)) from None


def _backend(url: str, error: _Error) -> ReplicaSettings:
    try:
        return ReplicaSettings(url=url)
    except ValueError as exc:
        raise error(("backend",), str(exc)) from None


def _as_written(noun: type[Settings], definition: dict[str, Any]) -> dict[str, Any]:
    """One definition with its types and defaults as text, without what no file may say."""
    properties = {
        name: _text_form(value)
        for name, value in definition["properties"].items()
        if name not in noun.internal
    }
    for field in msgspec.structs.fields(noun):
        if field.name in properties and field.default is not msgspec.NODEFAULT:
            default = _default(field.type, field.default)
            if default is not None:
                properties[field.name]["default"] = default
    description = definition["description"].partition("\n\n")[0]
    return {**definition, "description": description, "properties": properties}


def _text_form(node: Any) -> Any:
    if isinstance(node, list):
        return [_text_form(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "written" in node:
        return dict(node["written"])
    return {key: _text_form(value) for key, value in node.items() if key != "default"}


def _default(wanted: Any, value: Any) -> Any:
    """A default as people write it; None where it says nothing: null, an empty text, or another
    noun's own.
    """
    bare, marks = unwrapped(wanted)
    if value in (None, "") or isinstance(value, Settings):
        return None
    if isinstance(value, tuple):
        return [str(item) for item in value]
    text = text_of(marks)
    return value if text is None else text.write(value)


def _collect(node: Any, definitions: dict[str, Any], used: dict[str, Any]) -> None:
    """Into `used`, every definition that a node refers to, and what those refer to."""
    if isinstance(node, list):
        for item in node:
            _collect(item, definitions, used)
    elif isinstance(node, dict):
        name = str(node.get("$ref", "")).removeprefix("#/$defs/")
        if name and name not in used:
            used[name] = definitions[name]
            _collect(definitions[name], definitions, used)
        for value in node.values():
            _collect(value, definitions, used)
