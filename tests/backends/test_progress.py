"""Whether an engine gets on, by its figures: only one that has work and makes no step is stuck."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.progress import Figures, Progress, read

PAGE = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_running{engine="1",model_name="tiny"} 2.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 7.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 100.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="tiny"} 0.75
vllm:iteration_tokens_total_bucket{engine="0",le="1.0"} 5.0
vllm:iteration_tokens_total_count{engine="0",model_name="tiny"} 1.5e+03
vllm:iteration_tokens_total_sum{engine="0",model_name="tiny"} 9999.0
"""


def test_the_figures_of_all_engines_of_a_server_are_added_up() -> None:
    assert read(PAGE) == Figures(running=5, waiting=7, kv=0.75, steps=1500)


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"not metrics at all \xff\xfe",
        PAGE.replace(b"iteration_tokens_total_count", b"other"),
        PAGE.replace(b"} 3.0", b"} 3.0.0"),
        PAGE.replace(b"} 3.0", b"} --"),
        PAGE.replace(b"} 3.0", b"} 1e999"),
        PAGE.replace(b"} 3.0", b"} NaN"),
        PAGE.replace(b"} 3.0", b"} -1"),
        PAGE.replace(b"} 3.0", b"}"),
        PAGE.replace(b'"} 3.0', b""),
        PAGE.replace(b"} 3.0", b"} 1e308").replace(b"} 2.0", b"} 1e308"),
        PAGE.replace(b"} 0.25", b"} +Inf"),
        b"<html>404</html>",
    ],
)
def test_a_page_without_all_figures_has_none(page: bytes) -> None:
    assert read(page) is None


def test_the_forms_a_line_may_have_are_all_read() -> None:
    page = (
        b"vllm:num_requests_running 1\n"
        b'vllm:num_requests_running{model_name="odd} 9 {name"} 2.0 1795229078000\r\n'
        b"vllm:num_requests_waiting 0.0\n"
        b'vllm:kv_cache_usage_perc{engine="0"} 1.0000001\n'
        b'vllm:iteration_tokens_total_count{engine="0"} 17'
    )
    assert read(page) == Figures(running=3, waiting=0, kv=1.0, steps=17)


@given(st.binary(max_size=300), st.integers(0, len(PAGE)))
def test_a_page_cut_or_spoilt_anywhere_has_figures_or_none(noise: bytes, at: int) -> None:
    for page in (PAGE[:at] + noise + PAGE[at:], PAGE[:at], noise):
        figures = read(page)
        assert figures is None or (figures.running >= 0 and 0 <= figures.kv <= 1)


