import io

import pytest

from jaxvision.train.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines(capsys):
    progress = Progress(start=10, total=30)
    progress.not_counted(-100.0)  # as if ten steps had taken 100 s
    progress.advance()
    progress.report(20, {"lr": 1e-5, "loss": 0.123456})
    progress.say("hello")
    progress.close()
    out, err = capsys.readouterr()
    assert out == "step 20/30  eta 0:01:40  loss 0.1235  lr 1e-05\nhello\n" and err == ""


@pytest.mark.parametrize("quiet", [False, True])
def test_line_on_a_terminal(monkeypatch, capsys, quiet):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    progress = Progress(start=1, total=2, quiet=quiet)
    progress.report(2, {"loss": 0.5})
    progress.advance()
    progress.say("hello")
    progress.close()
    assert capsys.readouterr().out == ""
    for text in ("loss 0.5", "2/2", "hello"):
        assert (text in terminal.getvalue()) != quiet


METRICS = {
    "data_seconds": 0.0123456, "gradient_norm": 12.34567, "images_per_second": 1234.56, "learning_rate": 0.0123456,
    "loss": 0.123456, "loss_box_reg": 0.123456, "loss_classifier": 0.0123456, "parameter_norm": 123.4567,
    "update_norm": 0.00123456,
}  # fmt: skip
ORDER = ["loss", "lr", "img/s", "loss_box_reg", "loss_classifier", "gradient_norm", "parameter_norm", "update_norm"]


def test_the_loss_comes_first(capsys):
    progress = Progress(start=0, total=90_000)
    progress.report(100, METRICS)
    line = capsys.readouterr().out
    names = [part.split()[0] for part in line.split("  ")[2:]]
    assert names == [*ORDER, "data"]
    assert "loss 0.1235  lr 0.01235  img/s 1235" in line[:80]


def test_a_terminal_of_80_columns_shows_the_loss(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda stream: (80, 24))
    progress = Progress(start=45_000, total=90_000)
    progress._bar.start_t -= 20 * 3600
    progress.report(45_001, METRICS)
    progress.close()
    shown = [line for line in terminal.getvalue().split("\r") if "loss" in line]
    assert shown and all(len(line.strip()) <= 80 and "loss 0.1235  lr 0.01235" in line for line in shown)
