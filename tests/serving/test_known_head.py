"""A head that was read once: what is taken for it is it, but for the length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.collector.known_head import body_of, head_of

NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12)
VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)
HEADERS = st.lists(st.tuples(NAMES, VALUES).filter(lambda h: h[0] != "content-length"), max_size=4)


def request(before, after, body, length=None):
    lines = [*before, ("Content-Length", str(len(body) if length is None else length)), *after]
    return b"POST /v1/events HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in lines).encode() + b"\r\n" + body


@given(HEADERS, HEADERS, st.binary(min_size=1, max_size=2000), st.binary(min_size=1, max_size=2000))
def test_the_next_body_is_found(before, after, body, other):
    known = head_of(request(before, after, body), b"key")
    assert known is not None and known.key == b"key"
    assert body_of(request(before, after, other), known) == other


@given(HEADERS, HEADERS, st.binary(min_size=1, max_size=300), st.integers(0, 600), st.integers(0, 2), st.binary(max_size=2))
def test_nothing_else_is_taken_for_it(before, after, body, at, size, noise):
    known = head_of(request(before, after, b"x"), b"")
    data = bytearray(request(before, after, body))
    at %= len(data)
    data[at : at + size] = noise
    found = body_of(bytes(data), known)
    if found is not None:
        head, digits = bytes(data)[: len(data) - len(found)], str(len(found)).encode()
        assert head == known.before + head[len(known.before) : len(head) - len(known.after)] + known.after
        assert head[len(known.before) : len(head) - len(known.after)].lstrip(b"0") == digits


@pytest.mark.parametrize("length", [0, 4, 6, 50, "5 ", "+5", "0x5"])
def test_a_wrong_length_is_left_to_the_parser(length):
    known = head_of(request([], [], b"12345"), b"")
    assert body_of(request([], [], b"12345", length), known) is None
    assert head_of(request([], [], b"12345", length), b"") is None


def test_what_is_not_one_whole_request_teaches_nothing():
    whole = request([], [], b"12345")
    assert head_of(whole + whole, b"") is None and head_of(whole[:-1], b"") is None and head_of(whole[:30], b"") is None
    assert body_of(whole + whole, head_of(whole, b"")) is None