class Engine:
    """An engine that is looked at once a second. Mutable state: its figures and the time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.steps = 0
        self.running = 1
        self.kv = 0.1
        self.progress = Progress(self.now)

    def looked(self, seconds: int, *, every: int = 0) -> str:
        """After so many looks, with a step at each `every`-th; what is said of it then."""
        for second in range(seconds):
            self.now += 1
            if every and second % every == 0:
                self.steps += 1
            self.progress.saw(self.now, Figures(self.running, 0, self.kv, self.steps))
        return self.progress.stuck


@pytest.fixture
def engine() -> Engine:
    return Engine()


def test_one_that_steps_is_never_stuck(engine: Engine) -> None:
    assert not engine.looked(200, every=1)


def test_ten_seconds_without_a_step_are_stuck(engine: Engine) -> None:
    engine.looked(30, every=1)
    assert not engine.looked(9)
    assert engine.looked(2) == "no step for 11 s, requests running: 1"


def test_one_with_nothing_to_do_is_not_stuck(engine: Engine) -> None:
    engine.looked(10, every=1)
    engine.running = 0
    assert not engine.looked(300)


def test_its_time_begins_when_work_does(engine: Engine) -> None:
    engine.running = 0
    engine.looked(300)
    engine.running = 1
    assert not engine.looked(9)
    assert engine.looked(2)


def test_one_that_goes_on_is_not_stuck_any_more(engine: Engine) -> None:
    engine.looked(10, every=1)
    assert engine.looked(20)
    assert not engine.looked(1, every=1)


def test_one_that_pauses_long_is_given_five_of_its_pauses(engine: Engine) -> None:
    engine.looked(60, every=6)
    assert not engine.looked(12)
    assert engine.looked(20)


def test_a_long_prompt_that_fills_the_cache_piece_by_piece_is_work(engine: Engine) -> None:
    for _ in range(20):
        engine.kv += 0.01
        assert not engine.looked(8)
    assert engine.looked(42), "five of its pauses without either"


def test_a_long_pause_is_forgotten_with_work(engine: Engine) -> None:
    engine.looked(61, every=30)
    engine.looked(600, every=1)
    assert engine.looked(15)


def test_a_long_pause_is_not_forgotten_while_nothing_runs(engine: Engine) -> None:
    engine.looked(61, every=30)
    engine.running = 0
    engine.looked(3600)
    engine.running = 1
    assert not engine.looked(100)
    assert engine.looked(60)


def test_work_that_came_in_the_meantime_begins_no_pause_of_the_past(engine: Engine) -> None:
    engine.looked(5, every=1)
    engine.running = 0
    engine.looked(100)
    engine.running = 1
    engine.looked(5, every=1)
    assert engine.looked(11), "the time without work was no pause"


def test_one_that_had_nothing_to_do_before_a_gap_in_the_looks_is_not_stuck(engine: Engine) -> None:
    engine.running = 0
    engine.looked(5)
    engine.now += 60
    engine.running = 1
    assert not engine.looked(9)


def test_a_gap_in_the_looks_before_it_has_nothing_to_do_is_no_pause(engine: Engine) -> None:
    engine.looked(5, every=1)
    engine.now += 60
    engine.running = 0
    engine.looked(1, every=1)
    engine.running = 1
    engine.looked(5, every=1)
    assert engine.looked(11), "it may have had nothing to do in all that time"


def test_even_the_longest_pause_does_not_blind_it_for_ever(engine: Engine) -> None:
    engine.looked(1, every=1)
    engine.looked(1000)
    engine.looked(1, every=1)
    engine.looked(301)
    assert engine.progress.stuck


@pytest.mark.parametrize("running", [0, 1])
def test_another_process_in_its_place_begins_anew(engine: Engine, running: int) -> None:
    engine.looked(121, every=40)
    engine.steps = 0
    engine.running = running
    engine.looked(1)
    engine.running = 1
    engine.looked(1)
    assert not engine.looked(8)
    assert engine.looked(3)


def test_one_that_was_stuck_and_was_started_anew_is_not_stuck(engine: Engine) -> None:
    engine.looked(10, every=1)
    assert engine.looked(20)
    engine.steps = 0
    assert not engine.looked(1)
    assert not engine.looked(8)


def test_a_server_without_figures_is_not_judged(engine: Engine) -> None:
    engine.looked(5, every=1)
    for _ in range(100):
        engine.now += 1
        engine.progress.saw(engine.now, None)
    assert not engine.progress.stuck
    assert not engine.progress.silent


def test_ten_seconds_without_an_answer_are_silence_and_an_answer_ends_it(engine: Engine) -> None:
    engine.looked(5, every=1)
    for second in range(1, 13):
        engine.progress.silence(engine.now + second - 1, engine.now + second)
        assert bool(engine.progress.silent) is (second >= 10)
    assert engine.progress.silent == "no answer for 12 s"
    assert not engine.progress.stuck
    engine.now += 13
    engine.looked(1, every=1)
    assert not engine.progress.silent


def test_one_that_is_asked_seldom_is_not_silent_between_two_questions(engine: Engine) -> None:
    engine.looked(1)
    silent = []
    for began, ended in ((60, 62), (63, 65), (68, 70)):
        engine.progress.silence(engine.now + began, engine.now + ended)
        silent.append(engine.progress.silent)
    assert silent == ["", "", "no answer for 10 s"]


def test_while_it_does_not_answer_nothing_is_known_of_its_steps(engine: Engine) -> None:
    engine.looked(10, every=1)
    engine.looked(5)
    engine.progress.silence(engine.now, engine.now + 60)
    assert not engine.progress.stuck
