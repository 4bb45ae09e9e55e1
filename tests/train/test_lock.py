import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from jaxvision.train.lock import locked

ROOT = pathlib.Path(__file__).parent.parent.parent
HOLDER = """
import sys, time
from jaxvision.train.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder):
    """A process that has the lock."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    assert process.stdout.readline() == "held\n"
    return process


def test_host_process_and_start_are_named_and_nothing_is_touched(tmp_path):
    with hold(tmp_path / "run") as process:
        before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        with pytest.raises(BlockingIOError) as caught, locked(tmp_path / "run"):
            raise AssertionError("two have the lock")
        assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
        process.kill()
    owner = json.loads(before[".lock.json"])
    assert f"{tmp_path}/run is in use: process {process.pid} on {owner['host']}" in str(caught.value)
    assert f"started {owner['started']}, writes to it" in str(caught.value)


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    with hold(tmp_path) as process:
        process.kill()
    assert json.loads((tmp_path / ".lock.json").read_text())["process"] == process.pid  # it could not take it back
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock.json").read_text())["process"] == os.getpid()
    assert not (tmp_path / ".lock.json").exists()
    with locked(tmp_path):
        pass


def test_a_name_that_cannot_be_right_is_not_told(tmp_path):
    """The killed process is still named when another one has taken the lock, and not yet said so."""
    with hold(tmp_path) as process:
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        owner = json.loads((tmp_path / ".lock.json").read_text())
        (tmp_path / ".lock.json").write_text(json.dumps({**owner, "process": dead.pid}))
        with pytest.raises(BlockingIOError, match="in use: another process writes to it"), locked(tmp_path):
            raise AssertionError("two have the lock")
        process.kill()


def test_a_reader_that_outlives_its_training_does_not_keep_the_lock(tmp_path):
    code = HOLDER.replace('print("held", flush=True)', "import os; os.write(1, b'%d\\n' % os.fork())")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}  # JAX warns of forks
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        children = {int(process.stdout.readline()), int(process.stdout.readline())} - {0}
        process.kill()
        process.wait()
        with locked(tmp_path):
            for child in children:
                os.kill(child, signal.SIGKILL)  # it was alive


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=f"cannot write to the output folder {tmp_path}/file/run"),
        locked(tmp_path / "file" / "run"),
    ):
        raise AssertionError("a lock in a file")
