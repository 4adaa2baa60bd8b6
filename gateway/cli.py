"""The command `fairgate`: serve, up, check, keys, schema, engine; and the operator's own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import sys
import tempfile

import click
import orjson
from rich.console import Console

from backends import install, launch
from gateway import config as configuration
from gateway import probing, supervisor, worker
from gateway import up as starting
from gateway.checks import SHORTEST_SECRET
from gateway.limits.redis import BadUrl, checked, clients
from gateway.listeners import CannotStart
from gateway.logs import set_up_diagnostics
from gateway.operator import drain, limits, status
from gateway.reload import Source
from gateway.settings import Config, Key
from gateway.units import label

_REPLICA_PROBLEM, _USAGE, _CANNOT_START = 1, 2, 3
#: Where the number of words after `--` is kept while a command line is read.
_AFTER = "fairgate.after"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fairgate")
def main() -> None:
    """One address for the language models on your own GPUs.

    fairgate speaks the OpenAI and the Anthropic API, streams token by token, knows who is
    calling, and stands in front of vLLM or any OpenAI-compatible server.
    """


@main.command()
@click.option(
    "--config",
    "file",
    metavar="FILE",
    help="Configuration in YAML; - reads it from standard input.",
)
@click.option(
    "--backend",
    "backends",
    metavar="URL",
    multiple=True,
    help="A model server to ask for its models; several may serve the same one. "
    "Default without a file: http://127.0.0.1:8000.",
)
@click.option(
    "--listen",
    metavar="ADDR",
    multiple=True,
    help="host:port, [::]:port or unix:/path; may be given more than once.",
)
@click.option(
    "--admin-listen", "admin", metavar="ADDR", help="Likewise for the admin port, one only."
)
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Serving processes.")
@click.option(
    "--log-level",
    default="info",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="How much to say on standard error.",
)
def serve(
    file: str | None,
    backends: tuple[str, ...],
    listen: tuple[str, ...],
    admin: str | None,
    workers: int | None,
    log_level: str,
) -> None:
    """Run the gateway.

    Without --config it asks each --backend which models it serves, listens on loopback, and
    makes a key for this run. The log of requests goes to standard output, a JSON line each.
    """
    set_up_diagnostics(log_level)
    settings: dict[str, object] = {}
    if listen:
        settings["listen"] = list(listen)
    if admin is not None:
        settings["admin_listen"] = admin
    if workers is not None:
        settings["workers"] = workers

    def over(config: Config) -> Config:
        if file is None:
            return configuration.discovered(backends, **settings)
        if backends or settings:
            config = configuration.override(config, backends=backends, **settings)
        if not config.models and not config.backends:
            config = configuration.override(config, backends=("http://127.0.0.1:8000",))
        return config

    made, key = new_key("this-run", "default")
    source = Source(file, os.environ, over, key)
    try:
        config = source.read()
    except configuration.ConfigError as exc:
        _fail(_USAGE, str(exc))
    serve_with(config, source, made if key in config.keys else None)


def serve_with(config: Config, source: Source, made: str | None) -> None:
    """Serve until told to end; prints the address, and the key `made` for this run, if one was."""

    def started(addresses: list[str]) -> None:
        scheme = "https" if config.tls.cert_file else "http"
        for address in addresses:
            shown = address if address.startswith("unix:") else f"{scheme}://{address}"
            click.echo(f"fairgate listens on {shown}", err=True)
        if made is not None:
            click.echo(f"No keys are configured; the key for this run is {made}", err=True)

    run = supervisor.run if config.workers > 1 else worker.run
    try:
        run(config, config.secret or kept_secret(), started, source)
    except CannotStart as exc:
        _fail(_CANNOT_START, str(exc))


class _BeforeAnEngine(click.Command):
    """A command whose words after `--` are an engine's; click itself tells them from no others."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        context.meta[_AFTER] = len(args) - args.index("--") - 1 if "--" in args else 0
        return super().parse_args(context, args)


def _engine_arguments(
    context: click.Context, argument: click.Parameter, given: tuple[str, ...]
) -> tuple[str, ...]:
    """Raises UsageError for a word before `--`: most likely a model's name without its option,
    which vLLM would pass over.
    """
    stray = given[: len(given) - context.meta[_AFTER]]
    if stray:
        raise click.UsageError(
            f"{stray[0]!r} stands alone: name a model with --model {stray[0]}; "
            "what is for vLLM stands after --"
        )
    return given


def _model(context: click.Context, option: click.Parameter, given: str | None) -> str | None:
    """Raises BadParameter for a path that is not there: vLLM would look for it on the hub."""
    if given and given.startswith(("/", "./", "../", "~")) and not os.path.exists(given):
        raise click.BadParameter(f"no such folder: {given}")
    return given


