"""Quotas: exactly what the limits say, given back when a run ends, and nothing over them is lost without a count."""

from gpuwatch_hooks import wire
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuwatch.config import Limits
from gpuwatch.intake.admission import Admission
from gpuwatch.state.names import NameTable
from gpuwatch.state.records import Names, Scalar


def scalars(*tags):
    return tuple(Scalar(tag, 1, 0.0, 0) for tag in tags)


def test_peers_of_one_user_and_of_all():
    admission = Admission(Limits(peers=5, peers_per_uid=3))
    assert [admission.admit_peer(1) for _ in range(4)] == ["", "", "", "too_many_peers_of_uid"]
    assert [admission.admit_peer(2) for _ in range(3)] == ["", "", "too_many_peers"]
    admission.release_peer(1)
    assert admission.admit_peer(2) == ""


def test_tags_over_the_runs_quota_are_folded_and_counted():
    admission = Admission(Limits(tags_per_run=2))
    rows, folded = admission.admit_scalars("run", scalars("a", "b", "c", "a", "d"))
    assert [row.tag for row in rows] == ["a", "b", wire.OTHER_NAME, "a", wire.OTHER_NAME]
    assert folded == 2
    assert admission.admit_scalars("other", scalars("c"))[1] == 0


def test_series_of_all_runs_together():
    admission = Admission(Limits(series=100))
    admission.admit_names("one", Names("tensor", 1, 0, tuple(map(str, range(90)))))
    rows, folded = admission.admit_scalars("two", scalars(*map(str, range(20))))
    assert (admission.series, folded) == (100, 10)
    assert sum(row.tag == wire.OTHER_NAME for row in rows) == 10


def test_names_over_the_quota_are_cut_off_and_counted():
    admission = Admission(Limits(tensors_per_run=10))
    stretch, cut = admission.admit_names("run", Names("tensor", 1, 0, tuple("abcdefg"), (1,) * 7))
    assert (len(stretch.names), cut) == (7, 0)
    stretch, cut = admission.admit_names("run", Names("tensor", 1, 7, tuple("hijkl"), (1, 2, 3, 4, 5)))
    assert (stretch.names, stretch.numels, cut) == (("h", "i", "j"), (1, 2, 3), 2)
    assert admission.series == 10


def test_a_new_version_of_a_table_takes_nothing_more():
    admission = Admission(Limits())
    for version in range(1, 50):
        admission.admit_names("run", Names("tensor", version, 0, tuple("abc")))
    assert admission.series == 3


def test_a_run_that_has_ended_gives_back_what_it_took():
    admission = Admission(Limits(series=100))
    for run in range(50):
        assert admission.admit_scalars(f"run{run}", scalars(*map(str, range(90))))[1] == 0
        assert admission.admit_names(f"run{run}", Names("group", 1, 0, ("g",)))[1] == 0
        admission.keep_only({f"run{run}"})
        assert admission.series == 91
        admission.keep_only(set())
        assert admission.series == 0


names = st.builds(
    Names,
    st.sampled_from(["tensor", "group"]),
    st.integers(1, 3),
    st.integers(0, 4000),
    st.lists(st.text(max_size=3), max_size=30).map(tuple),
)
asks = st.lists(st.tuples(st.sampled_from("abc"), names | st.lists(st.text(max_size=2), max_size=30)), max_size=40)


@settings(max_examples=60, deadline=None)
@given(asks, st.integers(100, 300))
def test_never_more_than_the_limits_whatever_is_asked(asked, limit):
    admission = Admission(Limits(series=limit, tags_per_run=50, tensors_per_run=200))
    tables = {}
    for run, ask in asked:
        if isinstance(ask, Names):
            stretch, cut = admission.admit_names(run, ask)
            assert len(stretch.names) + cut == len(ask.names)
            assert stretch.first + len(stretch.names) <= (200 if ask.table == "tensor" else limit)
            tables.setdefault((run, ask.table), NameTable(10_000)).add(stretch)
            assert sum(len(table.names) for table in tables.values()) <= limit
        else:
            rows, folded = admission.admit_scalars(run, scalars(*ask))
            assert len(rows) == len(ask)
            assert sum(row.tag == wire.OTHER_NAME != tag for row, tag in zip(rows, ask, strict=True)) == folded
        assert 0 <= admission.series <= limit
    admission.keep_only(set())
    assert admission.series == 0
