"""The bar of progress at every width, what is printed beside it, progress.json, and the time that is left."""

import io
import json
import sys
from pathlib import Path

import pytest
from terminal import screen

from nemo_tvkd.runtime import progress
from nemo_tvkd.runtime.clock import PACE_STEPS, Clock, duration
from nemo_tvkd.runtime.outputs import progress_file
from nemo_tvkd.runtime.progress import Progress, ScoringProgress

FIGURES = ["loss 0.6931", "acc 0.56", "12.3k tok/s", "margin -0.012", "lr 5e-07"]
LEFT = 45296.0


class Time:
    """A clock that is told what time it is."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> io.StringIO:
    out = io.StringIO()
    out.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    return out


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160, 300])
def test_the_bar_fits_every_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    out = terminal(monkeypatch, width)
    with Progress("training", 10_000, "steps") as shown:
        for step in (1, 600, 1200):
            shown.update(step, FIGURES, left=LEFT)
            shown.bar.refresh()
        text = screen(out.getvalue(), width)
        assert len(text) == 1, text
    assert [line for line in screen(out.getvalue(), width) if line] == text
    assert width < 60 or len(text[0]) <= width - 2, "no room for ^C"
    if width >= 60:
        assert " 1200/10000 " in f" {text[0]}"
        assert "loss 0.6931" in text[0]
        assert text[0].endswith("12:34:56 left")
    pieces = {60: 2, 80: 3, 100: 5}
    if width in pieces:
        assert [piece in text[0] for piece in FIGURES] == [True] * pieces[width] + [False] * (5 - pieces[width])
    assert text[0].startswith("steps ") == (width >= 100)


def test_notes_and_other_prints_stand_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    out = terminal(monkeypatch, 120)
    with Progress("training", 9, "steps") as shown:
        print("before there is a bar")
        shown.update(1, FIGURES, left=LEFT)
        shown.line("a line for a log")
        shown.note("step 3/9  eval_loss 0.5 [not markup] :smile:")
        print("a print")
        print("a warning", file=sys.stderr)
        with shown.busy("validating"):
            shown.bar.refresh()
            assert screen(out.getvalue(), 120)[-1].endswith("validating")
        shown.bar.refresh()
        assert screen(out.getvalue(), 120)[-1].endswith("12:34:56 left")
        shown.update(2, FIGURES, left=LEFT)
    print("afterwards")
    lines = [line for line in screen(out.getvalue(), 120) if line]
    bar = next(line for line in lines if line.startswith("steps 2/9 "))
    expected = ["before there is a bar", "step 3/9  eval_loss 0.5 [not markup] :smile:", "a print", "a warning", bar]
    assert lines == [*expected, "afterwards"]
    assert "\x1b[?25l" not in out.getvalue(), "the cursor was hidden"


def test_an_error_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    out = terminal(monkeypatch, 80)

    def fail() -> None:
        with Progress("training", 9, "steps") as shown:
            shown.update(1, FIGURES)
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        fail()
    assert sys.stdout is out
    assert sys.stderr is out
    print("next")
    assert screen(out.getvalue(), 80)[-2:] == ["next", ""]


@pytest.mark.parametrize("dumb", [False, True])
def test_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dumb: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb" if dumb else "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: dumb, raising=False)
    for speaks in (True, False):
        with Progress("training", 2, "steps", shown=speaks) as shown:
            shown.update(1, FIGURES)
            shown.line("step 1/2  loss 0.5")
            shown.note("a note")
            with shown.busy("saving"):
                pass
        assert capsys.readouterr().out == ("step 1/2  loss 0.5\na note\n" if speaks else "")


def test_the_file_for_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    monkeypatch.setattr(progress.time, "perf_counter", time)
    monkeypatch.setattr(progress.time, "monotonic", time)
    monkeypatch.setattr(progress.time, "time", time)
    file = progress_file("train", tmp_path)

    def written() -> dict:
        return json.loads(file.read_text())

    with Progress("training", 10, "steps", file, shown=False, done=4) as shown:
        values = {"phase": "training", "done": 4, "total": 10, "unit": "steps", "rate": None, "updated": 100.0}
        assert written() == values
        time.now += 1
        shown.update(5)
        assert written() == values, "not at every step"
        time.now += 9
        shown.update(9)
        values |= {"done": 9, "rate": 0.5, "updated": 110.0}
        assert written() == values
        with shown.busy("validating"):
            assert written() == values | {"phase": "validating"}
        shown.update(10, rate=2.0)
    assert written() == values | {"done": 10, "rate": 2.0}
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]
    assert progress_file("score", tmp_path / "store") == tmp_path / "store.progress.json"

    with Progress("training", 10, "steps", tmp_path / "missing" / "progress.json", shown=False) as shown:
        shown.update(1)  # nowhere to write: no reason to stop


def test_scoring(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    time = Time()
    monkeypatch.setattr(progress.time, "perf_counter", time)
    file = tmp_path / "progress.json"
    with ScoringProgress(64, 100_000, 2, file) as scoring:
        for _ in range(5):
            time.now += 1.0
            scoring.advance(10_000)
        time.now += 1.0
        scoring.advance(50_000)
    assert capsys.readouterr().out.splitlines() == [
        "scored 10 %  20000 tokens/s  00:00:09 left",
        "scored 30 %  20000 tokens/s  00:00:07 left",
        "scored 50 %  20000 tokens/s  00:00:05 left",
        "scored 100 %  33333 tokens/s  00:00:00 left",
    ]
    values = json.loads(file.read_text())
    assert {name: values[name] for name in ("phase", "done", "total", "unit")} == {
        **{"phase": "scoring", "done": 64, "total": 64, "unit": "pairs"}
    }


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "00:00:00"), (3599.6, "01:00:00"), (90061, "25:01:01"), (-3, "00:00:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_time_left_of_a_resumed_run() -> None:
    """Steps of 2 s after a first one of 30 s; validations of 10 s, checkpoints of 4 s."""
    time = Time()
    clock = Clock(40, 100, time)
    time.now += 500  # building the model
    clock.begin()
    assert clock.left() == 0  # nothing is known yet
    for step in range(41, 61):
        time.now += 30 if step == 41 else 2
        clock.tick(step, 1000)
        if step == 41:
            assert clock.left() == 59 * 30
        if step == 45:
            assert clock.left() == 55 * 2
            assert clock.rate() == 500
            assert clock.lap() == pytest.approx(5000 / 38)
        if step == 50:
            with clock.aside("validating", 10):
                time.now += 10
            with clock.aside("saving", 0):
                time.now += 4
            # at 60, 70, 80, 90 and 100; once, at the end
            assert clock.left() == 50 * 2 + 5 * 10 + 4
            assert clock.lap() == 500, "what stands between steps takes no time from them"
    assert clock.left() == 40 * 2 + 4 * 10 + 4  # its own validation begins only now
    assert clock.elapsed() == 30 + 19 * 2 + 14
    for step in range(61, 101):
        time.now += 2
        clock.tick(step, 1000)
    assert clock.left() == 0
    assert clock.lap() == 500


def test_an_interval_that_does_not_divide_the_run() -> None:
    time = Time()
    clock = Clock(0, 100, time)
    for step in range(1, 31):
        time.now += 1
        clock.tick(step, 1)
    with clock.aside("saving", 30):
        time.now += 6
    assert clock.left() == 70 + 3 * 6  # after 60, 90 and the last step


def test_the_pace_follows_a_change() -> None:
    time = Time()
    clock = Clock(0, 10_000, time)
    for step in range(1, 500 + PACE_STEPS + 1):
        time.now += 5 if step <= 500 else 1
        clock.tick(step, 10)
    assert clock.left() == 10_000 - 500 - PACE_STEPS
    assert clock.rate() == 10
