"""run.json holds numbers that JSON does not have, and is read again whatever a run came to."""

import json
import math

import msgspec
import pytest

from gpuwatch.state import summary
from gpuwatch.state.findings import Finding
from tests.cli.conftest import Recorder


@pytest.mark.parametrize(("value", "threshold"), [(math.nan, math.inf), (-math.inf, 0.25), (3.0, 1e300)])
def test_a_finding_about_a_number_that_is_none_is_read_again(tmp_path, value, threshold):
    recorder = Recorder(tmp_path)
    finding = Finding("nonfinite_loss", "critical", 2, 2, 3, "loss", value, threshold, "The loss became nan.", "Go back.")
    recorder.run("broken", finding=finding)
    recorder.state.close()
    data = (tmp_path / "broken" / "run.json").read_bytes()
    json.loads(data, parse_constant=pytest.fail)  # NaN and Infinity are not JSON
    (finding,) = summary.decode(data).findings
    assert (str(finding.value), finding.threshold) == (str(value), threshold)


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b'{"findings": [1]}', b'{"findings": [{}]}', b'{"findings": {"a": 1}}'])
def test_what_is_none_of_ours_is_none(data):
    assert summary.decode(data) is None


@pytest.mark.parametrize(
    ("parameters", "tensors", "words"),
    [
        (0, 0, ""),
        (37_922, 41, "37,922 parameters in 41 tensors"),
        (20_000, 2000, "at least 20,000 parameters in at least 2,000 tensors"),
    ],
)
def test_a_table_that_is_full_tells_no_whole_size(tmp_path, parameters, tensors, words):
    recorder = Recorder(tmp_path)
    recorder.run("wide")
    recorder.state.close()
    known = summary.decode((tmp_path / "wide" / "run.json").read_bytes())
    known = msgspec.structs.replace(known, parameters=parameters, tensors=tensors)
    assert summary.size_in_words(known) == words
