"""The outbox: bounded in count and bytes, every loss counted with its reason, every message within the wire's limits."""

import json
import threading

import pytest
from gpuwatch_hooks import kept, wire
from gpuwatch_hooks import outbox as outbox_module
from gpuwatch_hooks.outbox import Outbox
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture
def outbox():
    return Outbox()


def _bodies(outbox, kind=None):
    outbox.seal()
    bodies = [json.loads(message.payload) for message in outbox.unacknowledged(0)]
    return [body for body in bodies if kind in (None, body["t"])]


def _facts(outbox):
    return {name: value for body in _bodies(outbox, "meta") for name, value in body["facts"].items()}


def test_scalars_over_the_bound_drop_the_oldest_and_are_counted(outbox):
    for step in range(outbox_module.MAX_WAITING_SCALARS + 100):
        outbox.put_scalar("loss", step, 1.0)
    outbox.collect()
    rows = [row for body in _bodies(outbox, "scalars") for row in body["rows"]]
    assert len(rows) == outbox_module.MAX_WAITING_SCALARS
    assert rows[-1][1] == outbox_module.MAX_WAITING_SCALARS + 99
    assert outbox.dropped == {"scalars_waiting": 100}
    assert _facts(outbox) == {"outbox_dropped": 100, "outbox_dropped_scalars_waiting": 100}


def test_drops_are_exact_with_many_threads(outbox):
    """Serial numbers are taken by one atomic step each, so that no lost update can hide a loss."""
    each = 3 * outbox_module.MAX_WAITING_SCALARS

    def put():
        for step in range(each):
            outbox.put_scalar("loss", step, 1.0)

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    taken = 0
    while any(thread.is_alive() for thread in threads) or not outbox.is_idle():
        outbox.collect()
        taken += sum(len(body["rows"]) for body in _bodies(outbox, "scalars"))
        outbox.acknowledge(1 << 60)
    outbox.put_scalar("last", 0, 0.0)
    outbox.collect()
    assert taken + outbox.dropped.get("scalars_waiting", 0) == 4 * each


def test_while_no_daemon_listens_scalars_are_bounded_and_names_and_facts_stay(outbox):
    outbox.put_names("tensor", 1, 0, ["w"], [1])
    for batch in range(10):
        for step in range(5000):
            outbox.put_scalar("loss", batch * 5000 + step, 1.0)
        outbox.put_facts({"epoch": batch})
        outbox.collect()
    lost = 50000 - outbox_module.MAX_STAGED_SCALARS
    assert outbox.dropped == {"scalars_kept": lost}
    assert _facts(outbox) == {"epoch": 9, "outbox_dropped": lost, "outbox_dropped_scalars_kept": lost}
    assert _bodies(outbox)[0]["t"] == "names"
    rows = [row for body in _bodies(outbox, "scalars") for row in body["rows"]]
    assert [row[1] for row in rows] == list(range(lost, 50000))


def test_unacknowledged_messages_are_bounded(outbox):
    outbox.put_names("tensor", 1, 0, ["w"], [1])
    for batch in range(3 * kept.MAX_MESSAGES):
        outbox.put_scalar("loss", batch, 1.0)
        outbox.put_facts({"batch": batch})
        outbox.collect()
        outbox.seal()
    messages = outbox.unacknowledged(0)
    assert len(messages) <= kept.MAX_MESSAGES
    assert messages[0].kind == "names"
    assert sum(message.kind == "meta" for message in messages) == 1
    assert outbox.dropped["scalars_kept"] == 2 * kept.MAX_MESSAGES + 2
    assert [message.n for message in messages] == sorted(message.n for message in messages)
    outbox.acknowledge(1 << 60)
    assert _facts(outbox)["batch"] == 3 * kept.MAX_MESSAGES - 1


def test_a_name_table_that_changes_at_every_step_stays_small(outbox):
    for version in range(1, 500):
        outbox.put_names("tensor", version, 0, [f"w{version}"], [1])
        outbox.collect()
    assert [body["version"] for body in _bodies(outbox, "names")] == [498, 499]


def test_other_messages_that_nobody_takes_are_bounded(outbox):
    for number in range(outbox_module.MAX_WAITING_OTHER + 7):
        outbox.put_facts({"n": number})
    outbox.collect()
    assert outbox.dropped == {"facts_waiting": 7}


