"""What is said of the figures is right: ratios, failures, bars, the picture, who takes part."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.bench import bars, curve, drawing, driver, install, measures, table
from tests.bench.bars import Bar
from tests.bench.measures import Figures, Measure, Rounds
from tests.bench.peers import Peer

BAR = Bar("", "plain", "cpu_us", must=1.5, aim=1.0)


def results(*cpu: float) -> dict[int, Figures]:
    """One round for each figure; a negative one is a round that failed."""
    return {
        number: {"errors": float(each < 0), "busy": 0.5, "cpu_us": abs(each)}
        for number, each in enumerate(cpu)
    }


def plain(**peers: tuple[float, ...]) -> Rounds:
    return {"plain": {name.replace("_", "-"): results(*each) for name, each in peers.items()}}


def test_a_ratio_is_of_two_figures_of_the_same_round() -> None:
    peers = plain(fairgate=(10, 40), nginx=(5, 10))["plain"]
    assert table.ratios(peers, "fairgate", "nginx", "cpu_us") == {0: 2, 1: 4}


def test_a_round_has_the_medians_of_its_turns_and_all_their_errors() -> None:
    turns: list[Figures] = [{"cpu_us": cpu, "errors": cpu == 9.0} for cpu in (9.0, 1.0, 2.0)]
    assert driver.middle(turns) == {"cpu_us": 2.0, "errors": 1}


def test_a_round_that_failed_is_in_no_median_and_no_ratio() -> None:
    peers = plain(fairgate=(10, -1, 30), nginx=(5, 5, -1))["plain"]
    assert table.values(peers["fairgate"], "cpu_us") == {0: 10, 2: 30}
    assert table.ratios(peers, "fairgate", "nginx", "cpu_us") == {0: 2}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_line_has_median_least_most_and_the_median_ratio() -> None:
    rounds = plain(nginx=(10, 10, 10), fairgate=(30, 20, 60))
    lines = [cells(line) for line in table.table(rounds, "nginx")]
    expected = ["plain: CPU us per request", "fairgate", "30.0", "20.0", "60.0", "3.00"]
    assert expected in lines


def test_a_peer_without_a_good_round_failed() -> None:
    lines = [cells(line) for line in table.table(plain(nginx=(-1, -1)), "nginx")]
    assert ["plain: CPU us per request", "nginx", "failed", "", "", ""] in lines


@pytest.mark.parametrize("measure", measures.FIRST_EVENTS)
def test_what_is_added_is_the_difference_to_direct_in_the_same_round(measure: str) -> None:
    def seen(*p50: float) -> dict[int, Figures]:
        return {
            number: {"errors": 0, "first_us_p50": each, "first_us_p99": 2 * each}
            for number, each in enumerate(p50)
        }

    peers = {"direct": seen(100, 200), "nginx": seen(150, 210, 300)}
    added = table.with_added({measure: peers})[measure]["nginx"]
    assert table.values(added, "added_us_p50") == {0: 50, 1: 10}
    assert table.values(added, "added_us_p99") == {0: 100, 1: 20}


def test_a_full_core_of_the_generator_is_told_unless_nothing_stood_between() -> None:
    rounds = plain(direct=(0,), nginx=(1,))
    for peer in rounds["plain"].values():
        peer[0]["busy"] = 0.95
    assert "plain (nginx)" in "\n".join(table.checked(rounds))
    rounds["plain"]["nginx"][0]["busy"] = 0.85
    assert "busy in: nothing" in "\n".join(table.checked(rounds))


def test_how_far_the_generator_is_from_its_limit_is_told() -> None:
    rounds = plain(direct=(0,), nginx=(1,))
    rounds["plain"]["direct"][0]["requests_per_s"] = 9000.0
    rounds["plain"]["nginx"][0]["requests_per_s"] = 6000.0
    told = "9,000 requests/s, 1.5 x the fastest peer (nginx)"
    assert told in "\n".join(table.checked(rounds))


@pytest.mark.parametrize(
    ("seen", "bound", "least", "kept"),
    [
        ((1.0, 1.5, 1.5), 1.5, False, True),
        ((1.0, 1.6, 1.6), 1.5, False, False),  # the median
        ((1.0, 1.5, 1.72), 1.5, False, True),  # the worst within 1.15 of the bar
        ((1.0, 1.5, 1.73), 1.5, False, False),
        ((60, 60, 99), 60, True, True),
        ((59, 59, 99), 60, True, False),
        ((52.2, 60, 99), 60, True, True),
        ((52.1, 60, 99), 60, True, False),
        ((0,), 0, False, True),
        ((1,), 0, False, False),
    ],
)
def test_a_bar_holds_by_its_median_and_its_worst_round(
    seen: tuple[float, ...], bound: float, least: bool, kept: bool
) -> None:
    assert bars.holds(seen, bound, least) is kept


def test_a_bar_is_judged_by_ratios_for_must_and_aim() -> None:
    rounds = plain(fairgate=(12, 13, 14), vllm_router=(10, 10, 10))
    told = bars.judged(BAR, rounds)
    assert told == "1.30, worst 1.40: must holds, aim does NOT hold"
    rounds = plain(fairgate=(12, 18, 18), vllm_router=(10, 10, 10))
    assert "must does NOT hold" in bars.judged(BAR, rounds)


def test_the_worst_round_of_a_bar_from_below_is_the_least() -> None:
    bar = Bar("", "plain", "cpu_us", must=2, aim=4, base="", least=True)
    told = bars.judged(bar, plain(fairgate=(3, 4, 5)))
    assert told == "4.00, worst 3.00: must holds, aim does NOT hold"


def test_a_bar_does_not_hold_where_the_gateway_failed_in_one_round() -> None:
    rounds = plain(fairgate=(10, -1), vllm_router=(10, 10))
    assert bars.judged(BAR, rounds) == "does not hold: fairgate failed in 1 of 2 rounds"


def test_a_bar_without_its_peer_is_not_measured() -> None:
    assert bars.judged(BAR, plain(fairgate=(10,))) == "not measured: vllm-router absent"
    assert bars.judged(BAR, plain(vllm_router=(10,))) == "not measured: fairgate absent"
    assert bars.judged(BAR, {}) == "not measured"
    told = bars.judged(BAR, plain(fairgate=(10,), vllm_router=(-1,)))
    assert told == "not measured: no round in which vllm-router has the figure"


def test_streams_that_broke_are_counted_not_left_out() -> None:
    bar = next(bar for bar in bars.BARS if bar.field == "errors")
    rounds: Rounds = {"many": {"fairgate": {0: {"errors": 3}}}}
    assert bars.judged(bar, rounds) == "3.00, worst 3.00: must does NOT hold, aim does NOT hold"
    rounds["many"]["fairgate"][0]["errors"] = 0
    assert "must holds" in bars.judged(bar, rounds)


def test_every_bar_is_about_a_figure_that_is_measured() -> None:
    known = {measure.name: measure for measure in measures.MEASURES}
    for bar in bars.BARS:
        fields = [field for field, _ in known[bar.measure].columns]
        assert bar.field in [*fields, "errors"], bar.title


def test_a_slow_peer_gets_its_share_of_requests_and_streams() -> None:
    slow = Peer("slow", (), 1, "/", share=0.1)
    many = Measure("many", 5000, ("--stream",), streams=5000)
    assert many.load(slow, 1.0) == (500, ("--stream", "--connections", "500"))
    assert Measure("plain", 10000, ("--a",)).load(slow, 0.2) == (200, ("--a",))


def test_a_measure_takes_those_that_take_part() -> None:
    some, other = Peer("some", (), 1, "/"), Peer("other", (), 1, "/", only=("paced",))
    assert Measure("plain", 1, ()).takes(some)
    assert not Measure("plain", 1, (), peers=("third",)).takes(some)
    assert not Measure("plain", 1, ()).takes(other)
    assert Measure("paced", 1, ()).takes(other)


def test_a_quick_run_has_the_long_measures_only_if_asked() -> None:
    assert "many" in [each.name for each in measures.chosen(None, quick=False)]
    assert "many" not in [each.name for each in measures.chosen(None, quick=True)]
    assert [each.name for each in measures.chosen("many,first", quick=True)] == [
        *measures.FIRST_EVENTS,
        "many",
    ]


def test_a_told_rate_is_not_that_of_paced_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay open for seconds: at the rate of short ones there would be too many."""
    bench = driver.Driver.__new__(driver.Driver)
    bench.rates = {}
    monkeypatch.setattr(bench, "maximum", lambda one, measure: 300.0)
    one: Any = None
    bench.calibrate(one, ["paced streams", "short streams"], 1000.0)
    assert bench.rates == {"paced streams": 150.0, "short streams": 1000.0}
    bench.calibrate(one, ["short streams"], None)
    assert bench.rates["short streams"] == 150.0


