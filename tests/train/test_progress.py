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
    progress.report(20, {"loss": 0.123456, "lr": 1e-5})
    progress.say("hello")
    progress.close()
    out, err = capsys.readouterr()
    assert out == "step 20/30  eta 0:01:40  loss 0.1235  lr 1e-05\nhello\n" and err == ""


@pytest.mark.parametrize("quiet", [False, True])
def test_bar_on_a_terminal(monkeypatch, capsys, quiet):
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
