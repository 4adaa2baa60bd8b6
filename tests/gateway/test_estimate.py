"""What a request will cost, and what it cost where the engine did not say."""

import json
import random

import pytest

from gateway.estimate import Estimates, weighed
from gateway.terms import Size, Usage

KEY, MODEL = "ann", "llama"


def exact(prompt: int, completion: int = 0) -> Usage:
    return Usage(prompt, 0, completion, exact=True)


def learned(*outputs: int, events: int = 0, answers: int = 1) -> Estimates:
    """What is known after answers of so many tokens."""
    estimates = Estimates()
    for tokens in outputs:
        estimates.learn(KEY, MODEL, Size(100, answers=answers), exact(25, tokens), events)
    return estimates


def taught(*prompts: tuple[Size, int]) -> Estimates:
    estimates = Estimates()
    for size, tokens in prompts:
        estimates.learn(KEY, MODEL, size, exact(tokens, 1), 0)
    return estimates


# The prompt


def test_a_prompt_is_four_bytes_a_token_until_more_is_known() -> None:
    assert Estimates().prompt(MODEL, Size(4000)) == 1000
    assert Estimates().prompt(MODEL, Size(4001)) == 1001


def test_a_prompt_is_estimated_as_the_models_own_tokens_were() -> None:
    estimates = taught(*[(Size(6000), 1000)] * 60)
    assert estimates.prompt(MODEL, Size(6000)) == pytest.approx(1000, rel=0.02)
    assert estimates.prompt("other", Size(6000)) == 1500


def test_nothing_to_estimate_still_reserves_something() -> None:
    for size in (Size(), Size(len("[]"))):
        assert Estimates().prompt(MODEL, size) == 1


def test_ids_that_were_given_are_exact() -> None:
    estimates = taught(*[(Size(6000), 1000)] * 60)
    assert estimates.prompt(MODEL, Size(0, 777)) == 777


def test_several_answers_read_the_prompt_once() -> None:
    assert Estimates().prompt(MODEL, Size(4000, answers=8)) == 1000


def test_text_that_is_escaped_is_estimated_within_twice_its_size() -> None:
    text = "漢字かな交じり文" * 200
    written, escaped = (len(json.dumps(text, ensure_ascii=a).encode()) for a in (False, True))
    estimates = Estimates()
    plain, spelled = (estimates.prompt(MODEL, Size(n)) for n in (written, escaped))
    assert plain < spelled <= 2 * plain


@pytest.mark.parametrize("odd", [1, 10**9])
def test_an_odd_answer_cannot_wreck_the_estimate(odd: int) -> None:
    ordinary = [(Size(4000), 1000)] * 20
    once = taught(*ordinary, (Size(4000), odd)).prompt(MODEL, Size(4000))
    assert 700 < once < 1300
    always = taught(*[(Size(4000), odd)] * 500).prompt(MODEL, Size(4000))
    assert 250 <= always <= 4000


@pytest.mark.parametrize(
    ("size", "usage"),
    [
        (Size(4000), Usage(100, 0, 5)),
        (Size(4000), exact(0, 5)),
        (Size(4000), exact(-7, 5)),
        (Size(255), exact(3000)),
        (Size(4000, 2000), exact(2100)),
        (Size(0, 500), exact(500)),
    ],
    ids=["counted", "without a prompt", "negative", "tiny", "mostly media", "of ids"],
)
def test_what_tells_nothing_of_text_is_not_learned_from(size: Size, usage: Usage) -> None:
    estimates = Estimates()
    for _ in range(100):
        estimates.learn(KEY, MODEL, size, usage, 0)
    assert estimates.prompt(MODEL, Size(4000)) == 1000


def test_a_small_picture_beside_much_text_is_taken_off_before_learning() -> None:
    estimates = taught(*[(Size(60_000, 1000), 11_000)] * 100)
    assert estimates.prompt(MODEL, Size(6000)) == pytest.approx(1000, rel=0.01)


# The output


def test_a_large_limit_does_not_reserve_itself() -> None:
    claude_code = Size(4000, output_limit=32_000)
    assert Estimates().output(KEY, MODEL, claude_code) == 512
    assert learned(*[300] * 20).output(KEY, MODEL, claude_code) == 300


def test_no_more_is_reserved_than_one_answer_may_have() -> None:
    small = Size(4000, output_limit=16)
    assert Estimates().output(KEY, MODEL, small) == 16
    assert learned(*[300] * 20).output(KEY, MODEL, small) == 16
    assert Estimates().output(KEY, MODEL, Size(4000, output_limit=0)) == 0


def test_twenty_answers_are_needed_to_know_a_key() -> None:
    assert learned(*[100] * 19).output(KEY, MODEL, Size()) == 512
    assert learned(*[100] * 20).output(KEY, MODEL, Size()) == 100


