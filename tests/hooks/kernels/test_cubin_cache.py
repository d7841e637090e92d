"""The cache of compiled kernels: private, whole or not at all, and never a reason to fail."""

import os
import stat
import threading

import pytest
from gpuwatch_hooks.kernels import cubin_cache

NAME = cubin_cache.key("source", "sm_90", (13, 0))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gpuwatch" / "kernels"


def test_what_was_written_is_read_and_private(folder):
    code = bytes(range(256)) * 40
    assert cubin_cache.read(NAME) is None
    assert cubin_cache.write(NAME, code)
    assert cubin_cache.read(NAME) == code
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / NAME).stat().st_mode) == 0o600
    assert os.listdir(folder) == [NAME]  # no partial file is left


def test_everything_that_the_code_depends_on_is_in_its_name():
    names = {cubin_cache.key(*parts) for parts in [("a", 1), ("a", 2), ("b", 1), ("a1",), ("a", "1")]}
    assert len(names) == 5


@pytest.mark.parametrize(
    "spoil", [lambda raw: raw[:-1], lambda raw: raw[:40] + b"x" + raw[41:], lambda _: b"", lambda raw: raw[:32]]
)
def test_a_damaged_file_is_not_used(folder, spoil):
    cubin_cache.write(NAME, b"code" * 100)
    path = folder / NAME
    path.write_bytes(spoil(path.read_bytes()))
    assert cubin_cache.read(NAME) is None
    assert cubin_cache.write(NAME, b"again")
    assert cubin_cache.read(NAME) == b"again"


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_others_may_write_to_is_not_run(folder, what):
    cubin_cache.write(NAME, b"code")
    os.chmod(folder if what == "folder" else folder / NAME, 0o777)
    assert cubin_cache.read(NAME) is None
    if what == "folder":
        assert not cubin_cache.write(NAME, b"code")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_file_is_not_run(folder):
    cubin_cache.write(NAME, b"code")
    os.chown(folder / NAME, 12345, -1)
    assert cubin_cache.read(NAME) is None


def test_no_room_or_no_home_means_compiling_again(folder, monkeypatch):
    folder.parent.mkdir()
    folder.write_text("a file where the folder should be")
    assert not cubin_cache.write(NAME, b"code")
    assert cubin_cache.read(NAME) is None
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cubin_cache.folder() is None
    assert not cubin_cache.write(NAME, b"code")


def test_writers_at_once_leave_one_whole_file(folder):
    codes = [bytes([i]) * 200_000 for i in range(8)]
    found, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            found.append(cubin_cache.read(NAME))

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=cubin_cache.write, args=(NAME, code)) for code in codes]
    reader.start()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    stop.set()
    reader.join(30)
    assert {code for code in found if code is not None} <= set(codes)
    assert cubin_cache.read(NAME) in codes
    assert os.listdir(folder) == [NAME]
