"""SIGINT and SIGTERM ask a training to stop after the step it is in."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxvision.train.processes import gather

__all__ = ["StopSignals"]


class StopSignals:
    """While it is open as a context, the first signal is answered at once by ``say`` and noted; a second SIGINT raises
    SystemExit(130), but never within ``held``. Only the main thread can have handlers: elsewhere it notes nothing."""

    def __init__(self, say: Callable[[str], None]):
        self._say, self._received, self._holding = say, [], False

    def __enter__(self) -> "StopSignals":
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            # Python runs handlers between two bytecodes, so a compilation would keep the answer back for minutes; the
            # byte in the pipe comes at once.
            self._pipe, end = os.pipe()
            os.set_blocking(end, False)
            self._end, self._wakeup = end, signal.set_wakeup_fd(end, warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._answer, daemon=True)
            self._thread.start()
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: Any) -> None:
        if self._main:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._end)  # which ends the thread
            self._thread.join()
            os.close(self._pipe)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let nothing interrupt what is written inside."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    def agreed(self) -> int:
        """The number of a signal that one of the processes was sent, or 0. All must call it."""
        return max(gather(self._received[0] if self._received else 0))

    def _note(self, number: int, frame: Any) -> None:
        again = bool(self._received)
        self._received.append(number)
        if again and number == signal.SIGINT and not self._holding:
            raise SystemExit(128 + number)

    def _answer(self) -> None:
        said = False
        while numbers := os.read(self._pipe, 16):
            asked = [number for number in numbers if number in (signal.SIGTERM, signal.SIGINT)]
            if asked and not said:
                said = True
                self._say(f"{signal.Signals(asked[0]).name}: stops after this step and saves")
