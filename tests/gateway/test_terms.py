"""The shared nouns: who may use what, and how repeated header fields are noticed."""

from gateway.terms import Head, Principal, fields_of


def test_a_key_without_a_list_may_use_every_model_and_one_with_an_empty_list_none() -> None:
    assert Principal("ann", "search").may_use("anything")
    assert Principal("ann", "search", frozenset({"llama"})).may_use("llama")
    assert not Principal("ann", "search", frozenset({"llama"})).may_use("other")
    assert not Principal("ann", "search", frozenset()).may_use("llama")


def test_fields_sent_once_are_not_repeated() -> None:
    assert fields_of([(b"a", b"1"), (b"b", b"2")]) == ({b"a": b"1", b"b": b"2"}, frozenset())
    assert fields_of([]) == ({}, frozenset())


def test_a_field_sent_twice_is_told_even_where_its_values_are_equal() -> None:
    fields, repeated = fields_of([(b"a", b"1"), (b"b", b"2"), (b"a", b"1")])
    assert (fields[b"b"], repeated) == (b"2", frozenset({b"a"}))


def test_a_head_reads_any_byte_and_a_missing_field_as_nothing() -> None:
    head = Head("POST", "/", {b"a": b"\xe9"})
    assert (head.get(b"a"), head.get(b"b")) == ("é", "")
