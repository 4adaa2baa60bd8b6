"""Counts are right, labels are bounded, and Prometheus reads what comes out."""

import math
import time
from typing import Any

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from backends.errors import BadAnswer, ConnectFailed
from gateway.metrics import FAMILIES, MOST_VALUES, OTHER, Metrics, Names, Sum, render
from gateway.route import Routes
from gateway.terms import Record, Usage
from tests.fakes.client import request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, configured, serving
from tests.gateway.pools import pool, replica, route

CHAT = "/v1/chat/completions"
BODY = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: bytes) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics.render()).get((name, frozenset(labels.items())))


def metrics() -> Metrics:
    made = Metrics(Routes({"llama": route(pool("llama", replica()))}))
    made.models.learn(["llama"])
    made.teams.learn(["search"])
    return made


def record(seconds: float = 0.1, used: Usage | None = None, **more: Any) -> Record:
    """Of a request that took so many seconds."""
    given = {
        "model": "llama",
        "pool": "llama",
        "team": "search",
        "status": 200,
        "attempts": 1,
        **more,
    }
    made = Record(request_id="req_1", endpoint=CHAT, total_ms=seconds * 1000, **given)
    if used is not None:
        made.used(used)
    return made


def test_a_finished_request_is_counted_with_its_times_and_tokens() -> None:
    told = metrics()
    used = Usage(prompt=10, cached=4, completion=7, exact=True)
    told.close(record(1.5, first_event_ms=200.0, used=used))
    told.close(record(0.5, first_event_ms=400.0, used=used))
    labels = {"endpoint": CHAT, "model": "llama", "pool": "llama"}
    requests = {**labels, "team": "search", "status": "200"}
    assert value(told, "fairgate_requests_total", **requests) == 2
    assert value(told, "fairgate_request_seconds_count", **labels) == 2
    assert value(told, "fairgate_request_seconds_sum", **labels) == pytest.approx(2.0)
    first = value(told, "fairgate_time_to_first_event_seconds_sum", **labels)
    assert first == pytest.approx(0.6)
    for direction, tokens in (("prompt", 20), ("cached", 8), ("completion", 14)):
        of = {"model": "llama", "pool": "llama", "team": "search", "direction": direction}
        assert value(told, "fairgate_tokens_total", **of) == tokens


def test_a_request_is_counted_by_the_name_asked_for_and_the_pool_that_served_it() -> None:
    told = metrics()
    told.models.learn(["chat", "llama-next"])
    used = Usage(completion=7, exact=True)
    for pool_name, times in (("llama", 2), ("llama-next", 1)):
        for _ in range(times):
            told.close(record(0.5, model="chat", pool=pool_name, first_event_ms=200.0, used=used))
        names = {"model": "chat", "pool": pool_name}
        path, team = {**names, "endpoint": CHAT}, {**names, "team": "search"}
        assert value(told, "fairgate_requests_total", **{**path, **team}, status="200") == times
        assert value(told, "fairgate_request_seconds_count", **path) == times
        assert value(told, "fairgate_time_to_first_event_seconds_count", **path) == times
        assert value(told, "fairgate_tokens_total", **team, direction="completion") == 7 * times


def test_a_refusal_by_a_limit_is_counted_by_team_and_rule() -> None:
    told = metrics()
    for team, rule in (("search", "team.tokens_per_day"), ("made-up", "key.concurrency")):
        told.close(record(team=team, status=429, limited_by=rule))
    told.close(record())
    counted = {k: v for k, v in samples(told.render()).items() if "limited" in k[0]}
    assert counted == {
        ("fairgate_limited_total", frozenset({("team", team), ("rule", rule)})): 1
        for team, rule in (("search", "team.tokens_per_day"), (OTHER, "key.concurrency"))
    }


def test_a_request_that_used_nothing_and_never_spoke_makes_no_such_series() -> None:
    told = metrics()
    told.close(record(status=502, outcome="upstream_failed"))
    names = {name for name, _ in samples(told.render())}
    assert not [name for name in names if "first_event" in name or "tokens" in name]


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [
        (0.0, 0.005),
        (0.005, 0.005),
        (0.0051, 0.01),
        (1.0, 1.0),
        (600.0, 600.0),
        (601.0, math.inf),
    ],
)
def test_a_time_falls_in_the_first_bucket_that_holds_it(seconds: float, bucket: float) -> None:
    told = metrics()
    told.close(record(seconds))
    counts = buckets(told)
    assert min(bound for bound, count in counts.items() if count) == bucket


