"""A kill at any moment, a disk full at any byte, and missing rights leave the old folder or the new one."""

import os
import re
import resource
import shutil
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import nce_fx
from nce_fx import files
from nce_fx.errors import ArtifactError, NceFxError
from nce_fx.export.export_file import export_file
from nce_fx.files import replaced, replaced_file, write_whole
from nce_fx.training.folder import held

OURS = {"plan.json", "model.safetensors"}
OLD = {"plan.json": b"old plan", "model.safetensors": b"old" * 999, "notes.txt": b"mine", "mine/log.csv": b"epoch"}
NEW = OLD | {"plan.json": b"new plan", "model.safetensors": b"new" * 3333}
EVENTS = ("open", "os.", "shutil.", "tempfile.", "ctypes.")


def write(folder: Path, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def read(folder: Path):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def replace(folder: Path):
    with replaced(folder, OURS) as fresh:
        write(fresh, {name: NEW[name] for name in OURS})


def killed_at(moment: int, folder: Path) -> bool:
    """Replace a folder in a process that is killed at its n-th call of the system; return whether it was."""
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event, arguments):
            nonlocal count
            if event.startswith(EVENTS):
                count += 1
                if count == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        replace(folder)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.long
def test_a_kill_at_any_moment_leaves_the_old_folder_or_the_new_one(tmp_path):
    seen, moment = set(), 0
    while True:
        moment += 1
        folder = tmp_path / str(moment) / "result"
        write(folder, OLD)
        killed = killed_at(moment, folder)
        found = read(folder)
        assert found in (OLD, NEW), f"killed at {moment}: {sorted(found)}"
        seen.add(found == NEW)
        replace(folder)
        assert [path.name for path in folder.parent.iterdir()] == ["result"], f"killed at {moment}: something is left"
        if not killed:
            break
    assert seen == {False, True}
    assert moment > 30
    assert found == NEW


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path):
    """Nobody's, by its name, is never touched."""
    path, mine = tmp_path / "log.csv", tmp_path / ".mine.12345678.new"
    left = [tmp_path / ".log.csv.01234567.nce-fx", tmp_path / ".result.89abcdef.nce-fx" / "deeper"]
    mine.write_bytes(b"mine")
    left[0].write_bytes(b"half")
    left[1].mkdir(parents=True)
    with replaced_file(path) as first:
        first.write_bytes(b"first")
        assert sorted(tmp_path.iterdir()) == sorted([mine, first])
        write_whole(path, b"second")
        assert first.read_bytes() == b"first"
        with replaced(tmp_path / "result", ()) as fresh:
            write_whole(path, b"third")
            assert fresh.is_dir()
    assert path.read_bytes() == b"first"
    assert sorted(tmp_path.iterdir()) == sorted([mine, path, tmp_path / "result"])


@pytest.mark.parametrize("limit", [0, 5, 100, 9000])
def test_a_full_disk_leaves_the_old_folder_and_the_old_file(tmp_path, limit):
    folder, single = tmp_path / "result", tmp_path / "model.onnx"
    write(folder, OLD)
    single.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # What the system says where a file would grow over the limit is an error of writing, as of a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(NceFxError, match="cannot"):
            replace(folder)
        with pytest.raises(NceFxError, match="cannot"), export_file(single) as fresh:
            fresh.write_bytes(NEW["model.safetensors"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read(folder) == OLD
    assert single.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "result"]


def test_what_cannot_be_written_is_named_as_the_user_knows_it(tmp_path, monkeypatch):
    path = tmp_path / "out" / "networks.json"
    path.parent.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as full:
            write_whole(path, b"more than five bytes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert full.value.filename == str(path)

    def vanishes(handle):
        shutil.rmtree(path.parent)

    monkeypatch.setattr(files, "lock", vanishes)
    with pytest.raises(FileNotFoundError) as gone:
        write_whole(path, b"")
    assert gone.value.filename == str(path)


def said_by_one_without_rights(work) -> str:
    """What an error of ours says to a user who owns nothing; root, whom nothing is forbidden, becomes nobody."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setegid(65534)
            os.seteuid(65534)
        try:
            work()
        except NceFxError as error:
            os.write(write_end, str(error).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def export(path: Path):
    with export_file(path) as fresh:
        fresh.write_bytes(b"new")


def begin_training(folder: Path):
    with held(folder):
        pass


@pytest.mark.parametrize("write_into", [replace, export, begin_training])
def test_a_folder_that_may_not_be_written_is_said_in_one_line(write_into):
    with tempfile.TemporaryDirectory() as name:  # pytest's own is closed to others above it
        folder = Path(name)
        write(folder, OLD)
        folder.chmod(0o555)
        said = said_by_one_without_rights(lambda: write_into(folder / "result"))
        assert "Permission denied" in said
        assert str(folder) in said
        assert "\n" not in said
        assert read(folder) == OLD


def test_a_folder_that_vanishes_is_said_or_made_again(tmp_path):
    result, single = tmp_path / "there" / "result", tmp_path / "there" / "model.onnx"
    write(result, OLD)
    with pytest.raises(ArtifactError, match=f"cannot write {result}: No such file"), replaced(result, OURS):
        shutil.rmtree(result.parent)
    with replaced(result, OURS) as fresh:
        write(fresh, {name: NEW[name] for name in OURS})
        result.mkdir()
        shutil.rmtree(result)
    assert read(result) == {name: NEW[name] for name in OURS}
    with pytest.raises(NceFxError, match=r"model\.onnx cannot be written: No such file"), export_file(single):
        shutil.rmtree(single.parent)


def test_nothing_depends_on_a_clock_that_may_jump():
    """Only the lines that a run says of itself show the hour; seconds are those since the machine was started."""
    package = Path(nce_fx.__file__).parent
    asks = re.compile(r"time\.time\b|time_ns|st_[mc]time|get[mc]time|datetime\.(now|today)|localtime|gmtime")
    asking = {str(path.relative_to(package)) for path in package.rglob("*.py") if asks.search(path.read_text())}
    assert asking == {"cli/events.py"}


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0, 0o666, 0o777)])
def test_permissions_are_the_systems_and_the_mask_is_never_set(tmp_path, monkeypatch, mask, file, folder):
    before = os.umask(mask)
    try:
        with monkeypatch.context() as patch:
            # The mask is the whole process's: another thread's files would come out with the one set here.
            patch.setattr(os, "umask", lambda mask: pytest.fail("the mask was set"))
            replace(tmp_path / "result")
            with export_file(tmp_path / "model.onnx") as fresh:
                fresh.write_bytes(b"new")
            write_whole(tmp_path / "log.csv", b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "result").stat().st_mode & 0o777 == folder
    assert (tmp_path / "model.onnx").stat().st_mode & 0o777 == file
    assert (tmp_path / "log.csv").stat().st_mode & 0o777 == file


def test_threads_that_write_one_file_leave_one_of_its_contents(tmp_path):
    path, contents = tmp_path / "log.csv", [bytes([letter]) * 50_000 for letter in b"abcdefgh"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_whole(path, content), contents * 5))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]
