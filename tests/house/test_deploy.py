"""What `deploy/` gives away is well-formed and fits the gateway's own defaults."""

from __future__ import annotations

import re
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest

from gateway.settings import Timeouts
from gateway.supervisor import _FAREWELL
from tests.fakes.gateway import FAIRGATE
from tests.house.source import ROOT

UNIT = ROOT / "deploy" / "fairgate.service"
HAPROXY = ROOT / "deploy" / "haproxy.cfg"
TIMES = Timeouts()


@pytest.fixture(scope="module")
def service() -> dict[str, str]:
    unit = RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    return dict(unit["Service"])


def seconds(name: str) -> float:
    """A time of the HAProxy configuration."""
    found = re.search(rf"^ *{name} (\d+)s$", HAPROXY.read_text(), re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def test_systemd_waits_longer_than_the_gateway_takes_to_end(service: dict[str, str]) -> None:
    assert service["KillSignal"] == "SIGTERM"
    # To the main process alone: it ends its own workers, in order.
    assert service["KillMode"] == "mixed"
    assert float(service["TimeoutStopSec"]) >= TIMES.lame_duck + TIMES.drain + _FAREWELL


def test_a_reload_is_the_signal_that_the_gateway_knows(service: dict[str, str]) -> None:
    assert service["Type"] == "exec"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"


def test_the_unit_allows_two_descriptors_for_each_connection(service: dict[str, str]) -> None:
    assert int(service["LimitNOFILE"]) >= 2 * 10_000 + 1_000


def test_a_bad_configuration_is_not_tried_again(service: dict[str, str]) -> None:
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"
    # systemd heeds it for the main process alone: a check before it would be tried again.
    assert "ExecStartPre" not in service


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is not installed (Debian: apt-get install systemd)",
)
def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/fairgate/bin/fairgate", FAIRGATE))
    told = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    about = [line for line in told.stderr.splitlines() if UNIT.name in line]
    assert (told.returncode, about) == (0, [])


@pytest.mark.skipif(
    shutil.which("haproxy") is None,
    reason="haproxy is not installed (Debian: apt-get install haproxy)",
)
def test_haproxy_understands_its_configuration() -> None:
    told = subprocess.run(["haproxy", "-c", "-f", str(HAPROXY)], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "[WARNING]" not in told.stderr


def test_haproxy_waits_longer_than_any_answer_is_silent() -> None:
    assert seconds("timeout server") > TIMES.total
    assert seconds("timeout client") > TIMES.total


def test_haproxy_notices_the_end_of_a_gateway_while_it_still_serves() -> None:
    found = re.search(r"check inter (\d+)s fall (\d+)", HAPROXY.read_text())
    assert found is not None
    every, fails = int(found[1]), int(found[2])
    # And the check that is under way when the signal comes.
    assert every * (fails + 1) < TIMES.lame_duck
