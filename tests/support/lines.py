"""Lines that producers might write, as bytes: fine ones, odd ones, broken ones.

Members are put together as text, not through an encoder, so that what no encoder
writes comes up too: equal keys twice, escapes in keys, numbers of any form.
"""

from __future__ import annotations

import random
import string

from hypothesis import strategies as st

CUSTOMER = "a5366a1f-519f-4d0c-9c28-b4f787be37ed"
GOOD = (
    b'{"name":"n","external_customer_id":"c"}',
    b'{"name":"n","external_customer_id":"c","external_id":"e","timestamp":"2026-01-01T00:00:00Z"}',
    b'{"name":"n","external_customer_id":"c","metadata":{"tokens":77,"model":"m","x":1.50,"ok":true}}',
    b'{"name":"n","external_customer_id":"c","metadata":{"_cost":{"amount":0.25,"currency":"usd"}}}',
    b'{"name":"n","customer_id":"%b","more":{"a":[1.0,{}]}}' % CUSTOMER.encode(),
)
"""Lines that Polar takes, for the neighbours of odd ones."""

_hard = random.Random(7)
_HARD_TO_COMPRESS = "".join(_hard.choices(string.ascii_letters + string.digits, k=4000))


def nested(levels: int, inner: bytes = b"") -> bytes:
    """Return arrays within arrays."""
    return b"[" * levels + inner + b"]" * levels


NUMBERS = [
    *(b"0", b"-0", b"1", b"-1", b"77", b"007", b"+1", b"1.", b".5", b"-", b"0x1", b"1_0", b"1e5", b"1E+2"),
    *(b"0.1", b"0.25", b"0.30000000000000004", b"0.1234567890123", b"99999", b"100000", b"-99999.5"),
    *(b"12345.678901234567", b"123456.5", b"1e-7", b"1e-13", b"0.000000000001", b"0.0000000000001", b"-0.0"),
    *(b"1.0", b"1.50", b"5.0000000000000000000000", b"9007199254740993", b"1e400", b"-1e400", b"1e-400"),
    *(b"1.7976931348623157e308", b"1.7976931348623159e308", b"123456789012345678901234567890"),
    *(b"9" * 310, b"1" * 4300, b"-" + b"1" * 4300, b"1" * 4301, b"-" + b"1" * 4301, b"1" * 4301 + b".0"),
    *(b"NaN", b"Infinity", b"-Infinity", b"nan", b"1796000000", b"1696000000", b"1696000000123", b"1e10"),
]

TEXTS = [
    *(b'""', b'"a"', b'"usd"', b'"xusd"', b'"eur"', b'"0.1"', b'"1e2"', b'"NaN"', b'" "', b'"true"', b'"1"'),
    *(b'"\\u0000"', b'"a\\u0000b"', b'"\\\\u0000"', b'"\\u0001"', b'"\x00"', b'"\t"', b'"\x1f"', b'"\x7f"'),
    *(b'"\\ud800"', b'"\\udc00"', b'"\\ud83d\\ude00"', b'"\\ude00\\ud83d"', b'"\\uD800\\u0041"'),
    *(b'"\\x"', b'"\\u12"', b'"\\u00zz"', b'"\\n\\t\\/\\"\\\\"', b'"unended', b'"\\"', b"'a'"),
    *(
        b'"\xc3\xa9"',
        b'"\xff"',
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b'"\xf0\x9f\x98\x80"',
        b'"\xf4\x90\x80\x80"',
    ),
    *(
        b'"\xef\xbb\xbf"',
        b'"}{"',
        b'"},{"',
        b'"external_id"',
        b'"\\u0065xternal_id"',
        b'"' + b"7" * 5000 + b'"',
    ),
    *(b'"' + b"n" * size + b'"' for size in (128, 129, 500, 501, 600, 601, 5000)),
    *(b'"' + "é".encode() * size + b'"' for size in (128, 129, 500, 501, 600, 601)),
    *(b'"' + _HARD_TO_COMPRESS[:size].encode() + b'"' for size in (600, 2600, 2750, 4000)),
    *(b'"' + "😀".encode() * size + b'"' for size in (128, 129, 500, 600)),
]