@main.command(cls=_BeforeAnEngine)
@click.option(
    "--model",
    metavar="ID_OR_FOLDER",
    callback=_model,
    help="For chat: a Hugging Face id, a folder, or none.",
)
@click.option(
    "--embedding-model",
    metavar="ID_OR_FOLDER",
    callback=_model,
    help="For embeddings; likewise.",
)
@click.option("--listen", metavar="ADDR", multiple=True, help="Default: 127.0.0.1:8080.")
@click.argument(
    "engine_arguments",
    metavar="[-- ENGINE ARGS]",
    nargs=-1,
    type=click.UNPROCESSED,
    callback=_engine_arguments,
)
def up(
    model: str | None,
    embedding_model: str | None,
    listen: tuple[str, ...],
    engine_arguments: tuple[str, ...],
) -> None:
    """Start vLLM itself, wait until it answers, and serve in front of it.

    The engine is the Python that FAIRGATE_ENGINE names, else the environment that `fairgate
    engine install` prepared, else that of `vllm` on PATH. Without --model: a small model where
    a hub answers, else a made-up one with random weights. One Ctrl-C ends all of it.
    """
    if model == embedding_model == "none":
        raise click.UsageError(
            "--model none and --embedding-model none leave nothing to serve; leave out one of them"
        )
    set_up_diagnostics("warning")
    console = Console(stderr=True)
    try:
        python = install.found(os.environ) or install.prepare(
            install.home(os.environ), console.print
        )
        engines = launch.choose(
            model,
            embedding_model,
            python,
            console.print,
            environ=os.environ,
            extra=engine_arguments,
        )
        log = launch.state_folder(os.environ) / "logs" / "requests.jsonl"
        key = new_key("this-run", "default")
        starting.run(engines, listen, key, kept_secret(), log, console)
    except configuration.ConfigError as exc:
        _fail(_USAGE, str(exc))
    except (install.InstallFailed, launch.EngineDied, CannotStart) as exc:
        _fail(_CANNOT_START, str(exc))
    except KeyboardInterrupt:
        console.print("fairgate: ended before it was ready")


@main.group()
def engine() -> None:
    """The environment vLLM runs in."""


@engine.command("install")
def engine_install() -> None:
    """Install vLLM into an environment of its own; does nothing when it is there.

    With an NVIDIA GPU the ordinary vLLM, else its CPU build. FAIRGATE_ENGINE_HOME says where.
    """
    console = Console(stderr=True)
    try:
        found = install.found(os.environ)
        if found is None:
            install.prepare(install.home(os.environ), console.print)
    except install.InstallFailed as exc:
        _fail(_CANNOT_START, str(exc))


@main.command()
@click.option("--config", "file", metavar="FILE", required=True, help="- reads standard input.")
@click.option("--probe", is_flag=True, help="Also ask every replica, for 5 s at most.")
def check(file: str, probe: bool) -> None:
    """Validate a configuration: exit status 0, or 2 and the place of the first fault.

    With --probe every replica is asked too, and has a line: is it reached, trusted and willing,
    which models it serves, what it lacks. A warning is worth a look; a problem keeps the replica
    from serving, and the exit status is 1. Nothing is generated.
    """
    name = "standard input" if file == "-" else file
    try:
        config = configuration.read(file, os.environ)
        if config.redis is not None:
            checked(clients, config.redis)  # connects to nothing
        asked = config
        if not config.models:
            asked = configuration.override(config, backends=("http://127.0.0.1:8000",))
        findings = asyncio.run(probing.probed(asked)) if probe else []
    except configuration.ConfigError as exc:
        _fail(_USAGE, str(exc))
    except BadUrl as exc:
        _fail(_USAGE, f"{name}: redis: {exc}")
    replicas = sum(len(model.replicas) for model in config.models.values())
    click.echo(
        f"{name}: good. {len(config.models)} models on {replicas} replicas, "
        f"{len(config.teams)} teams, {len(config.keys)} keys"
    )
    for finding in findings:
        click.echo(finding.line())
    if any(finding.problems for finding in findings):
        sys.exit(_REPLICA_PROBLEM)


@main.group()
def keys() -> None:
    """Make keys."""


def _label(context: click.Context, option: click.Parameter, given: str) -> str:
    try:
        return label(given)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from None


@keys.command("new")
@click.option("--name", required=True, callback=_label, help="Who or what uses it, for the log.")
@click.option("--team", required=True, callback=_label, help="The team whose limits it shares.")
def keys_new(name: str, team: str) -> None:
    """Make a key, print it once, and the lines for the configuration file.

    The file holds only the key's SHA-256: the key itself cannot be shown again.
    """
    text, key = new_key(name, team)
    click.echo(f"{text}\n", nl=False)
    click.echo("Shown this once. Under `keys:` in the configuration put", err=True)
    click.echo(f"  - {{name: {_yaml(name)}, team: {_yaml(team)}, sha256: {key.sha256}}}")


for command in (status.status, limits.limits, drain.drain, drain.undrain):
    main.add_command(command)


@main.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    click.echo(orjson.dumps(configuration.schema(), option=orjson.OPT_INDENT_2).decode())


def new_key(name: str, team: str) -> tuple[str, Key]:
    """A key's text, 256 random bits of it, and what the configuration keeps."""
    text = f"fg-{secrets.token_urlsafe(32)}"
    return text, Key(name=name, team=team, sha256=hashlib.sha256(text.encode()).hexdigest())


def kept_secret() -> str:
    """The secret of this user's gateways, kept in a file that only they may read."""
    state = launch.state_folder(os.environ)
    path = state / "secret"
    made = secrets.token_urlsafe(32)
    try:
        state.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=state) as draft:  # made with 0600
            draft.write(made)
            draft.flush()
            with contextlib.suppress(FileExistsError):
                os.link(draft.name, path)  # whole or not at all, and never over another's
        kept = path.read_text().strip()
        if len(kept) >= SHORTEST_SECRET:
            return kept
        why = "what is there is too short to be a secret; remove it"  # after a power cut, nothing
    except OSError as exc:
        why = str(exc.strerror)
    logging.getLogger("fairgate").warning(
        "%s cannot be kept (%s): prefix caches start cold at each start", path, why
    )
    return made


def _yaml(text: str) -> str:
    """A name as the configuration reads it back."""
    plain = text.replace("-", "").replace("_", "").isalnum() and text.lower() != "null"
    return text if plain else orjson.dumps(text.replace("$", "$$")).decode()


def _fail(status: int, message: str) -> None:
    click.echo(f"fairgate: {message}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
