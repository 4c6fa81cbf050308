import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from blossomrec import files as lock
from blossomrec.errors import RunError
from blossomrec.files import LOCK_FILE, locked

HOLDER = """
import sys
from pathlib import Path
from blossomrec.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a folder until its input ends, or it is killed."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_lock_comes_with_the_folder_and_leaves_nothing(tmp_path):
    run = tmp_path / "runs" / "one"
    for _ in range(2):
        with locked(run):
            assert json.loads((run / LOCK_FILE).read_text())["pid"] == os.getpid()
        assert list(run.iterdir()) == []


def test_another_process_is_named(tmp_path, holder):
    words = rf"run is being written by process {holder.pid} on .* \(-c .*run\): wait"
    with pytest.raises(RunError, match=words) as error, locked(tmp_path / "run"):
        pass
    assert len(str(error.value).splitlines()) == 1
    holder.communicate("")
    with locked(tmp_path / "run"):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / LOCK_FILE).exists()
    with locked(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_other_folders_are_free(tmp_path, holder):
    with locked(tmp_path / "other"), locked(tmp_path / "third"):
        pass


def test_another_thread_is_refused(tmp_path):
    refused = []

    def enter():
        try:
            with locked(tmp_path):
                pass
        except RunError as error:
            refused.append(str(error))

    with locked(tmp_path):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert len(refused) == 1
        assert f"process {os.getpid()} " in refused[0]
        # The refused one took nothing away.
        with pytest.raises(RunError), locked(tmp_path):
            pass


def test_a_forked_child_does_not_hold_the_lock(tmp_path):
    read, write = os.pipe()
    with locked(tmp_path):
        child = os.fork()
        if not child:
            os.close(write)
            # Until the parent is done.
            os.read(read, 1)
            os._exit(0)
    try:
        with locked(tmp_path):
            pass
    finally:
        os.close(write)
        os.close(read)
        os.waitpid(child, 0)


def test_a_forked_child_that_leaves_does_not_free_the_lock(tmp_path):
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(tmp_path))
        child = os.fork()
        if not child:
            # Out of the with block, as an exception would lead.
            stack.close()
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(RunError), locked(tmp_path):
            pass


@pytest.mark.parametrize("note", ["", "{", "[1]", '{"pid": "x"}', "null", "\xff"])
def test_a_note_that_says_nothing_names_nobody(tmp_path, note):
    with locked(tmp_path):
        (tmp_path / LOCK_FILE).write_text(note, encoding="latin-1")
        with pytest.raises(RunError, match="written by another process:"), locked(tmp_path):
            pass


def test_a_note_is_shown_short_and_without_control_characters(tmp_path):
    note = {"pid": 7, "host": "h", "command": "a\nb\x1b[31m" + "c" * 10_000}
    with locked(tmp_path):
        (tmp_path / LOCK_FILE).write_text(json.dumps(note))
        words = r"process 7 on h \(a b \[31mc"
        with pytest.raises(RunError, match=words) as error, locked(tmp_path):
            pass
    assert len(str(error.value)) < 500
    assert str(error.value).isprintable()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with pytest.warns(UserWarning, match=r"cannot be locked .*not supported"), locked(tmp_path):
        pass
    monkeypatch.setattr(lock, "fcntl", None)
    with pytest.warns(UserWarning, match="no fcntl"), locked(tmp_path):
        pass
