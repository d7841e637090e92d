"""Run directories: hostile names stay inside, each process gets its own, and gets it back."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuwatch.state import directories
from gpuwatch.state.directories import NoRoomError, RunDirectory, claim, reduce_name, replace_file

SAFE = re.compile(r"[A-Za-z0-9._-]{1,80}", re.ASCII)


def take(root: Path, run: str, rank: int = 0, world_size: int = 1, me: bytes = b"me", user: bytes = b"me") -> RunDirectory:
    """Claim a directory and leave a run.json in it that says whose it is."""
    place = claim(str(root), run, rank, world_size, lambda data: data == me, lambda data: data.startswith(user))
    replace_file(place.fd, directories.SUMMARY_NAME, me)
    place.close()
    return place


def assert_safe(name: str) -> None:
    assert SAFE.fullmatch(name), name
    assert not name.startswith((".", "-")), name


@given(st.text(max_size=300))
def test_any_text_becomes_a_safe_name(text: str) -> None:
    assert_safe(reduce_name(text))


def test_a_hundred_thousand_hostile_names_become_safe() -> None:
    rng = random.Random(3)
    pieces = [
        "..",
        ".",
        "/",
        "\\",
        "\0",
        "~",
        "-",
        "--",
        " ",
        "\n",
        "é",
        "\u202e",
        "\ud800",
        "a",
        "RUN",
        "run.json",
        "rank0",
        "%2e",
        "*",
    ]
    for _ in range(100_000):
        assert_safe(reduce_name("".join(rng.choices(pieces, k=rng.randrange(8)))))


def test_ordinary_names_stay_as_they_are() -> None:
    for name in ("digits", "gpt-2_small.v3", "2026-01-01T10-00", "a" * 80):
        assert reduce_name(name) == name


def test_hostile_names_stay_below_the_log_directory(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for name in ("../../etc", "/etc/passwd", "..", ".", "", "a/../../b", "x\0y", "-rf", ".hidden", "a" * 500, "\ud800"):
        place = take(root, name, me=os.urandom(8))
        assert Path(place.path).resolve().is_relative_to(root.resolve())
        assert Path(place.path).is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_planted_links_are_passed_by(tmp_path: Path) -> None:
    root, outside = tmp_path / "runs", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "digits").symlink_to(outside)
    (root / "many").mkdir()
    (root / "many" / "rank0").symlink_to(outside)
    assert take(root, "digits").relative == "digits-2"
    assert take(root, "many", 0, 2).relative == "many/rank0-2"
    assert list(outside.iterdir()) == []


def test_a_link_in_place_of_a_folder_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    place = claim(str(tmp_path / "runs"), "digits", 0, 1, bool, bool)
    (Path(place.path) / "journal").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        directories.open_subdirectory(place.fd, "journal")
    (Path(place.path) / "run.json").symlink_to(tmp_path / "outside" / "victim")
    replace_file(place.fd, "run.json", b"{}")
    assert not (tmp_path / "outside" / "victim").exists()
    (Path(place.path) / ".run.json.new").symlink_to(tmp_path / "outside" / "victim")
    with pytest.raises(OSError, match=r"Too many levels"):
        replace_file(place.fd, "run.json", b"{}")
    place.close()


def test_attempts_are_numbered_and_a_process_gets_its_own_back(tmp_path: Path) -> None:
    assert [take(tmp_path, "digits", me=me).relative for me in (b"me", b"me too", b"me three")] == [
        "digits",
        "digits-2",
        "digits-3",
    ]
    again = take(tmp_path, "digits", me=b"me too")
    assert (again.relative, again.attempt, again.resumed) == ("digits-2", 2, True)


def test_a_long_name_keeps_room_for_the_number(tmp_path: Path) -> None:
    take(tmp_path, "a" * 80)
    assert take(tmp_path, "a" * 80, me=b"me too").relative == "a" * 78 + "-2"


def test_ranks_share_a_folder_and_number_their_attempts_apart(tmp_path: Path) -> None:
    places = [take(tmp_path, "gpt", rank, 2, me=b"me%d" % rank, user=b"me") for rank in (0, 1)]
    places.append(take(tmp_path, "gpt", 1, 2, me=b"me again", user=b"me"))
    assert [place.relative for place in places] == ["gpt/rank0", "gpt/rank1", "gpt/rank1-2"]
    assert {place.name for place in places} == {"gpt"}


def test_another_users_ranks_get_a_folder_of_their_own(tmp_path: Path) -> None:
    take(tmp_path, "gpt", 0, 2, me=b"alice", user=b"alice")
    assert take(tmp_path, "gpt", 1, 2, me=b"mallory", user=b"mallory").relative == "gpt-2/rank1"


def test_ranks_do_not_move_into_a_single_processs_folder(tmp_path: Path) -> None:
    take(tmp_path, "gpt", me=b"me")
    assert take(tmp_path, "gpt", 0, 2, me=b"me", user=b"me").relative == "gpt-2/rank0"


def test_a_damaged_summary_is_nobodys(tmp_path: Path) -> None:
    place = take(tmp_path, "digits")
    (Path(place.path) / "run.json").write_bytes(b"\xff\xfe")
    assert take(tmp_path, "digits").relative == "digits-2"


def test_a_pipe_in_place_of_a_summary_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    os.mkfifo(tmp_path / "digits" / "run.json")
    assert take(tmp_path, "digits").relative == "digits-2"


def test_a_log_directory_that_is_a_file_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NoRoomError, match="file: "):
        take(tmp_path / "file", "digits")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    replace_file(fd, "run.json", b"old")
    with (tmp_path / "run.json").open("rb") as reader:
        replace_file(fd, "run.json", b"new and longer")
        assert reader.read() == b"old"
    assert directories.read_file(fd, "run.json") == b"new and longer"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    os.close(fd)
