"""What must hold between settings, as a list of the places where it does not.

Types hold already when these run. Each check yields the key at fault and the reason.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from gateway.document import Path, listed, path_text
from gateway.settings import Caps, Config, Model, ReplicaSettings, Settings
from gateway.terms import PRIVILEGED
from gateway.units import is_loopback, size_text

Problem = tuple[Path, str]

# Settings the schema describes and nothing enforces yet. Anything but the default is refused, so
# that no one relies on what is not there; `*` is every entry. A version that enforces one drops it.
NOT_YET: tuple[str, ...] = ("trusted_proxies",)

#: What a model with replicas has and a split has not.
_OF_A_POOL = (
    *("kind", "upstream_model", "policy", "fallback", "limits", "timeouts"),
    *("cached_token_weight", "usage_in_streams", "request"),
)
#: Timeouts of what is there before a model is known, or is shared by all models.
_OF_THE_GATEWAY = ("header", "body", "keep_alive", "connect", "tls", "lame_duck", "drain")
#: A secret that can be guessed lets callers compute the cache salts of others.
SHORTEST_SECRET = 16
_LIMITS = (
    "limits",
    "models.*.limits",
    "teams.*.limits",
    "teams.*.limits_by_model",
    "keys.*.limits",
)


def problems(config: Config) -> Iterator[Problem]:
    """Every place where the configuration contradicts itself or asks for what is not there."""
    for pattern in NOT_YET:
        for path in _given(config, pattern.split("."), ()):
            yield path, "not in this version yet"
    yield from _listening(config)
    yield from _tls(config)
    yield from _sharing(config)
    yield from _names(config)
    for name, model in config.models.items():
        yield from _model(config, name, model)
    yield from _permissions(config)
    yield from _keys(config)
    yield from _caps(config)


def _given(noun: Any, steps: list[str], path: Path) -> Iterator[Path]:
    """The paths that a pattern matches and whose value is not the default."""
    step, rest = steps[0], steps[1:]
    if step == "*":
        entries = noun.items() if isinstance(noun, dict) else enumerate(noun)
        for key, entry in entries:
            yield from _given(entry, rest, (*path, key))
    elif rest:
        yield from _given(getattr(noun, step), rest, (*path, step))
    elif getattr(noun, step) != _default(type(noun), step):
        yield (*path, step)


def _default(noun: type[Settings], name: str) -> Any:
    field = next(field for field in msgspec.structs.fields(noun) if field.name == name)
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()


def _listening(config: Config) -> Iterator[Problem]:
    if not config.listen:
        yield ("listen",), "needs an address"
    for address, times in Counter(config.listen).items():
        if times > 1 and address.port != 0:
            yield ("listen",), f"{address} is there twice"
        if not address.loopback and not config.keys:
            yield ("listen",), f"{address} needs keys: without any, only loopback is listened on"
    admin = config.admin_listen
    if admin is None:
        return
    if admin in config.listen and admin.port != 0:
        yield ("admin_listen",), f"{admin} is the data port; the admin port is another one"
    if not admin.loopback and config.admin_key_sha256 is None:
        yield ("admin_listen",), f"{admin} is not loopback: it needs admin_key_sha256"


def _tls(config: Config) -> Iterator[Problem]:
    files = {"cert_file": config.tls.cert_file, "key_file": config.tls.key_file}
    for name, file in files.items():
        if file is None and any(files.values()):
            yield ("tls",), f"{name} is missing: both files, or neither"
        yield from _file(("tls", name), file)


def _file(path: Path, file: str | None) -> Iterator[Problem]:
    if file is not None and not (os.path.isfile(file) and os.access(file, os.R_OK)):
        yield path, f"no file {file!r} that can be read"


def _sharing(config: Config) -> Iterator[Problem]:
    if config.secret is None:
        if config.redis is not None:
            yield ("redis",), "needs secret, which all gateways on it share"
        if config.workers > 1:
            yield ("workers",), "more than 1 needs secret, which they share"
    elif len(config.secret) < SHORTEST_SECRET:
        yield (
            ("secret",),
            f"wanted at least {SHORTEST_SECRET} characters, such as `openssl rand -hex 32` makes",
        )
    clustered = (config.redis or "").startswith("redis+cluster:")
    if clustered and not re.match(r"[^{]*\{[^}]+\}", config.redis_prefix):
        yield (
            ("redis_prefix",),
            "needs a hash tag such as {fairgate}: else a cluster parts its keys",
        )
    for path in _limited(config):
        if config.workers > 1 and config.redis is None:
            reason = f"{path_text(path)} is set, and they count together there only"
            yield ("workers",), f"more than 1 needs redis: {reason}; without redis: workers: 1"
            break


def _limited(config: Config) -> Iterator[Path]:
    """The places where a limit is set."""
    for pattern in _LIMITS:
        yield from _given(config, pattern.split("."), ())


def _names(config: Config) -> Iterator[Problem]:
    owners: dict[str, str] = {}
    for name, model in config.models.items():
        for index, alias in enumerate(model.aliases):
            path = ("models", name, "aliases", index)
            if alias in config.models:
                yield path, f"{alias!r} is a model's name already"
            elif alias in owners:
                yield path, f"{alias!r} is an alias of {owners[alias]} already"
            owners[alias] = name


def _model(config: Config, name: str, model: Model) -> Iterator[Problem]:
    path = ("models", name)
    if model.split is not None:
        yield from _split(config, model, model.split, path)
    elif not model.replicas:
        yield path, "needs replicas, or a split over other models"
    if model.split is None:
        for timeout in _OF_THE_GATEWAY:
            if getattr(model.timeouts, timeout) != getattr(config.timeouts, timeout):
                told = "no model has one of its own; set it for the whole gateway, under `timeouts`"
                yield (*path, "timeouts", timeout), told
    for index, replica in enumerate(model.replicas):
        place = (*path, "replicas", index)
        if replica.place in [other.place for other in model.replicas[:index]]:
            yield place, f"{replica.place} is in this pool twice"
        yield from of_replica(replica, place)
    for index, target in enumerate(model.fallback):
        place = (*path, "fallback", index)
        if target == name:
            yield place, "a model is no fallback of its own"
        elif target in model.fallback[:index]:
            yield place, f"{target!r} is there twice"
        else:
            yield from _target(config, target, place)


def _split(config: Config, model: Model, sides: Mapping[str, int], path: Path) -> Iterator[Problem]:
    if model.replicas:
        yield (*path, "split"), "a model has replicas or a split, not both"
    if not sides:
        yield (*path, "split"), "needs a model"
    for target in sides:
        yield from _target(config, target, (*path, "split", target))
    unset = {"timeouts": config.timeouts, "request": config.request}
    for setting in _OF_A_POOL:
        default = unset[setting] if setting in unset else _default(Model, setting)
        if getattr(model, setting) != default:
            yield (*path, setting), "a split has none of its own; set it for the models it names"


def _target(config: Config, target: str, place: Path) -> Iterator[Problem]:
    """Why a name cannot stand in a split or a fallback: only a model with replicas can."""
    model = config.models.get(target)
    if model is not None and model.split is not None:
        yield place, f"{target!r} is a split itself; name the models it splits over"
    elif model is None:
        names = [name for name, other in config.models.items() if target in other.aliases]
        known = f"it is an alias of {names[0]}" if names else listed(config.models)
        yield place, f"no model {target!r}; {known}"


def of_replica(replica: ReplicaSettings, path: Path) -> Iterator[Problem]:
    """What speaks against one entry of a pool, or one server of a list."""
    plain = replica.scheme == "http"
    exposed = plain and not is_loopback(replica.host)
    if replica.api_key_env is not None and exposed and not replica.insecure:
        yield (
            (*path, "api_key_env"),
            "would cross the network unencrypted: use https, or set insecure: true beside it",
        )
    if replica.ca_file is not None and plain:
        yield (*path, "ca_file"), "needs an https URL"
    yield from _file((*path, "ca_file"), replica.ca_file)
    yield from _file((*path, "file"), replica.file)


def aliased(models: Mapping[str, Model]) -> dict[str, str]:
    """By alias the model it stands for."""
    return {alias: name for name, model in models.items() for alias in model.aliases}


def _permissions(config: Config) -> Iterator[Problem]:
    """Models named in teams and keys exist; with no models given, they are not known yet."""
    if not config.models:
        return
    aliases = [alias for model in config.models.values() for alias in model.aliases]
    known = [*config.models, *aliases]
    named: list[tuple[Path, str]] = []
    for name, team in config.teams.items():
        path: Path = ("teams", name)
        named += [((*path, "models", i), model) for i, model in enumerate(team.models or ())]
        named += [((*path, "limits_by_model", model), model) for model in team.limits_by_model]
    for index, key in enumerate(config.keys):
        path = ("keys", index)
        named += [((*path, "models", i), model) for i, model in enumerate(key.models or ())]
    for place, model in named:
        if model not in known:
            yield place, f"no model {model!r}; {listed(known)}"
    split = {name: model for name, model in config.models.items() if model.split is not None}
    splits = {*split, *(alias for model in split.values() for alias in model.aliases)}
    names = aliased(config.models)
    for name, team in config.teams.items():
        seen: dict[str, str] = {}
        for limited in team.limits_by_model:
            place = ("teams", name, "limits_by_model", limited)
            if limited in splits:
                yield place, f"{limited!r} is a split; limit the models it names"
            first = seen.setdefault(names.get(limited, limited), limited)
            if first != limited:  # one of them would be lost without a word
                yield place, f"is the same model as {first!r}: write its limits under one name"


def _keys(config: Config) -> Iterator[Problem]:
    names: dict[str, int] = {}
    digests: dict[str, int] = {}
    for index, key in enumerate(config.keys):
        if key.team not in config.teams:
            told = f"no team {key.team!r}; {listed(config.teams)}; a new one goes under `teams:`"
            yield ("keys", index, "team"), told
        if key.name in names:
            yield ("keys", index, "name"), f"{key.name!r} is keys[{names[key.name]}] already"
        if key.sha256 in digests:
            yield ("keys", index, "sha256"), f"is that of keys[{digests[key.sha256]}] too"
        names.setdefault(key.name, index)
        digests.setdefault(key.sha256, index)


def _caps(config: Config) -> Iterator[Problem]:
    """Caps hold for the gateway, for each model, and for each team over each of those."""
    every: list[tuple[Path, Caps]] = [(("request",), config.request)]
    every += [(("models", name, "request"), model.request) for name, model in config.models.items()]
    every += [
        (("teams", name, "request"), caps.merge(team.request))
        for name, team in config.teams.items()
        if team.request.given
        for _, caps in list(every)
    ]
    bodies = config.bounds.bodies
    for path, caps in every:
        if caps.body > bodies:
            message = f"{size_text(caps.body)} is more than bounds.bodies, {size_text(bodies)}"
            yield (*path, "body"), message
        for field in sorted(caps.privileged.keys() - PRIVILEGED):
            told = f"no privileged field {field!r}; {listed(sorted(PRIVILEGED))}"
            yield (*path, "privileged", field), told
        if caps.media.urls == "allow" and not caps.media.hosts:
            yield (*path, "media"), "urls: allow needs hosts, whose URLs the engine may fetch"