IDS = [
    *(b"null", b'""', b'"e1"', b'"e2"', b'"\\u0065"', b'"01932f5e-0000-7000-8000-000000000000"'),
    b'"' + CUSTOMER.encode() + b'"',
    b'"' + CUSTOMER.upper().encode() + b'"',
    b'"' + CUSTOMER.replace("-", "").encode() + b'"',
    b'"urn:uuid:' + CUSTOMER.encode() + b'"',
    b'"{' + CUSTOMER.encode() + b'}"',
    b'"a5366a1f-519f-1d0c-9c28-b4f787be37ed"',
    b'"a5366a1f-519f-4d0c-7c28-b4f787be37ed"',
    b'"b5366a1f-519f-4d0c-9c28-b4f787be37ed"',
]

TIMES = [
    *(b"2026-01-31T12:00:00Z", b"2026-01-31t12:00:00z", b"2026-01-31 12:00:00Z", b"2026-01-31_12:00:00Z"),
    *(b"2026-01-31T12:00Z", b"2026-01-31T12Z", b"2026-01-31T12:00:00", b"2026-01-31", b"20260131T120000Z"),
    *(b"2026-01-31T12:00:00.1Z", b"2026-01-31T12:00:00,5Z", b"2026-01-31T12:00:00.123456789123Z"),
    *(b"2026-01-31T12:00:00.Z", b"2026-01-31T24:00:00Z", b"2026-01-31T23:59:60Z", b"2026-02-29T00:00:00Z"),
    *(
        b"2024-02-29T00:00:00Z",
        b"2026-01-31T12:00:00+09:00",
        b"2026-01-31T12:00:00+0900",
        b"2000-01-01T00:00:00Z",
    ),
    *(b"2026-01-31T12:00:00+09", b"2026-01-31T12:00:00-00:00", b"2026-01-31T12:00:00+23:59"),
    *(
        b"2026-01-31T12:00:00+24:00",
        b"2026-01-31T12:00:00+09:60",
        b"2026-01-31T12:00:00 Z",
        b" 2026-01-31T12:00:00Z",
    ),
    *(
        b"0001-01-01T00:00:00Z",
        b"0001-01-01T00:00:00+14:00",
        b"0001-01-02T00:00:00+14:00",
        b"0000-01-01T00:00:00Z",
    ),
    *(
        b"0002-01-01T00:00:00+23:59",
        b"9999-12-31T23:59:59Z",
        b"9999-12-31T23:59:59-12:00",
        b"10000-01-01T00:00:00Z",
    ),
    *(
        b"2026-11-23T11:59:59.999Z",
        b"2026-11-23T12:00:00Z",
        b"2026-11-23T12:00:00.001Z",
        b"2026-11-23T21:00:00+09:00",
    ),
    *(
        b"2026-11-23T12:00:30Z",
        b"2026-11-23T12:01:00.000001Z",
        b"1999-12-31T19:00:00-05:00",
        b"2026-W05-6T12:00:00Z",
    ),
    *(
        b"1696000000",
        b"1696000000.5",
        b"1696000000123",
        b"-1",
        b"1e9",
        b"",
        b"now",
        b"2026-01-31T12:00:00\\u005a",
    ),
]

ODD = [
    *(
        b"null",
        b"true",
        b"false",
        b"True",
        b"None",
        b"{}",
        b"[]",
        b"[1,]",
        b'{"a":1,}',
        b'{"a" 1}',
        b"",
        b"{1:2}",
    ),
    *(
        b'{"a":{"b":[null,1.0,"x"]}}',
        b'["]",1]',
        b'{"\\ud800":1}',
        b'{"\\u0000":1}',
        b'{"\xff":1}',
        b'{"a\tb":1}',
    ),
    *(nested(3), nested(300), nested(300, b'{"a":1}'), nested(1100), nested(2100), nested(21_000)),
    *(b'{"a":' * 30 + b"1" + b"}" * 30, b"[" * 50, b"]", b"}", b"// no", b"1 2", b'"a""b"', b"1,2"),
]