def buckets(told: Metrics) -> dict[float, float]:
    """The requests counted up to each bound."""
    return {
        float(dict(labels)["le"]): count
        for (name, labels), count in samples(told.render()).items()
        if name == "fairgate_request_seconds_bucket"
    }


def test_buckets_add_up() -> None:
    told = metrics()
    for seconds in (0.001, 0.3, 0.3, 1000.0):
        told.close(record(seconds))
    counts = [count for _, count in sorted(buckets(told).items())]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (1, 4)
    labels = {"endpoint": CHAT, "model": "llama", "pool": "llama"}
    assert value(told, "fairgate_request_seconds_sum", **labels) == pytest.approx(1000.601)


def test_names_nobody_configured_become_other() -> None:
    told = metrics()
    told.close(record(model="made-up", pool="made-up", team="made-up"))
    told.close(record(model="", pool="", team="", status=401))
    for status in ("200", "401"):
        path = {"endpoint": CHAT, "model": OTHER, "pool": OTHER}
        assert value(told, "fairgate_requests_total", **path, team=OTHER, status=status) == 1


def test_a_name_is_told_from_when_it_is_known() -> None:
    told = metrics()
    for name in ("late", "late", "llama"):
        told.close(record(model=name, pool=name, team=name))
    told.models.learn(["late"])
    told.teams.learn(["late"])
    told.close(record(model="late", pool="late", team="late"))
    counted = {
        labels: n for (name, labels), n in samples(told.render()).items() if "requests" in name
    }
    path, known = {"endpoint": CHAT, "status": "200"}, {"model": "llama", "pool": "llama"}
    others = dict.fromkeys(("model", "pool", "team"), OTHER)
    late = dict.fromkeys(others, "late")
    assert counted == {
        frozenset({**path, **others}.items()): 2,
        frozenset({**path, **known, "team": OTHER}.items()): 1,
        frozenset({**path, **late}.items()): 1,
    }


def test_what_was_not_reached_is_other_whatever_is_known() -> None:
    told = metrics()
    told.models.learn([""])
    told.teams.learn([""])
    told.close(record(model="", pool="", team="", limited_by="key.concurrency"))
    others = {"model": OTHER, "pool": OTHER, "team": OTHER}
    assert value(told, "fairgate_requests_total", endpoint=CHAT, status="200", **others) == 1
    assert value(told, "fairgate_limited_total", team=OTHER, rule="key.concurrency") == 1


def test_names_that_a_caller_makes_up_are_not_kept() -> None:
    told = metrics()
    for n in range(1000):
        told.close(record(model=f"m{n}", pool=f"p{n}", team=f"t{n}"))
    assert len(told.tallies) == len(told.seconds) == 1


def test_tokens_are_not_told_apart_by_endpoint_and_status() -> None:
    told = metrics()
    told.close(record(used=Usage(prompt=5, completion=2)))
    told.close(record(used=Usage(prompt=7, cached=1, completion=4), status=499))
    messages = record(used=Usage(prompt=11, cached=3))
    messages.endpoint = "/v1/messages"
    told.close(messages)
    of = {"model": "llama", "pool": "llama", "team": "search"}
    for direction, tokens in (("prompt", 23), ("cached", 4), ("completion", 6)):
        assert value(told, "fairgate_tokens_total", **of, direction=direction) == tokens


def test_at_most_256_names_are_told_apart() -> None:
    names = Names()
    names.learn(f"m{n}" for n in range(MOST_VALUES + 10))
    assert (names["m0"], names["m255"], names["m256"]) == ("m0", "m255", OTHER)
    names.learn(["m0", "late"])
    assert (names["m0"], names["late"]) == ("m0", OTHER)
    assert MOST_VALUES == 256


