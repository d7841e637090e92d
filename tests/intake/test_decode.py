"""Control messages: what they mean, and that nothing but a DecodeError comes of anything else."""

import json
import math
import random

import pytest
from gpuwatch_hooks import wire
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuwatch.intake.decode import Bye, HelloMessage, MediaMessage, Numbered, VersionError, decode_message
from gpuwatch.state.records import DecodeError, Meta, Names, Scalar

HELLO = {
    "t": "hello",
    "wire": 1,
    "version": "0.1.0",
    "run": "digits",
    "token": "tok",
    "attempt_id": "a1",
    "rank": 1,
    "local_rank": 1,
    "world_size": 2,
    "python": "3.11.7",
    "torch": "2.13.0",
    "framework": "lightning",
    "program": "/home/somebody/secret-project/train.py",
    "clock": {"monotonic_ns": 123, "wall_ns": 456},
    "ring": {"id": (1 << 64) - 1, "slots": 512, "slot_bytes": 16384},
    "ns_pid": 7,
    "uid": 0,
    "device": "cuda:1",
}
EXAMPLES = [
    HELLO,
    {"t": "names", "n": 1, "table": "tensor", "version": 1, "first": 0, "names": ["a.weight", "b"], "numels": [4, 2]},
    {"t": "scalars", "n": 2, "rows": [["loss", 1, 0.5, 99], ["Точность/val", 2, 1, 100]]},
    {"t": "media", "n": 3, "kind": "text", "tag": "notes", "step": 1, "shape": [], "bytes": 12, "monotonic_ns": 5},
    {"t": "meta", "n": 4, "facts": {"precision": "bf16", "lr": 0.1, "epochs": 3, "amp": True, "none": None}},
    {"t": "bye"},
]


def decode(tree):
    return decode_message(tree if isinstance(tree, bytes) else json.dumps(tree).encode())


def changed(tree, **fields):
    return {**tree, **fields}


def test_hello():
    message = decode(HELLO)
    assert isinstance(message, HelloMessage)
    assert (message.slot_count, message.slot_bytes) == (512, 16384)
    hello = message.hello
    assert (hello.run, hello.rank, hello.world_size, hello.ring_id) == ("digits", 1, 2, (1 << 64) - 1)
    assert (hello.monotonic_ns, hello.wall_ns, hello.device, hello.ns_pid) == (123, 456, "cuda:1", 7)


def test_hello_keeps_the_programs_name_and_not_its_folder():
    assert decode(HELLO).hello.program == "train.py"


def test_hello_may_leave_out_what_is_not_known_yet():
    least = {"t": "hello", "wire": 1, "run": "r", "clock": HELLO["clock"], "ring": HELLO["ring"], "torch": None, "device": 3}
    hello = decode(least).hello
    assert (hello.torch, hello.device, hello.world_size) == ("", "3", 1)


def test_names():
    assert decode(EXAMPLES[1]) == Numbered(1, Names("tensor", 1, 0, ("a.weight", "b"), (4, 2)))


def test_scalars_keep_tags_of_any_script_and_whole_numbers_become_floats():
    assert decode(EXAMPLES[2]).record == (Scalar("loss", 1, 0.5, 99), Scalar("Точность/val", 2, 1.0, 100))


def test_scalars_carry_what_a_diverged_run_reports():
    rows = b'{"t": "scalars", "n": 1, "rows": [["a", 1, NaN, 1], ["b", 1, Infinity, 1], ["c", 1, -Infinity, 1]]}'
    values = [scalar.value for scalar in decode(rows).record]
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf]


def test_media():
    assert decode(EXAMPLES[3]) == MediaMessage(3, "text", "notes", 1, (), 12, 5)


def test_meta_leaves_out_what_has_no_value():
    assert decode(EXAMPLES[4]).record == Meta({"precision": "bf16", "lr": 0.1, "epochs": 3, "amp": True})


def test_bye():
    assert decode(EXAMPLES[5]) == Bye()


def test_fields_of_a_newer_hook_are_passed_over():
    assert decode(changed(HELLO, colour="blue")).hello.run == "digits"


@pytest.mark.parametrize("version", [0, 2, 99, 10**30])
def test_another_wire_version_is_named_before_anything_else_is_judged(version):
    with pytest.raises(VersionError, match="wire version"):
        decode({"t": "hello", "wire": version, "entirely": "different"})


