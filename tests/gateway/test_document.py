"""A text as plain values: scalars stay text, lines are known, and nothing is more than it seems."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.document import ConfigError, Document, listed, path_text


def test_scalars_stay_text_and_only_a_plain_null_is_null() -> None:
    document = Document("f", 'a: [1, 0x1, 2027-01-01, off, 1:2, ~, null, "null", ""]\nb:', {})
    text = ["1", "0x1", "2027-01-01", "off", "1:2", None, None, "null", ""]
    assert document.value == {"a": text, "b": None}


def test_an_error_has_the_line_of_the_nearest_thing_above_it() -> None:
    document = Document("f.yaml", "a:\n  b:\n  - c: 1\n", {})
    assert str(document.error(("a", "b", 0, "c"), "m")) == "f.yaml:3: a.b[0].c: m"
    assert str(document.error(("a", "b", 9), "m")) == "f.yaml:2: a.b[9]: m"
    assert str(document.error(("z",), "m")) == "f.yaml:1: z: m"
    assert str(document.error((), "m")) == "f.yaml:1: m"


def test_a_path_quotes_what_would_blur_it() -> None:
    assert path_text(("models", "a-1", "replicas", 0, "url")) == "models.a-1.replicas[0].url"
    assert path_text(("models", "a.b", "x")) == 'models["a.b"].x'
    assert path_text(("a\nb",)) == "['a\\nb']"


def test_what_came_from_the_environment_is_told_by_its_variable() -> None:
    document = Document("f", "a: {b: '${V}', c: sk-1}", {"V": "sk-1"})
    for path in (("a",), ("a", "b")):
        assert str(document.error(path, "no 'sk-1'")).endswith("no '${V}'")
    assert str(document.error(("a", "c"), "no 'sk-1'")).endswith("no 'sk-1'")


def test_variables_expand_in_values_only_and_are_remembered() -> None:
    document = Document("f", "${A}: x${A}$$y\nb: c", {"A": "1: [2"})
    assert document.value == {"${A}": "x1: [2$y", "b": "c"}
    assert document.variable(("${A}",)) == "A"
    assert document.variable(("b",)) is None


def test_a_deep_text_is_refused_before_the_parser_gives_up() -> None:
    with pytest.raises(ConfigError, match="nested too deep"):
        Document("f", "[" * 100_000, {})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\ta: 1", "f:1: a tab: indent with spaces"),
        ("---\na: 1\n---\nb: 2", "f:3: a second document begins here: wanted one, no ---"),
        ('a: 1\nsecret: "abc\nteams: {}\n', "f:2: a quote begins here and never ends"),
        ("a:\n  b: [c\nd: {}", "f:2: a [ begins here that no ] closes"),
        ("a: {b: 1\n", "f:1: a { begins here that no } closes"),
        ("a: 1\nb: [", "f:2: a [ or { begins here that nothing closes"),
        (
            "a: b: c",
            "f:1: a second : in one value, or a wrong indent; quote the value, or line the keys up",
        ),
        ("a: 1\nfoo\nb: 2", "f:2: wanted a key and its value: key: value"),
        ("a:\n  b: 1\n c: 2", "f:3: does not line up with what is above, or lacks a quote"),
        ("a: @x", "f:1: a character that no text begins with: put the text in quotes"),
        ("a: - b", "f:1: a list's - has to begin its own line"),
    ],
)
def test_what_is_no_yaml_is_told_in_words_with_the_line_where_it_begins(
    text: str, told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Document("f", text, {})
    assert str(caught.value) == told


def test_a_long_list_of_known_names_is_cut() -> None:
    assert listed([]) == "known: none"
    assert listed(["a", "b"]) == "known: a, b"
    assert listed(map(str, range(30))).endswith(", 19, …")


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"%@`#\n\t ,?$\\U0\x00"), max_size=40))
def test_no_text_raises_anything_but_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        Document("f", text, {})