def test_no_label_grows_past_256_values_however_many_pools_there_are() -> None:
    names = [f"m{n}" for n in range(300)]
    told = Metrics(Routes({name: route(pool(name, replica(f"http://{name}"))) for name in names}))
    told.models.learn(names)
    for name in names:
        told.close(record(model=name, pool=name))
        told.retried(name, "connect")
        told.attempt_failed(name, replica(), ConnectFailed("x"))
    models: dict[str, set[str]] = {}
    for name, labels in samples(told.render()):
        models.setdefault(name, set()).update(v for n, v in labels if n in ("model", "pool"))
    assert models["fairgate_requests_total"] == {*names[:256], OTHER}
    assert {name: len(seen) for name, seen in models.items() if len(seen) > 257} == {}


def test_failures_and_second_tries_are_counted_by_their_reason() -> None:
    told = metrics()
    told.attempt_failed("llama", replica(), BadAnswer("x"))
    told.attempt_failed("llama", replica(), ConnectFailed("x"))
    told.retried("llama", "connect")
    of = {"model": "llama"}
    assert value(told, "fairgate_stream_failures_total", **of, reason="bad_answer") == 1
    assert value(told, "fairgate_stream_failures_total", **of, reason="connect") == 1
    assert value(told, "fairgate_retries_total", **of, reason="connect") == 1


def test_an_abort_is_counted_only_where_an_engine_was_at_work() -> None:
    told = metrics()
    gone: dict[str, Any] = {"outcome": "client_gone", "status": 499}
    told.close(record(**gone, attempts=0))
    told.close(record(**gone))
    told.close(record(**gone, first_event_ms=100.0))
    told.close(record(**gone, first_event_ms=100.0))
    told.close(record(first_event_ms=100.0))
    assert value(told, "fairgate_upstream_aborts_total", phase="waiting") == 1
    assert value(told, "fairgate_upstream_aborts_total", phase="streaming") == 2


def test_replicas_are_told_as_they_are_now() -> None:
    busy, down = replica("http://gpu1:8000"), replica("http://gpu2:8000")
    told = Metrics(Routes({"llama": route(pool("llama", busy, down))}))
    busy.in_flight = 3
    down.health.told(time.monotonic(), "no connection can be made")
    of = {"model": "llama"}
    assert value(told, "fairgate_in_flight", **of, replica=busy.url) == 3
    assert value(told, "fairgate_replica_up", **of, replica=busy.url) == 1
    assert value(told, "fairgate_replica_up", **of, replica=down.url) == 0
    told.loop_lag, told.log_lines_dropped = 0.25, 4
    assert value(told, "fairgate_event_loop_lag_seconds") == 0.25
    assert value(told, "fairgate_log_lines_dropped_total") == 4


def test_names_with_quotes_and_line_ends_do_not_break_the_text() -> None:
    name = 'a"b\\c\nd'
    told = Metrics(Routes({}))
    told.models.learn([name])
    told.close(record(model=name))
    labels = {"endpoint": CHAT, "model": name, "pool": OTHER, "team": OTHER, "status": "200"}
    assert value(told, "fairgate_requests_total", **labels) == 1


# Several processes


def two() -> tuple[Metrics, Metrics]:
    """Two workers in front of the same two replicas."""
    both = []
    for flying, lag, down in ((1, 0.5, ""), (2, 0.25, "gone")):
        busy, idle = replica("http://gpu1:8000"), replica("http://gpu2:8000")
        told = Metrics(Routes({"llama": route(pool("llama", busy, idle))}))
        told.models.learn(["llama"])
        busy.in_flight, told.loop_lag = flying, lag
        busy.health.told(time.monotonic(), down)
        both.append(told)
    return both[0], both[1]


def through_json(told: Metrics) -> Any:
    return orjson.loads(orjson.dumps(told.counts()))


