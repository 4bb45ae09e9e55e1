"""What a person sees of a run: a bar on a terminal, plain lines in a file."""

import sys
import time
from collections.abc import Mapping

__all__ = ["Progress"]

SHORT = {"learning_rate": "lr", "images_per_second": "img/s", "data_seconds": "data s"}


class Progress:
    """A line of tqdm, with messages above, if standard error is a terminal; plain lines on standard output otherwise.
    ``quiet`` says nothing: for all hosts but the first."""

    def __init__(self, *, start: int, total: int, quiet: bool = False):
        self._start, self._total, self._began = start, total, time.perf_counter()
        self._quiet, self._bar = quiet, None
        if sys.stderr.isatty() and not quiet:
            from tqdm import tqdm

            # Without a bar: the metrics have its room, and what does not fit is cut off.
            line = "{percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
            self._bar = tqdm(total=total, initial=start, dynamic_ncols=True, bar_format=line)

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """The metrics of a step, with the time that is left. What a narrow terminal cuts off comes last."""
        text = "  ".join(f"{SHORT.get(name, name)} {_short(values[name])}" for name in sorted(values, key=_rank))
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif not self._quiet:
            left = (time.perf_counter() - self._began) / (step - self._start) * (self._total - step)
            print(f"step {step}/{self._total}  eta {_clock(left)}  {text}", flush=True)

    def say(self, message: str) -> None:
        if self._bar is not None:
            self._bar.write(message, file=sys.stderr)
        elif not self._quiet:
            print(message, flush=True)

    def not_counted(self, seconds: float) -> None:
        """Leave time that was spent on something else (compilation, evaluation) out of the estimate."""
        self._began += seconds

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _rank(name: str) -> tuple[int, str]:
    """The loss, the rate and the speed; the terms of the loss; the norms, and what does not measure success."""
    if name.endswith("_norm"):
        return 4, name
    return {"loss": 0, "learning_rate": 1, "images_per_second": 2, "data_seconds": 5}.get(name, 3), name


def _short(value: float) -> str:
    return f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
