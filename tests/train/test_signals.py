"""What a person sees who presses Ctrl-C, once and twice, at the worst moments."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxvision.train.signals import StopSignals

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_nothing_changes_without_a_signal():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    said = []
    with StopSignals(said.append) as signals:
        assert signals.agreed() == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before and not said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_noted_and_answered_once(number):
    said = []
    with StopSignals(said.append) as signals:
        os.kill(os.getpid(), number)
        assert signals.agreed() == number
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.agreed() == number
    assert said == [f"{number.name}: stops after this step and saves"]


def test_a_second_interrupt_waits_for_what_is_written():
    with StopSignals(lambda text: None) as signals:
        with signals.held():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            written = True
        assert written and signals.agreed() == signal.SIGINT
        with pytest.raises(SystemExit) as caught:
            os.kill(os.getpid(), signal.SIGINT)
        assert caught.value.code == 130


def test_another_thread_notes_nothing():
    noted = []

    def run():
        with StopSignals(noted.append) as signals:
            noted.append(signals.agreed())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert noted == [0]


def test_the_answer_does_not_wait_for_compiled_code():
    """A compilation takes minutes, in which Python runs no handlers."""
    code = (
        "import os, sys, zlib\n"
        "from jaxvision.train.signals import StopSignals\n"
        "with StopSignals(lambda text: print(text, flush=True)) as signals:\n"
        "    print('compiling', flush=True)\n"
        "    zlib.compress(os.urandom(10**8))\n"  # like a compilation, without the interpreter's lock
        "    print('compiled', flush=True)\n"
        "    sys.exit(128 + signals.agreed())\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "compiling\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "SIGINT: stops after this step and saves\ncompiled\n"
    assert process.returncode == 130
