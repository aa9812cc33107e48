import itertools
import time
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_agents.protocol import Headers
from asgi_agents.protocol.headers import decode_extension, encode_extension

steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

RAW = [(b"X-One", b"1"), (b"accept", b"a"), (b"x-one", b"2"), (b"Accept", b"b")]

raw_headers = st.lists(st.tuples(st.binary(min_size=1, max_size=4), st.binary(max_size=6)), max_size=6)


@pytest.mark.parametrize("name", ["x-one", "X-ONE", "X-One"])
def test_the_first_value_is_found_whatever_the_case(name: str) -> None:
    headers = Headers.from_raw(RAW)

    assert headers.first(name) == "1"
    assert headers[name] == ("1", "2")
    assert name in headers


def test_values_of_one_name_keep_the_order_in_which_they_came() -> None:
    headers = Headers.from_raw(RAW)

    assert dict(headers) == {"x-one": ("1", "2"), "accept": ("a", "b")}
    assert list(headers) == ["x-one", "accept"]
    assert len(headers) == 2


def test_fields_given_in_several_spellings_are_one_field() -> None:
    assert Headers({"X-One": ["1"], "x-one": ("2", "3")}) == {"x-one": ["1", "2", "3"]}


@pytest.mark.parametrize("headers", [Headers(), Headers({}), Headers.from_raw([])], ids=["none", "empty", "raw"])
def test_no_headers_are_an_empty_mapping(headers: Headers) -> None:
    assert headers == {}
    assert not headers
    assert headers.first("host") is None
    with pytest.raises(KeyError):
        headers["host"]


def test_a_field_without_values_has_no_first_one() -> None:
    assert Headers({"x": []}).first("x") is None


@pytest.mark.parametrize("built", [False, True])
def test_a_name_that_is_not_there_is_none(built: bool) -> None:
    headers = Headers.from_raw(RAW)
    if built:
        len(headers)

    assert headers.first("x-two") is None
    assert "x-two" not in headers


def test_bytes_that_are_no_text_reach_the_agent_as_latin_1() -> None:
    every_byte = bytes(range(256))
    headers = Headers.from_raw([(b"x-odd", every_byte)])

    value = headers.first("x-odd")

    assert value is not None
    assert value.encode("latin-1") == every_byte
    assert headers["x-odd"] == (value,)


def test_a_value_that_is_not_utf_8_is_never_dropped_or_emptied() -> None:
    headers = Headers.from_raw([(b"authorization", b"\xff\xfe\x80")])

    assert headers.first("authorization") == "\xff\xfe\x80"
    assert headers == {"authorization": ["\xff\xfe\x80"]}


@steady
@given(raw_headers)
def test_no_pair_of_a_raw_list_is_lost(raw: list[tuple[bytes, bytes]]) -> None:
    headers = Headers.from_raw(raw)

    pairs = [(name, value) for name, values in headers.items() for value in values]

    assert sorted(pairs) == sorted((name.lower().decode("latin-1"), value.decode("latin-1")) for name, value in raw)


@steady
@given(raw_headers, st.text(max_size=4))
def test_first_says_the_same_before_and_after_the_dictionary_is_built(
    raw: list[tuple[bytes, bytes]], asked: str
) -> None:
    for name in (asked, *(name.decode("latin-1") for name, _ in raw)):
        headers = Headers.from_raw(raw)
        before = headers.first(name)
        len(headers)

        assert headers.first(name) == before
        assert headers.get(name, (None,))[0] == before


@pytest.mark.parametrize("built", [False, True])
def test_a_name_beyond_latin_1_is_no_other_header(built: bool) -> None:
    headers = Headers.from_raw([(b"?", b"secret")])
    if built:
        len(headers)

    assert headers.first("\N{EURO SIGN}") is None


def test_later_changes_to_the_raw_list_do_not_show() -> None:
    raw = [(b"x", b"1")]
    headers = Headers.from_raw(raw)
    raw.append((b"x", b"2"))

    assert headers == {"x": ["1"]}