def test_every_open_loop_has_a_maximum() -> None:
    rates = {measure.rate for measure in measures.MEASURES if measure.rate}
    assert rates == measures.MAXIMA.keys()


def test_the_curve_is_of_medians_and_leaves_out_what_failed() -> None:
    def seen(*p50: float) -> dict[int, Figures]:
        return {n: {"errors": float(v < 0), "first_us_p50": abs(v)} for n, v in enumerate(p50)}

    points = {0.1: {"a": seen(100, 300, 200)}, 0.2: {"a": seen(-1), "b": seen(-1, 7)}}
    assert curve.lines(points, "p50") == {"a": [(0.1, 200)], "b": [(0.2, 7)]}


def test_the_picture_has_a_line_for_each_peer_within_its_panel() -> None:
    lines = {"<a>": [(0.1, 150.0), (0.9, 9000.0)], "b": [(0.5, 2000.0)]}
    picture = ElementTree.fromstring(drawing.drawn({"p50": lines, "p99": lines}, "load"))
    drawn = picture.findall("{*}polyline")
    assert len(drawn) == 4
    first = [tuple(map(float, point.split(","))) for point in drawn[0].get("points", "").split()]
    (x, y), (later_x, later_y) = first
    assert drawing.LEFT < x < later_x < drawing.LEFT + drawing.WIDTH
    assert drawing.TOP < later_y < y < drawing.TOP + drawing.HEIGHT
    assert "<a>" in [text.text for text in picture.findall("{*}text")]


def test_a_peer_counts_as_installed_only_whole_and_in_the_wanted_version(tmp_path: Path) -> None:
    environ = {"FAIRGATE_PEERS_HOME": str(tmp_path)}
    folder = install.home("vllm-router", environ)
    folder.mkdir()
    assert install.installed("vllm-router", environ) is None
    marker = folder / install.MARKER
    marker.write_text("vllm-router==0.0.1\n")
    assert install.installed("vllm-router", environ) is None
    marker.write_text(install.PACKAGES["vllm-router"].requirement + "\n")
    program = install.installed("vllm-router", environ)
    assert program == folder / "env" / "bin" / "vllm-router"


def test_a_peer_that_cannot_be_installed_is_reported_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(package: install.Package, folder: Path) -> None:
        if package.program == "vllm-router":
            raise install.Failed("  no matching distribution")

    monkeypatch.setenv("FAIRGATE_PEERS_HOME", str(tmp_path))
    monkeypatch.setattr(install, "_make", make)
    assert install.main(["vllm-router", "litellm"]) == 1
    told = capsys.readouterr().out
    assert "vllm-router: FAILED, left out:\n  no matching distribution\n" in told
    assert "litellm: done" in told