_numbers = (
    st.sampled_from(NUMBERS)
    | st.integers().map(lambda number: b"%d" % number)
    | st.decimals(
        allow_nan=False, allow_infinity=False, places=13, min_value=-200_000, max_value=200_000
    ).map(lambda number: b"%b" % str(number).encode())
)
_texts = st.sampled_from(TEXTS)
_anything = st.one_of(_numbers, _texts, st.sampled_from(ODD), st.sampled_from(IDS))
_blanks = st.sampled_from([b"", b"", b"", b" ", b"\t", b"\r", b"  "])


@st.composite
def _spelled(draw: st.DrawFn, key: str) -> bytes:
    """Return a key in quotes, in most cases as everybody writes it."""
    if draw(st.integers(0, 9)) or not key:
        return b'"' + key.encode() + b'"'
    place = draw(st.integers(0, len(key) - 1))
    escape = draw(st.sampled_from(["\\u%04x", "\\u%04X"])) % ord(key[place])
    return b'"' + (key[:place] + escape + key[place + 1 :]).encode() + b'"'


@st.composite
def _object(draw: st.DrawFn, fields: dict[str, st.SearchStrategy[bytes]], most: int) -> bytes:
    """Return an object of some of these fields, in any order, some of them twice."""
    keys = draw(st.lists(st.sampled_from(sorted(fields)), max_size=most))
    return draw(_joined([(key, fields[key]) for key in keys]))


@st.composite
def _joined(draw: st.DrawFn, members: list[tuple[str, st.SearchStrategy[bytes]]]) -> bytes:
    texts = [
        b"%b%b:%b%b" % (draw(_blanks), draw(_spelled(key)), draw(_blanks), draw(value))
        for key, value in members
    ]
    return b"{%b}" % b",".join(texts)


_cost = st.one_of(
    st.builds(
        lambda amount, currency: b'{"amount":%b,"currency":%b}' % (amount, currency),
        _numbers | _texts,
        st.sampled_from([b'"usd"', b'"usd"', b'"usd"', b'"xusd"', b'"eur"', b"null"]),
    ),
    _object({"amount": _anything, "currency": _texts, "x": _anything}, 4),
    _anything,
)
_LLM = {
    "vendor": _texts,
    "model": _texts,
    "input_tokens": _numbers,
    "output_tokens": _numbers,
    "total_tokens": _numbers,
}
_llm = st.one_of(
    st.just(b'{"vendor":"v","model":"m","input_tokens":1,"output_tokens":2,"total_tokens":3}'),
    _joined(list(_LLM.items())),
    _object(
        {
            **_LLM,
            "prompt": _anything,
            "response": _anything,
            "cached_input_tokens": _anything,
            "x": _anything,
        },
        8,
    ),
    _anything,
)
_metadata = st.one_of(
    _object({"a": _numbers, "b": _texts, "": _anything, "c": st.sampled_from([b"true", b"1", b'"x"'])}, 3),
    _object({"_cost": _cost, "_llm": _llm, "a": _numbers, "external_id": _texts, "x": _cost}, 3),
    _anything,
)
_timestamp = st.one_of(
    st.sampled_from(TIMES).map(lambda text: b'"%b"' % text),
    st.datetimes().map(lambda moment: b'"%bZ"' % moment.isoformat().encode()),
    _anything,
)
_FIELDS: dict[str, st.SearchStrategy[bytes]] = {
    "name": _texts | _anything,
    "external_customer_id": _texts | st.sampled_from(IDS) | _anything,
    "customer_id": st.sampled_from(IDS) | _anything,
    "external_id": st.sampled_from(IDS) | _anything,
    "timestamp": _timestamp,
    "parent_id": st.sampled_from(IDS) | _anything,
    "member_id": st.sampled_from(IDS) | _anything,
    "external_member_id": st.sampled_from(IDS) | _anything,
    "organization_id": st.sampled_from(IDS) | _anything,
    "metadata": _metadata,
    "x": _anything,
    "": _anything,
    "source": _anything,
}
_USUAL = {
    "name": st.just(b'"n"'),
    "external_customer_id": st.just(b'"c"'),
    "customer_id": st.just(b'"' + CUSTOMER.encode() + b'"'),
}


