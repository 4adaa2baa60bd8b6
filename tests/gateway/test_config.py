"""Reading: what a text becomes, and that every refusal names its key and line."""

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway import checks
from gateway.config import ConfigError, discovered, load, override, read, schema
from gateway.document import Document
from gateway.settings import Config, Key, Model, ReplicaSettings, Settings, Team
from gateway.units import Address

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "deploy" / "gateway.example.yaml"
ZEROS = "0" * 64
ENVIRON = {"NAME": "llama", "TOKEN": "sk-secret", "BROKEN": "sk-secret\n", "EMPTY": ""}

TEAMS = "teams: {search: {}, ads: {}}\n"
KEYS = f'keys: [{{name: ann, team: search, sha256: "{ZEROS}"}}]\n'
MODELS = "models:\n  llama: {replicas: [http://gpu1:8000], aliases: [gpt-4o]}\n"


def given(text: str) -> Config:
    return load("fairgate.yaml", text, ENVIRON)


# (the text, how its message begins)
BAD: list[tuple[str, str]] = [
    # the form
    ("a: [", "1: "),
    ("\ta: 1", "1: a tab: indent with spaces"),
    ("listen: a\nworkers: 1\nlisten: b", "3: listen: is here twice; first on line 1"),
    ("models:\n  a: &x {}\n  b: *x", "2: anchors and aliases are not read"),
    ("listen: *x", "1: anchors and aliases are not read"),
    ("workers: !!int 1", "1: tags are not read"),
    ("---\na: 1\n---\nb: 2", "3: a second document begins here: wanted one, no ---"),
    ("a: " + "[" * 40, "1: nested too deep"),
    ("? [a]\n: b", "1: a key must be text"),
    ("workers: 1\nsecret: \x01", "2: a character that YAML does not allow"),
    ('secret: "\\UFFFFFFFF"', " not YAML: a number out of range"),
    ('secret: "\\ud800"', "1: secret: not text"),
    ("- a", "1: wanted a mapping; given a list"),
    ("text", "1: wanted a mapping; given 'text'"),
    # unknown and missing keys
    ("workers: 1\nlistn: a", "2: listn: unknown key; did you mean listen? known: listen, admin"),
    ("tls: {zzz: 1}", "1: tls.zzz: unknown key; known: cert_file, key_file"),
    ("backends: []", "1: backends: unknown key"),
    (
        "models:\n  a.b:\n    replicas:\n    - {url: http://h,\n       wight: 2}",
        '5: models["a.b"].replicas[0].wight: unknown key; did you mean weight?',
    ),
    ("models: {a: {replicas: [{url: http://h, api_key: sk}]}}", "1: models.a.replicas[0].api_key:"),
    ("models: {a: {replicas: [{weight: 2}]}}", "1: models.a.replicas[0]: wanted one of url"),
    ("keys:\n- {name: a,\n   team: b}", "2: keys[0]: sha256 is missing"),
    ("teams: {a: {request: {m: 1}}}", "1: teams.a.request.m: unknown key"),
    # the environment
    ("workers: 1\nsecret: ${NONE}", "2: secret: the environment has no NONE"),
    ("secret: a$b", "1: secret: a dollar is written $$"),
    ("secret: ${", "1: secret: a dollar is written $$"),
    ("workers: ${TOKEN}", "1: workers: wanted a whole number of at least 1 and at most 1024; given "
     "the value of ${TOKEN}"),
    ("keys:\n- {name: a, team: '${TOKEN}', sha256: " + ZEROS + "}",
     "2: keys[0].team: no team '${TOKEN}'; known: none"),
    ("listen: '[1:::2]:80'", "1: listen: wanted an IPv6 address in the brackets, such as [::]:80"),
    ("listen: ${TOKEN}", "1: listen: wanted host:port, [::]:port or unix:/path"),
    # wrong types
    ("workers: many", "1: workers: wanted a whole number of at least 1 and at most 1024; given"),
    ("workers: 0", "1: workers: wanted a whole number of at least 1 and at most 1024; given '0'"),
    ("workers:", "1: workers: wanted a whole number of at least 1 and at most 1024; given nothing"),
    ("workers: [1]", "1: workers: wanted a whole number of at least 1 and at most 1024; given"),
    ("secret: ''", "1: secret: wanted text that is not empty; given ''"),
    ("request:\n  beam_search: yes", "2: request.beam_search: wanted true or false; given 'yes'"),
    ("request: 5", "1: request: wanted a mapping; given '5'"),
    ("request: {n: 0}", "1: request.n: wanted a whole number of at least 1; given '0'"),
    ("request: {logprobs: -1}", "1: request.logprobs: wanted a whole number of at least 0; given"),
    ("request: {media: null}", "1: request.media: wanted a mapping; given nothing"),
    ("request: {unknown_fields: drp}", "1: request.unknown_fields: wanted one of drop, refuse; g"),
    ("request: {privileged: {priority: deny}}", "1: request.privileged.priority: wanted allow; g"),
    ("request: {n: 2,\n privileged: {prioritee: allow}}",
     "2: request.privileged.prioritee: no privileged field 'prioritee'; known: cache_salt, chat"),
    ("secret: fifteen-letters", "1: secret: wanted at least 16 characters, such as `openssl rand"),
    ("request: {privileged: [priority]}", "1: request.privileged: wanted a mapping; given a list"),
    ("models: {a: {policy: random}}", "1: models.a.policy: wanted one of least_busy, round_robin"),
    ("models: {a: {replicas: http://h}}", "1: models.a.replicas: wanted a list; given 'http://h'"),
    ("models: {a: {replicas: [[]]}}", "1: models.a.replicas[0]: wanted a URL or a mapping with u"),
    ("models: {a: {cached_token_weight: nan}}", "1: models.a.cached_token_weight: wanted a number"),
    ("models: {a: {cached_token_weight: 2}}", "1: models.a.cached_token_weight: wanted a number of "
     "at least 0 and at most 1; given '2'"),
    ("models: {a: {timeouts: {stall: x}}}", "1: models.a.timeouts.stall: wanted a duration such "),
    ("models: {a: {request: {body: null}}}", "1: models.a.request.body: wanted a size such as 32M"),
    ("models: {a b: {}}", '1: models["a b"]: wanted a name of 1 to 128 visible characters'),
    (f"models: {{{'a' * 129}: {{}}}}", "1: models.aaaaa"),
    ("keys: {a: b}", "1: keys: wanted a list; given a mapping"),
    ("keys:\n- name: ann\n  team: x\n  sha256: sk-mine", "4: keys[0].sha256: wanted the 64 hex d"),
    (f"keys: [{{name: a, team: b, sha256: {ZEROS}, expires: tomorrow}}]",
     "1: keys[0].expires: wanted a date such as 2027-01-31; given 'tomorrow'"),
    ("teams:\n  search:\n    models:\n", "3: teams.search.models: is empty: leave the key out"),
    # units, addresses, limits
    ("timeouts:\n  stall: 30", "2: timeouts.stall: a duration needs its unit: write 30s, 30ms or"),
    ("timeouts: {stall: 0}", "1: timeouts.stall: wanted a duration such as 10s above 0; given '0'"),
    ("timeouts: {stall: 40d}", "1: timeouts.stall: wanted a duration of at most 31d"),
    ("request: {body: 32}", "1: request.body: a size needs its unit: write 32B, 32KiB or 32MiB"),
    ("request: {body: 32MB}", "1: request.body: wanted a size such as 512B, 64KiB, 32MiB or 1GiB"),
    ("listen: 8080", "1: listen: wanted host:port, [::]:port or unix:/path; given '8080'"),
    ("listen: {host: a}", "1: listen: wanted an address such as 127.0.0.1:8080; given a mapping"),
    ("listen:\n- 127.0.0.1:1\n- 127.0.0.1:99999", "3: listen[1]: wanted a port from 0 to 65535"),
    (f"listen: unix:/{'a' * 107}", "1: listen: a Unix socket's path has at most 107 bytes"),
    ("trusted_proxies: [10.0.0.1/8]", "1: trusted_proxies[0]: wanted an address or a network"),
    ("cors: {origins: [app]}", "1: cors.origins[0]: wanted an origin such as"),
    ("redis: http://h", "1: redis: wanted redis://, rediss://, redis+sentinel://"),
    ("redis: redis+sentinel://sk-1@h", "1: redis: wanted the service's name after the hosts"),
    ("models: {a: {replicas: [ftp://h]}}", "1: models.a.replicas[0]: wanted a URL such as"),
    ("models: {a: {replicas: [{url: ftp://h}]}}", "1: models.a.replicas[0]: wanted a URL such as"),
    ("models: {a: {replicas: [{dns: ftp://h}]}}", "1: models.a.replicas[0]: wanted a URL such as"),
    ("models: {a: {replicas: [{dns: http://10.0.0.7}]}}", "1: models.a.replicas[0]: dns wants a n"),
    ("models: {a: {replicas: [{dns: http://h, url: http://h}]}}",
     "1: models.a.replicas[0]: wanted one of url, dns and file; given url and dns"),
    ("models: {a: {replicas: [{file: /none}]}}", "1: models.a.replicas[0].file: no file '/none'"),
    ("models: {a: {replicas: [{dns: http://h}, {dns: http://H/v1}]}}",
     "1: models.a.replicas[1]: http://h is in this pool twice"),
    ("models: {a: {replicas: [http://u:p@h]}}", "1: models.a.replicas[0]: no credentials in a URL"),
    ("models: {a: {replicas: [{url: http://h, api_key_env: sk-1}]}}",
     "1: models.a.replicas[0].api_key_env: wanted the name of an environment variable"),
    ("limits: {requests_per_minute: 0}", "1: limits.requests_per_minute: wanted a whole number"),
    ("limits: {requests_per_minute: []}", "1: limits.requests_per_minute: wanted a whole number o"),
    ("limits: {requests_per_year: 1}", "1: limits.requests_per_year: unknown key; did you mean"),
    ("limits: {tokens_per_day: {limit: 5, burst: 1}}", "1: limits: tokens_per_day takes no burst"),
    # between settings
    ("workers: 1\nlisten: 0.0.0.0:80", "2: listen: 0.0.0.0:80 needs keys"),
    ("listen: []", "1: listen: needs an address"),
    ("listen: [localhost:80, localhost:80]", "1: listen: localhost:80 is there twice"),
    ("admin_listen: 127.0.0.1:8080", "1: admin_listen: 127.0.0.1:8080 is the data port"),
    ("admin_listen: 0.0.0.0:9464", "1: admin_listen: 0.0.0.0:9464 is not loopback: it needs admin"),
    ("tls: {cert_file: /etc/passwd}", "1: tls: key_file is missing: both files, or neither"),
    ("tls: {cert_file: /none, key_file: /none}", "1: tls.cert_file: no file '/none' that can be"),
    ("models: {a: {}}", "1: models.a: needs replicas"),
    (MODELS + "  b: {replicas: [http://h], aliases: [llama]}", "3: models.b.aliases[0]: 'llama'"),
    (MODELS + "  b: {replicas: [http://h], aliases: [gpt-4o]}",
     "3: models.b.aliases[0]: 'gpt-4o' is an alias of llama already"),
    ("models: {a: {replicas: [http://h, http://H:80/v1/]}}",
     "1: models.a.replicas[1]: http://h is in this pool twice"),
    ("models: {a: {replicas: [{url: http://h, api_key_env: TOKEN}]}}",
     "1: models.a.replicas[0].api_key_env: would cross the network unencrypted"),
    ("models: {a: {replicas: [{url: http://h, ca_file: /etc/passwd}]}}",
     "1: models.a.replicas[0].ca_file: needs an https URL"),
    ("models: {a: {replicas: [{url: https://h, ca_file: /none}]}}",
     "1: models.a.replicas[0].ca_file: no file '/none'"),
    ("models: {a: {replicas: [{url: https://h, api_key_env: NONE}]}}",
     "1: models.a.replicas[0].api_key_env: the environment has no NONE"),
    ("models: {a: {replicas: [{url: https://h, api_key_env: EMPTY}]}}",
     "1: models.a.replicas[0].api_key_env: the environment has no EMPTY, or it is empty"),
    ("models: {a: {replicas: [{url: https://h, api_key_env: BROKEN}]}}",
     "1: models.a.replicas[0].api_key_env: BROKEN holds more than visible ASCII"),
    (MODELS + "teams:\n  s:\n    models: [lama]", "5: teams.s.models[0]: no model 'lama'; known: "
     "llama, gpt-4o"),
    (TEAMS + "keys:\n- name: a\n  team: serach\n  sha256: " + ZEROS,
     "4: keys[0].team: no team 'serach'; known: search, ads; a new one goes under `teams:`"),
    (MODELS + TEAMS + f"keys:\n- {{name: a, team: ads, sha256: {ZEROS}, models: [b]}}",
     "5: keys[0].models[0]: no model 'b'; known: llama, gpt-4o"),
    (TEAMS + f"keys:\n- {{name: a, team: ads, sha256: {ZEROS}}}\n"
     f"- {{name: a, team: ads, sha256: {'1' * 64}}}", "4: keys[1].name: 'a' is keys[0] already"),
    (TEAMS + f"keys:\n- {{name: a, team: ads, sha256: {'a' * 64}}}\n"
     f"- {{name: b, team: ads, sha256: {'A' * 64}}}", "4: keys[1].sha256: is that of keys[0] too"),
    ("models:\n  a:\n    replicas: [http://h]\n    fallback: [b]",
     "4: models.a.fallback[0]: no model 'b'; known: a"),
    ("models:\n  a:\n    split: {b: 1}", "3: models.a.split.b: no model 'b'; known: a"),
    (MODELS + "  chat:\n    split: {llama: 1}\n    timeouts: {stall: 1s}",
     "5: models.chat.timeouts: a split has none of its own; set it for the models it names"),
    (MODELS + "  chat: {split: {llama: 1}, aliases: [c]}\n"
     "teams: {t: {limits_by_model: {c: {concurrency: 1}}}}",
     "4: teams.t.limits_by_model.c: 'c' is a split; limit the models it names"),
    ("request: {body: 1GiB}", "1: request.body: 1GiB is more than bounds.bodies, 256MiB"),
    ("teams: {a: {request: {media: {urls: allow}}}}", "1: teams.a.request.media: urls: allow"),
]  # fmt: skip

