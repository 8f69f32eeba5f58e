"""The line of progress at every width, what is printed beside it, and the time that is left."""

import io
import re
import sys
from typing import Any

import pytest
from terminal import screen

from nemo_tvkd.commands.status import SCORED
from nemo_tvkd.runtime import progress
from nemo_tvkd.runtime.clock import PACE_STEPS, Clock, duration
from nemo_tvkd.runtime.progress import NEVER, Bar, Display, Lines, Piece, ScoringProgress, Status, display


class Time:
    """A clock that is told what time it is."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def status(step: int = 1200, total: int = 10000, loss: float = 0.6931) -> Status:
    return Status(
        Piece(f"step {step}/{total}", f"{step}/{total}", NEVER),
        step / total,
        [
            Piece(f"loss {loss:.4f}", f"loss {loss:.4f}", NEVER),
            Piece("accuracy 0.562", "acc 0.56", 5),
            Piece("margin -0.0123", "margin -0.012", 2),
            Piece("lr 4.96e-07", "lr 5e-07", 1),
            Piece("12345 tokens/s", "12.3k tok/s", 3),
        ],
        elapsed=83,
        left=45296,
    )


def terminal_bar(monkeypatch: pytest.MonkeyPatch, width: int) -> tuple[Bar, io.StringIO]:
    out = io.StringIO()
    out.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    shown = display(True)
    assert isinstance(shown, Bar)
    return shown, out


LINES = {
    60: "1200/10000  BAR  loss 0.6931  acc 0.56  12:34:56 left",
    80: "1200/10000  BAR  loss 0.6931  acc 0.56  12.3k tok/s  12:34:56 left",
    100: "1200/10000  BAR  loss 0.6931  acc 0.56  margin -0.012  lr 5e-07  12.3k tok/s  12:34:56 left",
    160: (
        "step 1200/10000  BAR  loss 0.6931  accuracy 0.562  margin -0.0123  lr 4.96e-07  12345 tokens/s  00:01:23  "
        "12:34:56 left"
    ),
}


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 160, 300])
def test_the_line_fits_every_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    shown, out = terminal_bar(monkeypatch, width)
    with shown:
        for step in (1, 600, 1200):
            shown.update(status(step))
            shown.live.refresh()
        text = screen(out.getvalue(), width)
        assert len(text) == 1, text
    final = screen(out.getvalue(), width)
    assert [line for line in final if line] == text
    assert len(text[0]) <= max(width - 2, 20), "no room for ^C"
    bar = re.search("[━─]+", text[0])
    if width >= 80:
        assert bar is not None
        assert bar[0].count("━") == int(len(bar[0]) * 0.12)
    if width in LINES:
        assert re.sub("[━─]+", "BAR", text[0]) == LINES[width]
    if width >= 40:
        assert text[0].endswith("12:34:56 left")
        assert "loss 0.6931" in text[0]


def test_a_usual_run_shows_all_that_was_asked_for_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, out = terminal_bar(monkeypatch, 80)
    with shown:
        usual = status(120, 500)
        shown.update(Status(usual.head, usual.share, usual.figures, 83, 754))
    (line,) = (line for line in screen(out.getvalue(), 80) if line)
    pieces = re.sub("[━─]+", "BAR", line).split("  ")
    assert pieces == ["120/500", "BAR", "loss 0.6931", "acc 0.56", "margin -0.012", "12.3k tok/s", "12:34 left"]


def test_notes_and_other_prints_stand_above_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, out = terminal_bar(monkeypatch, 120)
    with shown:
        print("before there is a line")
        shown.update(status(1))
        shown.line("a line for a log")
        shown.note("step 3/9  eval_loss 0.5 [not markup] :smile:")
        print("a print")
        print("a warning", file=sys.stderr)
        shown.update(status(2))
        with shown.busy("validating"):
            shown.live.refresh()
            assert screen(out.getvalue(), 120)[-1].endswith("00:01:23  validating")
    print("afterwards")
    lines = screen(out.getvalue(), 120)
    bar = next(line for line in lines if line.startswith("step 2/10000  "))
    expected = ["before there is a line", "step 3/9  eval_loss 0.5 [not markup] :smile:", "a print", "a warning", bar]
    assert [line for line in lines if line] == [*expected, "afterwards"]
    assert "\x1b[?25l" not in out.getvalue(), "the cursor was hidden"


def test_an_error_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, out = terminal_bar(monkeypatch, 80)

    def fail() -> None:
        with shown:
            shown.update(status())
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        fail()
    assert sys.stdout is out
    assert sys.stderr is out
    assert out.getvalue().endswith("\n")
    print("next")
    assert screen(out.getvalue(), 80)[-2:] == ["next", ""]


def test_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    shown = display(True)
    assert type(shown) is Lines
    with shown:
        shown.update(status())
        shown.line("step 1/2  loss 0.5")
        shown.note("a note")
        with shown.busy("saving"):
            pass
    assert capsys.readouterr().out == "step 1/2  loss 0.5\na note\n"
    assert type(display(False)) is Display

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    assert type(display(True)) is Lines


def test_scoring(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    time = Time()
    monkeypatch.setattr(progress.time, "perf_counter", time)
    with ScoringProgress(100_000, replicas=2, shown=Lines()) as scoring:
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
    assert SCORED.search("scored 30 %  20000 tokens/s  00:00:07 left")


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


def test_statuses_are_not_lines(capsys: pytest.CaptureFixture[str]) -> None:
    shown: Any = Lines()
    shown.update(status())
    assert capsys.readouterr().out == ""