def costs() -> st.SearchStrategy[bytes]:
    """Return what may stand under `metadata._cost`, most of it nearly fine."""
    return _cost


def llms() -> st.SearchStrategy[bytes]:
    """Return what may stand under `metadata._llm`, most of it nearly fine."""
    return _llm


@st.composite
def fine_lines(draw: st.DrawFn) -> bytes:
    """Return an event that is fine, and not ahead of noon: what differs is what it lacks."""
    members = [
        draw(st.sampled_from([b'"name":"n"', b'"n\\u0061me": "n"'])),
        draw(
            st.sampled_from(
                [
                    b'"external_customer_id":"c"',
                    b'"customer_id":"%b"' % CUSTOMER.encode(),
                    b'"external_customer_id":"c","customer_id":"%b"' % CUSTOMER.encode(),
                ]
            )
        ),
    ]
    members += draw(
        st.lists(
            st.one_of(
                st.sampled_from([b"null", b'""', b'"e"', b'"\\u0065"']).map(b'"external_id":%b'.__mod__),
                st.sampled_from([b'"external\\u005fid":""', b'"external\\u005fid":"e"']),
                st.sampled_from([b'"2026-01-01T00:00:00Z"', b'"2000-01-01 00:00Z"', b"1.0e9"]).map(
                    b'"timestamp":%b'.__mod__
                ),
                st.sampled_from(
                    [b'"metadata":{"external_id":"m","a":1.50}', b'"x":"external_id"', b'"x":NaN']
                ),
            ),
            max_size=3,
        )
    )
    return b"{%b}" % draw(st.sampled_from([b",", b" , "])).join(draw(st.permutations(members)))


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """Return one line, without its newline: an event, in most cases nearly a fine one."""
    members = [("name", _USUAL["name"])]
    who = draw(st.sampled_from(["external_customer_id", "external_customer_id", "customer_id"]))
    members.append((who, _USUAL[who]))
    if not draw(st.integers(0, 9)):
        members.pop(draw(st.integers(0, 1)))
    keys = draw(st.lists(st.sampled_from(sorted(_FIELDS)), max_size=4))
    members += [(key, _FIELDS[key]) for key in keys]
    line = draw(_joined(draw(st.permutations(members))))
    if not draw(st.integers(0, 7)):
        place = draw(st.integers(0, len(line)))
        cut = draw(st.integers(0, 1))
        wedge = draw(
            st.sampled_from([b"", b" ", b",", b"}", b"{", b'"', b"\\", b"\x00", b"\xff", b"]", b"\r"])
        )
        line = line[:place] + wedge + line[place + cut :]
    return line


def whole_lines() -> st.SearchStrategy[bytes]:
    """Return lines as the framing hands them on: any kind, blank ones too."""
    return st.one_of(
        lines(),
        lines(),
        st.sampled_from(GOOD),
        st.sampled_from(GOOD),
        st.sampled_from(
            [b"", b" ", b"\r", b"null", b"[]", b"1", b'"a"', b"{}", b"{}{}", b"\xef\xbb\xbf{}", b"\xff"]
        ),
        st.builds(b"%b%b%b".__mod__, st.tuples(_blanks, st.sampled_from(GOOD), _blanks)),
        st.builds(lambda one, two: one + b" " + two, st.sampled_from(GOOD), st.sampled_from(GOOD)),
    )