def test_later_changes_to_the_given_mapping_do_not_show() -> None:
    fields = {"x": ["1"]}
    headers = Headers(fields)
    fields["x"].append("2")
    fields["y"] = []

    assert headers == {"x": ["1"]}


def test_headers_are_immutable() -> None:
    headers = Headers({"x": ["1"]})

    assert not hasattr(headers, "__setitem__")
    assert not hasattr(headers, "__dict__")
    assert isinstance(headers["x"], tuple)


def test_a_string_in_place_of_a_list_of_values_is_refused() -> None:
    wrong: dict[str, Sequence[str]] = {"x-user": "alice"}

    with pytest.raises(TypeError, match=r"'x-user'.*list of values.*'alice'"):
        Headers(wrong)


def test_equality_is_by_content_whatever_they_were_made_from() -> None:
    assert Headers.from_raw(RAW) == Headers({"accept": ["a", "b"], "x-one": ["1", "2"]})
    assert Headers({"x": ["1", "2"]}) != Headers({"x": ["2", "1"]})
    assert Headers({"x": ["1"]}) != {"x": ["2"]}
    assert Headers({"x": ["1"]}) != [("x", "1")]


@steady
@given(st.permutations([("a", ("1",)), ("b", ("2",)), ("c", ("3", "4"))]))
def test_equal_headers_have_equal_hashes(fields: list[tuple[str, tuple[str, ...]]]) -> None:
    one, other = Headers({"a": ["1"], "b": ["2"], "c": ["3", "4"]}), Headers(dict(fields))

    assert one == other
    assert hash(one) == hash(other)


def test_the_representation_has_names_and_never_values() -> None:
    headers = Headers({"Authorization": ["Bearer hunter2"], "accept": ["*/*"]})

    assert repr(headers) == "Headers(['accept', 'authorization'])"


def test_only_headers_are_an_extension_of_the_encoding() -> None:
    assert encode_extension(Headers({"X": ["1"]})) == {"x": ("1",)}
    with pytest.raises(NotImplementedError, match="complex"):
        encode_extension(1j)


def test_only_headers_are_an_extension_of_the_decoding() -> None:
    assert decode_extension(Headers, {"X": ["1"]}) == Headers({"x": ["1"]})
    with pytest.raises(NotImplementedError, match="complex"):
        decode_extension(complex, {})
    with pytest.raises(ValueError, match="headers"):
        decode_extension(Headers, {"x": "1"})


def test_a_name_in_every_spelling_takes_time_in_proportion_to_their_number() -> None:
    """A client of a served agent can send 600,000 of them in a frame; each used to copy the values before it."""

    def seconds(letters: int) -> float:
        spelt = {"".join(name): ["v"] for name in itertools.product(*[("a", "A")] * letters)}
        began = time.process_time()
        headers = Headers(spelt)
        taken = time.process_time() - began
        assert headers["a" * letters] == ("v",) * 2**letters
        return taken

    # 64 times as many. In proportion to their square it would be 4,096 times as long.
    assert seconds(17) < 1000 * max(seconds(11), 0.001)


_FIELDS = st.tuples(st.sampled_from([b"cookie", b"Cookie", b"x", b"X", b"host", b"\xc0", b"1"]), st.binary(max_size=3))


@steady
@given(st.lists(_FIELDS, max_size=5), st.booleans())
def test_the_fields_of_a_request_are_those_of_its_raw_ones(raw: list[tuple[bytes, bytes]], whole: bool) -> None:
    request, plain = Headers.of_request(raw, whole=whole), Headers.from_raw(raw)
    names = ["cookie", "x", "HOST", "\xc0", "1", "none"]
    assert [request.first(name) for name in names] == [plain.first(name) for name in names]
    assert list(request.items()) == list(plain.items())
    assert request.cookies_joined == (sum(name.lower() == b"cookie" for name, _ in raw) > 1)
