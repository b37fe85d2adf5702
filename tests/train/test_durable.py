"""Folders that are whole or absent, whatever is killed and whatever rots."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from stepopsd.train.durable import MANIFEST, damage, whole_folder

WRITER = """
import sys
from pathlib import Path
from stepopsd.train.durable import whole_folder
final = Path(sys.argv[1])
for number in range(100_000):
    with whole_folder(final) as folder:
        (folder / "sub").mkdir()
        for part in range(20):
            (folder / "sub" / f"{part}.txt").write_text(f"{number}\\n" * 2000)
    print(number, flush=True)
"""


def write(folder, text="content"):
    with whole_folder(folder) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "a.txt").write_text(text)
        (partial / "b.bin").write_bytes(bytes(1000))
    return folder


def test_a_whole_folder_is_undamaged_and_replaces_the_older_one(tmp_path):
    folder = write(tmp_path / "x", "old")
    assert damage(folder) == ""
    write(folder, "new")
    assert (folder / "sub" / "a.txt").read_text() == "new"
    assert damage(folder) == ""
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_an_error_while_writing_leaves_the_older_one(tmp_path):
    folder = write(tmp_path / "x", "old")
    with pytest.raises(OSError, match="full"):
        _fail_while_writing(folder)
    assert (folder / "sub" / "a.txt").read_text() == "old"
    assert damage(folder) == ""


def _fail_while_writing(folder):
    with whole_folder(folder) as partial:
        (partial / "half.txt").write_text("half")
        raise OSError("disk full")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: (f / "b.bin").write_bytes(bytes(999) + b"x"), "b.bin does not have the content"),
        (lambda f: (f / "b.bin").write_bytes(bytes(500)), "b.bin has 500 bytes instead of 1000"),
        (lambda f: (f / "sub" / "a.txt").unlink(), "sub/a.txt is missing"),
        (lambda f: (f / MANIFEST).unlink(), "manifest.json cannot be read"),
        (lambda f: (f / MANIFEST).write_text("{"), "manifest.json cannot be read"),
    ],
)
def test_damage_is_named(tmp_path, harm, said):
    folder = write(tmp_path / "x")
    harm(folder)
    assert said in damage(folder)


def test_a_writer_killed_at_any_moment_leaves_a_whole_folder(tmp_path):
    final = tmp_path / "x"
    for attempt in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(final)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.02 * attempt)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        # A kill between two renames leaves the older one under another name: the next writer starts from there.
        whole = final if final.exists() else tmp_path / ".x.replaced"
        assert damage(whole) == ""