LATER: list[tuple[str, str]] = [
    ("trusted_proxies: [10.0.0.1]", "1: trusted_proxies"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "begins"), BAD, ids=[begins for _, begins in BAD])
def test_a_bad_configuration_is_refused_with_its_line_and_key(text: str, begins: str) -> None:
    with pytest.raises(ConfigError) as caught:
        given(text)
    assert str(caught.value).startswith(f"fairgate.yaml:{begins}")
    assert "sk-" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "place"), LATER, ids=[place for _, place in LATER])
def test_what_nothing_enforces_yet_is_refused(text: str, place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        given(text)
    assert str(caught.value) == f"fairgate.yaml:{place}: not in this version yet"


def test_every_setting_not_enforced_yet_has_its_refusal_tested() -> None:
    assert len(LATER) == len(checks.NOT_YET)


def test_an_empty_text_is_every_default() -> None:
    assert given("") == given("{}") == given("# nothing") == Config()


def test_a_whole_configuration_is_read_as_it_is_written() -> None:
    config = given(
        MODELS
        + """\
  ${NAME}:
    kind: openai
    replicas: [{url: "https://h:8443/api/v1/", weight: 2, concurrency: 64, api_key_env: TOKEN}]
    usage_in_streams: off
    timeouts: {stall: 250ms}
    request: {max_tokens: {cap: 100}, privileged: {priority: allow}}
teams: {search: {models: [gpt-4o, llama], request: {n: 2, media: {parts: 1}}}}
keys:
- {name: ann, team: search, models: [gpt-4o], expires: 2027-01-01,
   sha256: 1234567890123456789012345678901234567890123456789012345678901234}
listen: ["[::]:8080", unix:/run/f.sock]
admin_listen: ~
secret: a$$b-${NAME}-"null"
timeouts: {connect: 2s, drain: 0}
request: {n: 4, max_tokens: {over: refuse}}
"""
    )
    other = config.models["${NAME}"]
    assert other.replicas == (
        ReplicaSettings(
            url="https://h:8443/api/v1",
            weight=2,
            concurrency=64,
            api_key_env="TOKEN",
            api_key="sk-secret",
        ),
    )
    assert other.usage_in_streams == "off"
    assert (other.timeouts.stall, other.timeouts.connect) == (0.25, 2.0)
    assert config.models["llama"].timeouts == config.timeouts
    assert (other.request.max_tokens.cap, other.request.max_tokens.over) == (100, "refuse")
    assert config.models["llama"].request == config.request
    team = config.teams["search"]
    assert team.models == ("llama",)
    merged = other.request.merge(team.request)
    assert (merged.n, merged.media.parts, merged.max_tokens.cap) == (2, 1, 100)
    key = config.keys[0]
    assert key.sha256 == "1234567890" * 6 + "1234"
    assert (key.models, key.expires) == (("llama",), datetime(2027, 1, 1, tzinfo=UTC))
    assert config.listen == (Address(host="::", port=8080), Address(path="/run/f.sock"))
    assert config.admin_listen is None
    assert config.secret == 'a$b-llama-"null"'
    assert "sk-secret" not in repr(config)


def test_an_empty_value_from_the_environment_or_in_quotes_is_text_not_null() -> None:
    model = "models: {{a: {{replicas: [http://h], upstream_model: {}}}}}"
    for text, name in (('"null"', "null"), ("'${X}'", "null"), ("null", None)):
        config = load("f", model.format(text), {"X": "null"})
        assert config.models["a"].upstream_model == name


def test_a_single_address_may_stand_without_a_list() -> None:
    assert given("listen: localhost:1").listen == (Address(host="localhost", port=1),)


def test_off_loopback_is_served_with_keys() -> None:
    assert not given(TEAMS + KEYS + "listen: 0.0.0.0:80").listen[0].loopback


def test_a_credential_crosses_plain_http_on_loopback_or_where_told() -> None:
    for rest in ("http://localhost:1", "http://h, insecure: true"):
        config = given(f"models: {{a: {{replicas: [{{api_key_env: TOKEN, url: {rest}}}]}}}}")
        assert config.models["a"].replicas[0].api_key == "sk-secret"


def test_without_models_the_names_in_keys_are_not_known_yet() -> None:
    assert given("teams: {a: {models: [any]}}").teams["a"].models == ("any",)


def test_a_file_and_standard_input_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "fairgate.yaml"
    file.write_text("\ufeffredis_prefix: é", encoding="utf-8")
    assert read(str(file), {}).redis_prefix == "é"
    monkeypatch.setattr("sys.stdin", io.StringIO("redis_prefix: a"))
    assert read("-", {}).redis_prefix == "a"
    monkeypatch.setattr("sys.stdin", io.StringIO("a: 1"))
    with pytest.raises(ConfigError, match="^standard input:1: a: unknown key"):
        read("-", {})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.yaml: No such file"):
        read(str(tmp_path / "none.yaml"), {})
    file = tmp_path / "latin.yaml"
    file.write_bytes(b"secret: \xe9")
    with pytest.raises(ConfigError, match="latin.yaml: not a text in UTF-8"):
        read(str(file), {})


def test_without_a_file_the_models_come_from_the_backends() -> None:
    config = discovered(["http://a:8000", "http://b:8000/v1"], listen="localhost:1")
    assert [backend.url for backend in config.backends] == ["http://a:8000", "http://b:8000"]
    assert config.listen == (Address(host="localhost", port=1),)
    assert discovered([]).backends == (ReplicaSettings(url="http://127.0.0.1:8000"),)


def test_the_command_line_is_checked_like_the_file() -> None:
    config = given(TEAMS + KEYS)
    address = Address(host="0.0.0.0", port=1)
    assert override(config, listen=[address]).listen == (address,)
    assert override(config).backends == ()
    for settings, message in (
        ({"listen": "0.0.0.0:1"}, "listen: 0.0.0.0:1 needs keys"),
        ({"listen": "1"}, "listen: wanted host:port"),
        ({"workers": 2}, "workers: more than 1 needs secret"),
    ):
        with pytest.raises(ConfigError, match=f"^{message}"):
            discovered(["http://a"], **settings)
    with pytest.raises(ConfigError, match="^backend: wanted a URL"):
        discovered(["a"])


def test_the_defaults_in_the_example_are_those_of_the_code() -> None:
    config = load("example", EXAMPLE.read_text(), {})
    assert msgspec.structs.replace(config, models={}, teams={}, keys=()) == Config()
    plain, whole = config.models["llama"].replicas
    assert plain == ReplicaSettings(url="http://gpu1:8000")
    assert whole == ReplicaSettings(url="https://gpu2:8443")
    assert config.models == {"llama": Model(replicas=(plain, whole))}
    assert config.teams == {"search": Team(models=("llama",))}
    assert config.keys == (Key(name="ann", team="search", sha256=ZEROS, models=("llama",)),)


def _missing(noun: Any, written: Any, path: str) -> list[str]:
    """The settings of a noun and the nouns in it that a document does not write."""
    missing = []
    for field in msgspec.structs.fields(noun):
        if field.name in noun.internal:
            continue
        if field.name not in written:
            missing.append(f"{path}.{field.name}")
        default = field.default
        # Written out once, for the gateway; `{}` where it only overrides.
        if isinstance(default, Settings) and written.get(field.name):
            missing += _missing(type(default), written[field.name], f"{path}.{field.name}")
    return missing


def test_the_example_writes_every_setting() -> None:
    document: Any = Document("example", EXAMPLE.read_text(), {}).value
    missing = _missing(Config, document, "")
    missing += _missing(Model, document["models"]["llama"], "models")
    missing += _missing(ReplicaSettings, document["models"]["llama"]["replicas"][1], "replicas")
    missing += _missing(Team, document["teams"]["search"], "teams")
    missing += _missing(Key, document["keys"][0], "keys")
    assert not missing


def test_the_guide_names_every_setting() -> None:
    guide = (ROOT / "docs" / "configuration.md").read_text()
    for noun in Settings.__subclasses__():
        for name in set(noun.__struct_fields__) - noun.internal:
            assert name in guide or name.partition("_")[2] in guide, f"{noun.__name__}.{name}"


def test_a_list_of_servers_is_read_with_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "llama.replicas"
    path.write_text("https://gpu1:8443\n")
    text = f"models: {{a: {{replicas: [{{file: {path}, api_key_env: TOKEN}}]}}}}"
    (entry,) = given(text).models["a"].replicas
    assert (entry.file, entry.api_key) == (str(path), "sk-secret")
    path.write_text("https://gpu1:8443\nhttp://gpu2:8000\n")
    with pytest.raises(ConfigError) as caught:
        given(text)
    place = "fairgate.yaml:1: models.a.replicas[0].file"
    assert str(caught.value).startswith(f"{place}: {path}:2: would cross the network unencrypted")


def test_the_schema_describes_the_form_that_people_write() -> None:
    whole = schema()
    text = json.dumps(whole)
    definitions = whole["$defs"]
    assert whole["additionalProperties"] is False
    assert "backends" not in whole["properties"]
    replica = definitions["ReplicaSettings"]["anyOf"][1]
    assert not {"api_key", "server_name"} & set(replica["properties"])
    assert replica["oneOf"] == [{"required": [name]} for name in ("url", "dns", "file")]
    assert not replica.get("required")
    assert "default" not in replica["properties"]["url"]
    assert whole["properties"]["admin_listen"]["default"] == "127.0.0.1:9464"
    stall = definitions["Timeouts"]["properties"]["stall"]
    assert (stall["type"], stall["default"]) == ("string", "60s")
    assert definitions["Timeouts"]["properties"]["drain"]["anyOf"][1] == {"const": 0}
    assert definitions["Caps"]["properties"]["schema"]["default"] == "64KiB"
    assert definitions["Rate"]["anyOf"][0] == {"type": "integer", "minimum": 1}
    for name in definitions:
        assert f'"#/$defs/{name}"' in text
    assert '"written"' not in text


def test_a_key_that_names_what_its_team_may_not_use_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    teams = "teams:\n  all: {}\n  s: {models: [gpt-4o]}\nkeys:\n"
    keys = (
        f"- {{name: {n}, team: {team}, sha256: {n * 64}, models: [{model}]}}"
        for n, team, model in (("1", "s", "llama"), ("2", "all", "b"), ("3", "s", "b"))
    )
    given(MODELS + "  b: {replicas: [http://h]}\n" + teams + "\n".join(keys))
    (record,) = caplog.records
    assert record.getMessage().endswith(
        ": keys[2].models[0]: team s may not use b, so the key 3 may not either"
    )


def test_a_key_whose_end_is_past_is_warned_of_with_its_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys = (
        f"- {{name: ann, team: search, expires: {day}, sha256: {n * 64}}}"
        for day, n in (("2999-01-01", "1"), ("2020-01-31", "2"))
    )
    given(TEAMS + "keys:\n" + "\n".join(keys).replace("ann", "bob", 1))
    (record,) = caplog.records
    line = TEAMS.count("\n") + 3
    assert record.getMessage() == (
        f"fairgate.yaml:{line}: keys[1].expires: 2020-01-31 is past: the key ann is refused"
    )