HOSTILE = {
    "nothing": b"",
    "not text": b"\xff\xfe\x00",
    "not json": b"{",
    "an array": b"[]",
    "a number": b"1",
    "null": b"null",
    "no type": b"{}",
    "unknown type": {"t": "exec"},
    "type is a list": {"t": ["hello"]},
    "type is an object": {"t": {}},
    "daemon's own verb": {"t": "welcome"},
    "depth": b"[" * 60_000,
    "objects in depth": b'{"t":' * 12_000,
    "digits": b'{"t": "scalars", "n": ' + b"9" * 60_000 + b"}",
    "n is zero": {"t": "meta", "n": 0, "facts": {}},
    "n is negative": {"t": "meta", "n": -1, "facts": {}},
    "n is huge": {"t": "meta", "n": 1 << 60, "facts": {}},
    "n is text": {"t": "meta", "n": "1", "facts": {}},
    "n is a float": {"t": "meta", "n": 1.0, "facts": {}},
    "n is a bool": {"t": "meta", "n": True, "facts": {}},
    "a value beyond float": b'{"t": "scalars", "n": 1, "rows": [["a", 1, ' + b"9" * 400 + b", 1]]}",
    "a row too short": {"t": "scalars", "n": 1, "rows": [["a", 1, 1.0]]},
    "a row too long": {"t": "scalars", "n": 1, "rows": [["a", 1, 1.0, 1, 1]]},
    "a step below zero": {"t": "scalars", "n": 1, "rows": [["a", -1, 1.0, 1]]},
    "a step beyond all": {"t": "scalars", "n": 1, "rows": [["a", 1 << 50, 1.0, 1]]},
    "a tag that is none": {"t": "scalars", "n": 1, "rows": [[None, 1, 1.0, 1]]},
    "an endless tag": {"t": "scalars", "n": 1, "rows": [["a" * 5000, 1, 1.0, 1]]},
    "rows are an object": {"t": "scalars", "n": 1, "rows": {}},
    "no such table": {"t": "names", "n": 1, "table": "x", "version": 1, "first": 0, "names": []},
    "sizes do not match": {"t": "names", "n": 1, "table": "tensor", "version": 1, "first": 0, "names": ["a"], "numels": [1, 2]},
    "first is negative": {"t": "names", "n": 1, "table": "tensor", "version": 1, "first": -5, "names": ["a"]},
    "first is far away": {"t": "names", "n": 1, "table": "tensor", "version": 1, "first": 1 << 40, "names": ["a"]},
    "media beyond the limit": changed(EXAMPLES[3], bytes=wire.MAX_MEDIA_BYTES + 1),
    "media of no kind": changed(EXAMPLES[3], kind="exe"),
    "media of many dimensions": changed(EXAMPLES[3], shape=[1] * 9),
    "media of a negative side": changed(EXAMPLES[3], shape=[-1]),
    "facts in depth": {"t": "meta", "n": 1, "facts": {"a": {"b": 1}}},
    "facts without end": {"t": "meta", "n": 1, "facts": {str(i): i for i in range(300)}},
    "rank outside its world": changed(HELLO, rank=2),
    "a negative rank": changed(HELLO, rank=-1),
    "no world": changed(HELLO, world_size=0),
    "no ring": {key: value for key, value in HELLO.items() if key != "ring"},
    "a ring without slots": changed(HELLO, ring={"id": 1, "slots": 0, "slot_bytes": 4096}),
    "a ring beyond the limits": changed(HELLO, ring={"id": 1, "slots": 1 << 20, "slot_bytes": 1 << 30}),
    "a ring id beyond 64 bits": changed(HELLO, ring={"id": 1 << 64, "slots": 8, "slot_bytes": 4096}),
    "a clock before time": changed(HELLO, clock={"monotonic_ns": -1, "wall_ns": 0}),
    "wire is a float": changed(HELLO, wire=1.5),
    "lone surrogate as a key": b'{"t": "meta", "n": 1, "facts": {"\\ud800": 1}, "\\udfff": 2}',
    "more than a message": b'{"t": "bye"' + b" " * wire.MAX_MESSAGE_BYTES + b"}",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_messages_are_refused(data):
    with pytest.raises(DecodeError) as refusal:
        decode(data)
    assert len(str(refusal.value)) <= wire.MAX_NAME_CHARS
    assert str(refusal.value).isprintable()


def test_lone_surrogates_and_controls_never_reach_a_name():
    rows = b'{"t": "scalars", "n": 1, "rows": [["a\\ud800b\\u0000c\\u202ed\\n", 1, 1.0, 1]]}'
    (scalar,) = decode(rows).record
    assert scalar.tag == "a_b_c_d_"
    scalar.tag.encode()


def outcome(data):
    """The message, or None for a DecodeError; anything else is the test's failure."""
    try:
        return decode_message(data)
    except DecodeError:
        return None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(EXAMPLES), st.data())
def test_any_value_in_any_field(example, data):
    field = data.draw(st.sampled_from(sorted(example)))
    outcome(json.dumps({**example, field: data.draw(json_values)}).encode(errors="surrogatepass")[: wire.MAX_MESSAGE_BYTES])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes(data):
    outcome(data)


def mutate(data, chance):
    """`data` with a few bytes changed, cut, doubled or put in: what a fuzzer does."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(data) + 1)
        choice = chance.randrange(5)
        if choice == 0 and at < len(data):
            data[at] = chance.randrange(256)
        elif choice == 1:
            del data[at : at + chance.randint(1, 9)]
        elif choice == 2:
            data[at:at] = chance.choice([b"9" * 30, b"[[[[", b'"', b"\\ud800", b"NaN", b"-", b"1e999", b"null", b"{", b"\x00"])
        elif choice == 3:
            data[at:at] = data[at : at + 20]
        elif at < len(data):
            data[at] ^= 1 << chance.randrange(8)
    return bytes(data)


def test_mutated_messages_give_a_message_or_a_decode_error():
    chance = random.Random(20261123)
    originals = [json.dumps(example).encode() for example in EXAMPLES]
    taken = sum(outcome(mutate(chance.choice(originals), chance)) is not None for _ in range(20_000))
    assert 200 < taken < 19_800, "the mutator is too wild or too tame to test anything"
