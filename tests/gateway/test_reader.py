"""Plain values as nouns: what a message shows, and what it must not."""

import pytest

from gateway.document import ConfigError, Document
from gateway.reader import Reader
from gateway.settings import Bounds, Caps, Model, Override, Team, Timeouts


def reader(text: str, **environ: str) -> tuple[Reader, Document]:
    document = Document("f", text, environ)
    return Reader(document), document


def test_a_noun_takes_its_defaults_for_what_is_not_given() -> None:
    read, document = reader("header: 1KiB")
    assert read.noun(Bounds, document.value, ()) == Bounds(header=1024)


def test_an_override_keeps_only_what_is_given_and_types_it() -> None:
    read, document = reader("request: {body: 1KiB, media: {parts: 3}}")
    team = read.noun(Team, document.value, ())
    assert team.request == Override({"body": 1024, "media": Override({"parts": 3})})


def test_a_model_lies_over_the_settings_of_the_gateway() -> None:
    read, document = reader("timeouts: {stall: 1s}")
    read.over = {Timeouts: Timeouts(tls=9.0), Caps: Caps(n=3)}
    model = read.noun(Model, document.value, ())
    assert model.timeouts == Timeouts(tls=9.0, stall=1.0)
    assert model.request == Caps(n=3)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("n: sk-1", "given 'sk-1'"),
        ("n: " + "a" * 50, "given '" + "a" * 40 + "…'"),
        ("n: ${V}", "given the value of ${V}"),
        ("body: ${V}", "KiB, 32MiB or 1GiB"),
        ("n: user@host", "given a value with an @"),
        ("body: user@host", "KiB, 32MiB or 1GiB"),
        ('n: "\\e[1m"', r"given '\x1b[1m'"),
        ("n: {}", "given a mapping"),
        ("n: []", "given a list"),
        ("n: null", "given nothing"),
    ],
)
def test_a_message_shows_a_value_only_where_it_may(text: str, shown: str) -> None:
    read, document = reader(text, V="hunter2")
    with pytest.raises(ConfigError) as caught:
        read.noun(Caps, document.value, ())
    assert str(caught.value).endswith(shown)


@pytest.mark.parametrize("text", ["n:sk-1", "{n:sk-1}", "{x:sk-1}"])
def test_a_blank_that_is_missing_is_told_without_what_follows(text: str) -> None:
    """YAML takes `secret:abc` for one word, and the word for a key."""
    read, document = reader(text)
    with pytest.raises(ConfigError, match=r"[nx]: a blank is missing after its colon$"):
        read.noun(Caps, document.value, ())


@pytest.mark.parametrize("text", ["yes", "1", "0", "True", "''"])
def test_true_and_false_are_the_only_booleans(text: str) -> None:
    read, document = reader(f"beam_search: {text}")
    with pytest.raises(ConfigError, match="wanted true or false"):
        read.noun(Caps, document.value, ())
