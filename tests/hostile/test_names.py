"""Names of runs that try to leave the log directory: nothing outside it is touched, whatever they are."""

import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuwatch.state.directories import reduce_name
from tests.intake.conftest import Client, Desk

EVIL = [
    "..",
    "../..",
    "../../../../etc/cron.d/x",
    "/etc/passwd",
    "a/../../b",
    ".",
    "",
    "-rf",
    "\0",
    "a\0b",
    "x" * 5000,
    "CON",
    "~",
    "$HOME",
    ".hidden",
    "a\nb",
    "\u202e",
    "\ud800",
]


def tree(folder):
    """Every path below `folder`, with what it is."""
    return {
        os.path.join(where, name): os.lstat(os.path.join(where, name)).st_mode
        for where, folders, files in os.walk(folder)
        for name in folders + files
    }


def test_evil_run_names_stay_in_the_log_directory(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("as it was")
    place = tmp_path / "daemon"
    place.mkdir()
    desk = Desk(place)
    (place / "runs").mkdir()
    for link in ("linked", "rank0"):
        (place / "runs" / link).symlink_to(outside)
    before = tree(tmp_path)
    for name in [*EVIL, "linked"]:
        for world_size in (1, 2):
            client = Client(desk.path, 8, 512).connect(run=name, world_size=world_size)
            client.step(1)
            desk.pump()
            client.close()
            client.ring.close()
    made = {path for path in tree(tmp_path) if path not in before}
    assert made
    assert all(path.startswith(str(place / "runs") + "/") for path in made)
    assert tree(outside) == {str(outside / "precious"): os.lstat(outside / "precious").st_mode}
    assert (outside / "precious").read_text() == "as it was"
    assert len(desk.state.runs) >= len(EVIL) - 3, "most of these names are runs like any other once they are reduced"
    desk.close()


@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(alphabet=st.characters(), max_size=200))
def test_every_name_reduces_to_a_plain_one(name):
    reduced = reduce_name(name)
    assert 1 <= len(reduced) <= 80
    assert all(c.isascii() and (c.isalnum() or c in "._-") for c in reduced)
    assert reduced[0] not in ".-"
