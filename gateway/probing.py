"""Asking every server of a configuration what `check --probe` tells of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from backends import discovery
from backends.base import Origin, Replica
from backends.capability import Capability
from backends.errors import BackendError
from backends.kinds.base import probe
from backends.members import Lookup, is_address, looked_up
from backends.transport import Transport
from gateway.diagnosis import misnamed, place, silence
from gateway.fleet import BadFile, tls_context
from gateway.membership import at_addresses, in_file
from gateway.settings import Config, Model, ReplicaSettings
from gateway.watch import connecting

#: How long one server may take for all that is asked of it, in seconds.
PATIENCE = 5.0
_LARGEST = 16 << 20
_CHAT, _EMBEDDINGS, _MESSAGES = "/v1/chat/completions", "/v1/embeddings", "/v1/messages"


@dataclass(slots=True)
class Finding:
    """One server and what is to be said of it. A problem means that it cannot serve its models."""

    server: ReplicaSettings
    models: dict[str, Model] = field(default_factory=dict)
    facts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def line(self) -> str:
        """For people; never with a credential."""
        mark = "problem" if self.problems else "warning" if self.warnings else "OK"
        name = f" ({self.server.server_name})" if self.server.server_name else ""
        said = "; ".join([*self.problems, *self.warnings, *self.facts])
        return f"{mark:<8} {place(f'{self.server.place}{name}', self.models)}: {said}"

    @property
    def kinds(self) -> set[str]:
        return {model.kind for model in self.models.values()} or {Model().kind}


async def probed(
    config: Config, *, lookup: Lookup = looked_up, patience: float = PATIENCE
) -> list[Finding]:
    """What is found of each server, in the order of the configuration.

    Raises ConfigError where a list of servers became of no use since it was checked.
    """
    book = await _resolved(_hosts(config), lookup, patience)
    findings = _findings(config, book)
    transport = Transport(
        connecting(config.timeouts),
        lambda host: (host,) if is_address(host) else book.get(host, ()),
    )
    try:
        found = await asyncio.gather(*(_asked(transport, f, patience) for f in findings))
    finally:
        await transport.close()
    told = [(f, c) for f, c in zip(findings, found, strict=True) if c is not None]
    for finding, capability in told:
        _judge(finding, capability)
    _compare(told)
    return findings


def _hosts(config: Config) -> set[str]:
    entries = [entry for model in config.models.values() for entry in model.replicas]
    hosts = {entry.host for entry in (*entries, *config.backends)}
    for entry in entries:
        if entry.file is not None:
            hosts |= {server.host for server in in_file(entry)}
    return {host for host in hosts if host and not is_address(host)}


async def _resolved(
    hosts: set[str], lookup: Lookup, patience: float
) -> Mapping[str, Sequence[str]]:
    async def one(host: str) -> Sequence[str]:
        try:
            async with asyncio.timeout(patience):
                return list(dict.fromkeys(await lookup(host)))
        except (OSError, UnicodeError):
            return ()

    names = sorted(hosts)
    return dict(zip(names, await asyncio.gather(*map(one, names)), strict=True))


def _findings(config: Config, book: Mapping[str, Sequence[str]]) -> list[Finding]:
    findings: dict[ReplicaSettings, Finding] = {}
    for name, model in config.models.items():
        for entry in model.replicas:
            servers: Sequence[ReplicaSettings] = (entry,)
            if entry.dns is not None:
                servers = at_addresses(entry, book.get(entry.host, ()))
            elif entry.file is not None:
                servers = in_file(entry)
            for server in servers:
                findings.setdefault(server, Finding(server)).models[name] = model
    for backend in config.backends:
        findings.setdefault(backend, Finding(backend))
    return list(findings.values())


async def _asked(transport: Transport, finding: Finding, patience: float) -> Capability | None:
    server = finding.server
    try:
        origin = Origin(server.host, server.port, tls_context(server), server.address)
        replica = Replica(server.url, origin, base=server.base, credential=server.api_key)
        async with asyncio.timeout(patience):
            found = await discovery.capability(transport, replica)
            if "vllm" in finding.kinds:
                finding.warnings += await _metrics(transport, replica)
            return found
    except BadFile as exc:
        finding.problems.append(str(exc))
    except TimeoutError:
        finding.problems.append(f"no answer within {patience:g} s")
    except BackendError as exc:
        finding.problems.append(silence(exc, server, origin))
    return None


async def _metrics(transport: Transport, replica: Replica) -> list[str]:
    request = probe("/metrics", replica)
    try:
        status, body = await transport.fetch(replica, request, limit=_LARGEST, timeout=PATIENCE)
    except BackendError as exc:
        return [f"/metrics cannot be read ({exc.__class__.__name__})"]
    if status != 200:
        return [f"/metrics cannot be read: it answers {status}"]
    return [] if b"vllm:" in body else ["/metrics holds none of vLLM's figures"]


def _judge(finding: Finding, found: Capability) -> None:
    names = [served.name for served in found.models]
    for name, model in finding.models.items():
        if problem := misnamed(name, model.upstream_model or name, names):
            finding.problems.append(problem)
    if not finding.models:
        finding.facts.append(f"serves {', '.join(names) or 'nothing'}")
    if found.version:
        finding.facts.append(f"version {found.version}")
    if "vllm" in finding.kinds:
        finding.warnings += _lacking(finding, found)


def _lacking(finding: Finding, found: Capability) -> list[str]:
    if not found.routes:
        return ["no /openapi.json: which routes and fields it has is not known"]
    lacking = []
    if found.speaks(_CHAT) and not found.speaks(_MESSAGES):
        lacking.append(f"no {_MESSAGES}: Anthropic clients are refused")
    if not (found.speaks(_CHAT) or found.speaks(_EMBEDDINGS)):
        lacking.append(f"neither {_CHAT} nor {_EMBEDDINGS}")
    isolated = any(m.request.isolate_prefix_cache != "off" for m in finding.models.values())
    salted = [path for path in (_CHAT, _EMBEDDINGS) if path in found.routes]
    if isolated and any(found.lacks(path, "cache_salt") for path in salted):
        lacking.append("no cache_salt: its prefix cache is shared by all teams")
    return lacking


def _compare(told: Sequence[tuple[Finding, Capability]]) -> None:
    """Where servers of one model take prompts of different length, each is told with its own."""
    for name, model in {n: m for f, _ in told for n, m in f.models.items()}.items():
        wanted = model.upstream_model or name
        lengths = {
            id(finding): served.max_model_len
            for finding, found in told
            for served in found.models
            if name in finding.models and served.name == wanted and served.max_model_len
        }
        differ = len(set(lengths.values())) > 1
        for finding, _ in told:
            if (length := lengths.get(id(finding))) is None:
                continue
            if differ:
                shortest = min(n for n in lengths.values() if n is not None)
                finding.warnings.append(
                    f"max_model_len of {wanted} is {length}, the shortest of its pool {shortest}"
                )
            else:
                finding.facts.append(f"max_model_len {length}")
