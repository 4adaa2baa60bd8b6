"""What other programs rely on is spelt as it was promised; and nothing of one machine is told."""

import re
import subprocess

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from backends.errors import BadAnswer
from gateway.errors import GatewayError
from gateway.metrics import Metrics
from gateway.route import Routes
from gateway.terms import Record, Usage
from tests.house.source import ROOT

LOG = """time request_id client_request_id trace_id key team endpoint model pool replica stream
status outcome attempts admit_ms first_event_ms total_ms bytes_in bytes_out prompt_tokens
cached_tokens completion_tokens tokens_are limited_by""".split()
OUTCOMES = {"ok", "client_gone", "limited", "refused", "upstream_failed", "timed_out", "drained"}
#: Of the promised ones, those that exist; what is ours alone follows.
METRICS = {
    "fairgate_requests_total": {"endpoint", "model", "pool", "team", "status"},
    "fairgate_request_seconds": {"endpoint", "model", "pool"},
    "fairgate_time_to_first_event_seconds": {"endpoint", "model", "pool"},
    "fairgate_tokens_total": {"model", "pool", "team", "direction"},
    "fairgate_in_flight": {"model", "replica"},
    "fairgate_replica_up": {"model", "replica"},
    "fairgate_retries_total": {"model", "reason"},
    "fairgate_stream_failures_total": {"model", "reason"},
    "fairgate_upstream_aborts_total": {"phase"},
    "fairgate_limited_total": {"team", "rule"},
    "fairgate_limits_degraded": set(),
    "fairgate_event_loop_lag_seconds": set(),
    "fairgate_limits_decided_here_total": set(),
    "fairgate_limits_settlements_dropped_total": set(),
    "fairgate_unknown_fields_total": set(),
    "fairgate_log_lines_dropped_total": set(),
    "fairgate_worker_restarts_total": set(),
    "fairgate_config_reloads_total": {"result"},
    "fairgate_config_last_reload_successful": set(),
}


def test_the_log_line_has_its_fields_in_their_order() -> None:
    assert list(Record.__struct_fields__) == LOG
    assert [field.encode_name for field in msgspec.structs.fields(Record)] == LOG


def test_an_outcome_is_one_of_the_words_of_the_log() -> None:
    found = {Record(request_id="", endpoint="").outcome}
    waiting = [GatewayError]
    while waiting:
        each = waiting.pop()
        found.add(each.outcome)
        waiting += each.__subclasses__()
    assert found <= OUTCOMES


def test_every_metric_has_its_name_and_labels() -> None:
    metrics = Metrics(Routes({}))
    record = Record(request_id="", endpoint="/v1/embeddings", outcome="client_gone", attempts=1)
    record.first_event_ms = 1000.0
    record.limited_by = "team.tokens_per_minute"
    record.used(Usage(prompt=1, completion=1))
    metrics.close(record)
    metrics.retried("m", "connect")
    metrics.stream_failures["m", BadAnswer.reason] += 1
    text = metrics.render().decode()
    assert set(re.findall(r"^# HELP (\S+)", text, re.MULTILINE)) == set(METRICS)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = re.sub(r"_(bucket|sum|count)$", "", sample.name)
            assert set(sample.labels) - {"le"} == METRICS[name], sample.name


@pytest.fixture(scope="module")
def tracked() -> dict[str, str]:
    """The text of every tracked file by its name."""
    if not (ROOT / ".git").exists():
        pytest.skip("which files the project has is asked of git, and this is no git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    names = listed.stdout.decode().split("\0")
    files = {name: ROOT / name for name in names if name}
    return {
        name: file.read_text(encoding="utf-8", errors="replace")
        for name, file in files.items()
        if file.is_file()
    }


def test_no_tracked_file_names_a_path_of_one_machine(tracked: dict[str, str]) -> None:
    here = re.compile(re.escape(f"{ROOT}/") + r"|(?<![\w.~$}])/(?:home|root|Users|work)/\w")
    found = {name: here.findall(text) for name, text in tracked.items()}
    assert not {name: paths for name, paths in found.items() if paths}


def test_no_tracked_file_names_a_package_registry(tracked: dict[str, str]) -> None:
    words = ("artifactory", "devpi", "jfrog", "nexus", "mirror")  # apart: this file is tracked too
    url = r"https?://"
    mirror = re.compile(rf"{url}[\w.:@-]*(?:{'|'.join(words)})[\w.-]*|index-url\W+{url}\S+")
    found = {name: mirror.findall(text) for name, text in tracked.items()}
    assert not {name: hosts for name, hosts in found.items() if hosts}