def test_media_are_bounded_by_count_and_by_bytes(outbox):
    taken = [outbox.put_media("text", "t", i, [], b"x") for i in range(outbox_module.MAX_WAITING_MEDIA + 5)]
    assert taken.count(False) == 5
    outbox.collect()
    assert outbox.dropped == {"media_waiting": 5}
    big = bytes(15 << 20)
    for step in range(8):
        outbox.put_media("images", "big", step, [], lambda: big)
        outbox.collect()
    held = sum(len(message.data) for message in outbox.unacknowledged(0) if message.data)
    assert held <= kept.MAX_MEDIA_BYTES
    assert outbox.dropped["media_kept"] > 0
    assert _bodies(outbox, "media")[-1]["step"] == 7, "the newest stay"
    outbox.put_media("images", "huge", 9, [], lambda: bytes(wire.MAX_MEDIA_BYTES + 1))
    outbox.put_media("images", "bad", 9, [], lambda: 1 / 0)
    outbox.collect()
    assert outbox.dropped["media_too_large"] == 1
    assert outbox.dropped["media_fault"] == 1


def test_acknowledged_messages_go(outbox):
    for step in range(10):
        outbox.put_scalar("loss", step, 1.0)
        outbox.collect()
        outbox.seal()
    outbox.acknowledge(4)
    assert [message.n for message in outbox.unacknowledged(0)] == [5, 6, 7, 8, 9, 10]
    assert [message.n for message in outbox.unacknowledged(8)] == [9, 10]


def test_what_cannot_be_encoded_is_dropped_and_the_rest_goes_on(outbox):
    outbox.put_scalar("fine", 1, 1.0)
    outbox.put_scalar("odd", "not a step", 1.0)
    outbox.put_scalar("odd", 1, object())
    outbox.put_names("tensor", 1, 0, ["w"], ["many"])
    outbox.put_media("text", "odd", object(), [], b"")
    outbox.put_scalar("also fine", 2, 2.0)
    outbox.collect()
    assert [row[0] for body in _bodies(outbox, "scalars") for row in body["rows"]] == ["fine", "also fine"]
    assert outbox.dropped["scalar_fault"] == 2
    assert outbox.dropped["names_fault"] == 1
    assert outbox.dropped["media_fault"] == 1


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(st.text(max_size=400), max_size=300),
    tags=st.lists(st.tuples(st.text(max_size=600), st.integers(), st.floats()), max_size=50),
    facts=st.dictionaries(st.text(max_size=300), st.one_of(st.text(max_size=2000), st.floats(), st.integers(), st.booleans())),
)
def test_every_message_keeps_to_the_limits(names, tags, facts):
    outbox = Outbox()
    outbox.put_names("tensor", 1, 0, names, [1] * len(names))
    for tag in tags:
        outbox.put_scalar(*tag)
    outbox.put_facts(facts)
    outbox.collect()
    outbox.seal()
    messages = outbox.unacknowledged(0)
    assert all(len(message.payload) <= wire.MAX_MESSAGE_BYTES for message in messages)
    assert sum(len(body["rows"]) for body in _bodies(outbox, "scalars")) == len(tags)
    table = {}
    for body in _bodies(outbox, "names"):
        assert len(body["names"]) == len(body["numels"])
        table.update({body["first"] + i: name for i, name in enumerate(body["names"])})
    assert [table[i] for i in range(len(names))] == [name[: wire.MAX_NAME_CHARS] for name in names]


def test_facts_are_bounded_and_travel_in_pieces(outbox):
    long = "\N{SNOWMAN}" * 2000
    outbox.put_facts({f"{number:03}": long for number in range(outbox_module.MAX_FACTS + 40)})
    outbox.collect()
    assert len(_facts(outbox)) == outbox_module.MAX_FACTS
    assert set(_facts(outbox).values()) == {long[: outbox_module.MAX_FACT_CHARS]}
    outbox.seal()
    messages = outbox.unacknowledged(0)
    assert len(messages) > outbox_module.MAX_FACTS * outbox_module.MAX_FACT_CHARS * 6 // wire.MAX_MESSAGE_BYTES
    assert all(len(message.payload) <= wire.MAX_MESSAGE_BYTES for message in messages)
    outbox.put_facts({"000": long, "001": 1})  # one that is known may change; what has not changed is not sent again
    outbox.acknowledge(1 << 60)
    outbox.collect()
    assert _facts(outbox) == {"001": 1}


def test_two_thousand_long_names_travel_in_pieces(outbox):
    names = ["\N{SNOWMAN}" * 250 + str(i) for i in range(wire.MAX_TENSORS)]
    outbox.put_names("tensor", 1, 0, names, range(len(names)))
    outbox.collect()
    bodies = _bodies(outbox, "names")
    assert len(bodies) > 10
    assert [name for body in bodies for name in body["names"]] == names
    assert [count for body in bodies for count in body["numels"]] == list(range(len(names)))