def test_nine_in_ten_answers_stay_within_the_estimate() -> None:
    for many, high in ((20, 117), (64, 157)):  # the 18th and the 58th
        outputs = list(range(100, 100 + many))
        random.Random(3).shuffle(outputs)
        assert learned(*outputs).output(KEY, MODEL, Size()) == high


def test_the_latest_answers_count() -> None:
    estimates = learned(*[5000] * 64, *[100] * 64)
    assert estimates.output(KEY, MODEL, Size()) == 100


def test_short_answers_reserve_the_least() -> None:
    assert learned(*[1] * 30).output(KEY, MODEL, Size()) == 64


def test_eight_answers_weigh_eight() -> None:
    size = Size(4000, output_limit=100, answers=8)
    assert Estimates().output(KEY, MODEL, size) == 800
    shared = learned(*[8 * 200] * 20, answers=8)
    assert shared.output(KEY, MODEL, Size()) == 200
    assert shared.output(KEY, MODEL, Size(answers=8)) == 1600


def test_a_key_is_known_on_each_model_by_itself() -> None:
    estimates = learned(*[100] * 20)
    assert estimates.output("bob", MODEL, Size()) == 512
    assert estimates.output(KEY, "other", Size()) == 512


def test_what_may_not_answer_teaches_nothing_of_answers() -> None:
    estimates = Estimates()
    for _ in range(50):
        estimates.learn(KEY, MODEL, Size(4000, output_limit=0), exact(1000), 0)
        estimates.learn(KEY, MODEL, Size(4000), exact(1000, -1), 0)
    assert estimates.output(KEY, MODEL, Size()) == 512


def test_the_longest_unused_key_is_forgotten() -> None:
    estimates = Estimates(pairs=2)

    def teach(key: str) -> None:
        for _ in range(20):
            estimates.learn(key, MODEL, Size(), exact(9, 100), 0)

    for key in ("a", "b", "a", "c"):
        teach(key)
    known = [estimates.output(key, MODEL, Size()) == 100 for key in ("a", "b", "c")]
    assert known == [True, False, True]


def test_any_number_an_engine_tells_is_survived() -> None:
    estimates = learned(*[10**400] * 30, events=1)
    assert estimates.output(KEY, MODEL, Size(output_limit=9)) == 9
    taught((Size(4000), 10**400))


# What it cost


def test_a_stream_cut_short_is_counted_by_its_events() -> None:
    used = Estimates().counted(MODEL, Size(4000), 7, Usage(completion=7))
    assert used == Usage(1000, 0, 7)


def test_a_model_that_answers_three_tokens_an_event_is_charged_three() -> None:
    estimates = learned(*[300] * 60, events=100)
    assert estimates.counted(MODEL, Size(4000), 50, Usage()).completion == 150
    assert estimates.counted("other", Size(4000), 50, Usage()).completion == 50


def test_what_was_no_stream_tells_nothing_of_events() -> None:
    estimates = learned(*[300] * 60, events=0)
    assert estimates.counted(MODEL, Size(4000), 50, Usage()).completion == 50


def test_short_streams_do_not_make_an_event_worth_less_than_a_token() -> None:
    estimates = learned(*[1] * 60, events=3)
    assert estimates.counted(MODEL, Size(4000), 50, Usage()).completion == 50


def test_a_prompt_the_engine_has_told_is_not_estimated() -> None:
    told = Usage(prompt=1234, cached=1000)
    assert Estimates().counted(MODEL, Size(4000), 7, told) == Usage(1234, 1000, 7)


def test_no_more_is_counted_than_could_be_answered() -> None:
    size = Size(4000, output_limit=4, answers=2)
    assert Estimates().counted(MODEL, size, 11, Usage()).completion == 8


def test_what_the_engine_said_itself_stands() -> None:
    said = exact(11, 22)
    assert Estimates().counted(MODEL, Size(4000), 500, said) == said


@pytest.mark.parametrize(
    ("usage", "weight", "charged"),
    [
        (exact(100, 20), 0.1, 120),
        (Usage(100, 80, 20, exact=True), 0.1, 48),
        (Usage(100, 81, 0, exact=True), 0.1, 28),
        (Usage(100, 100, 0, exact=True), 0.07, 7),  # 100 x 0.07 is 7.000000000000001
        (Usage(100, 80, 20, exact=True), 0, 40),
        (Usage(100, 80, 20, exact=True), 1, 120),
        (Usage(100, 500, 0, exact=True), 0, 0),
        (Usage(), 0.1, 0),
        (Usage(10**30, 0, -(10**29), exact=True), 0.1, 2**31),
        (Usage(5, 0, -50, exact=True), 0.1, 0),
        (Usage(-5, 0, 20, exact=True), 0.1, 20),
    ],
)
def test_cached_tokens_are_charged_at_their_weight(
    usage: Usage, weight: float, charged: int
) -> None:
    assert weighed(usage, weight) == charged