def test_counts_of_several_are_added_and_gauges_by_their_sense() -> None:
    one, other = two()
    one.close(record(1.5, first_event_ms=200.0, used=Usage(prompt=3)))
    other.close(record(0.5, first_event_ms=400.0, used=Usage(prompt=4)))
    other.close(record(0.5, status=502))
    other.aborts["waiting"] += 2
    one.unknown_fields = 1
    one.log_lines_dropped, other.log_lines_dropped = 1, 2
    one.limits_degraded = True
    one.limits_decided_here, other.limits_decided_here = 3, 4
    one.limits_settlements_dropped, other.limits_settlements_dropped = 5, 6
    told = samples(render([through_json(one), through_json(other)]))

    def of(name: str, **labels: str) -> float:
        return told[name, frozenset(labels.items())]

    path = {"endpoint": CHAT, "model": "llama", "pool": "llama"}
    assert of("fairgate_requests_total", **path, team=OTHER, status="200") == 2
    assert of("fairgate_requests_total", **path, team=OTHER, status="502") == 1
    assert of("fairgate_request_seconds_count", **path) == 3
    assert of("fairgate_request_seconds_sum", **path) == pytest.approx(2.5)
    assert of("fairgate_request_seconds_bucket", **path, le="1") == 2
    assert of("fairgate_time_to_first_event_seconds_count", **path) == 2
    tokens = {"model": "llama", "pool": "llama", "team": OTHER, "direction": "prompt"}
    assert of("fairgate_tokens_total", **tokens) == 7
    assert of("fairgate_upstream_aborts_total", phase="waiting") == 2
    assert of("fairgate_unknown_fields_total") == 1
    assert of("fairgate_log_lines_dropped_total") == 3
    assert of("fairgate_limits_degraded") == 1
    assert of("fairgate_limits_decided_here_total") == 7
    assert of("fairgate_limits_settlements_dropped_total") == 11
    assert of("fairgate_event_loop_lag_seconds") == 0.5
    first = {"model": "llama", "replica": "http://gpu1:8000"}
    assert of("fairgate_in_flight", **first) == 3
    assert of("fairgate_replica_up", **first) == 0
    assert of("fairgate_replica_up", **{**first, "replica": "http://gpu2:8000"}) == 1


def test_what_a_process_counted_outlives_it_and_its_gauges_do_not() -> None:
    one, other = two()
    one.close(record(1.5))
    other.close(record(0.5))
    ended = Sum()
    ended.add(through_json(other), ended=True)
    ended.add(through_json(other), ended=True)
    told = samples(render([through_json(one), ended.counts()]))
    path = {"endpoint": CHAT, "model": "llama", "pool": "llama"}
    requests = {**path, "team": OTHER, "status": "200"}
    assert told["fairgate_requests_total", frozenset(requests.items())] == 3
    assert told["fairgate_request_seconds_count", frozenset(path.items())] == 3
    first = {"model": "llama", "replica": "http://gpu1:8000"}
    assert told["fairgate_in_flight", frozenset(first.items())] == 1
    assert told["fairgate_replica_up", frozenset(first.items())] == 1
    assert told["fairgate_event_loop_lag_seconds", frozenset()] == 0.5


def test_every_count_of_a_process_has_its_metric() -> None:
    of_the_whole = {"worker_restarts", "config_reloads", "config_last_reload_successful"}
    assert set(metrics().counts()) | of_the_whole == set(FAMILIES)


async def test_fields_that_were_left_out_of_a_request_are_counted() -> None:
    body = BODY.replace(b"{", b'{"odd":1,"odder":2,', 1)
    caps = "request: {unknown_fields: drop}"
    async with Engine() as engine, serving(configured(engine.url, model=caps)) as gateway:
        for _ in range(2):
            await request(gateway.port, "POST", CHAT, HEADERS, body)
        await gateway.logged(2)
        told = samples((await request(gateway.admin_port, "GET", "/metrics")).body)
    assert told["fairgate_unknown_fields_total", frozenset()] == 4


async def test_a_request_through_the_gateway_is_counted_once() -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        for headers in (HEADERS, HEADERS, [("content-type", "application/json")]):
            await request(gateway.port, "POST", CHAT, headers, BODY)
        await gateway.logged(3)
        told = samples((await request(gateway.admin_port, "GET", "/metrics")).body)
    counted = {labels: v for (name, labels), v in told.items() if name == "fairgate_requests_total"}
    path = {"endpoint": CHAT, "model": "tiny", "pool": "tiny"}
    ours = {**path, "team": "search", "status": "200"}
    refused = {**dict.fromkeys((*path, "team"), OTHER), "endpoint": CHAT, "status": "401"}
    assert counted == {frozenset(ours.items()): 2, frozenset(refused.items()): 1}
    up = frozenset({"model": "tiny", "replica": engine.url}.items())
    assert told["fairgate_replica_up", up] == 1
    assert told["fairgate_in_flight", up] == 0
