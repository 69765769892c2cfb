"""One chatpipe at a time in a folder, or with a file."""

import subprocess
import sys

import pytest

from chatpipe.data.durable import file_lock, folder_lock
from chatpipe.errors import UsageError


def test_a_folder_is_held_until_the_block_ends_and_nothing_is_left_in_it(tmp_path):
    folder = tmp_path / "runs" / "mine"
    with (
        folder_lock(folder),
        pytest.raises(UsageError, match="Another chatpipe is at work in .*mine"),
        folder_lock(folder),
    ):
        pass
    with folder_lock(folder):
        assert list(folder.iterdir()) == []


def test_a_folder_whose_holder_was_killed_is_free(tmp_path):
    program = f"""
import os, pathlib, signal
from chatpipe.data.durable import folder_lock, file_lock
with folder_lock(pathlib.Path({str(tmp_path)!r})):
    print("held", flush=True)
    signal.pause()
"""
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UsageError), folder_lock(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with folder_lock(tmp_path):
        pass


def test_a_file_is_held_under_all_of_its_names(tmp_path):
    file, link, folder = tmp_path / "real" / "r.db", tmp_path / "link.db", tmp_path / "folder"
    file.parent.mkdir()
    link.symlink_to(file)
    folder.symlink_to(file.parent)
    for one in (file, link, folder / "r.db"):
        with file_lock(one):
            for other in (file, link, folder / "r.db"):
                with pytest.raises(UsageError, match=f"Another chatpipe writes to {other}"), file_lock(other):
                    pass
    assert {path.name for path in tmp_path.rglob("*.lock")} == {"r.db.lock"}
