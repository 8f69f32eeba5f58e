"""`nemo-tvkd report RUN_DIR`: all results of a chain, or of one training run, as report.md and report.html."""

from datetime import datetime, timezone
from pathlib import Path

from nemo_tvkd.errors import UserError
from nemo_tvkd.files import write_whole


def main(run_dir: str) -> int:
    """Write RUN_DIR/report.md and RUN_DIR/report.html, print the table of results; returns the exit code.

    Raises:
        UserError: the folder is no run folder, or nothing can be written there.
    """
    from nemo_tvkd.commands.report.contents import collect
    from nemo_tvkd.commands.report.folder import read_run
    from nemo_tvkd.commands.report.page import html, markdown, markdown_table

    directory = Path(run_dir)
    report = collect(read_run(directory, single=True), datetime.now(timezone.utc))
    for name, text in (("report.md", markdown(report)), ("report.html", html(report))):
        _write(directory / name, text)
    print(markdown_table(report.results))
    for note in report.notes:
        print(note)
    print(f"\nwritten: {directory / 'report.md'} and {directory / 'report.html'}")
    return 0


def _write(file: Path, text: str) -> None:
    try:
        write_whole(file, text.encode(errors="replace"))
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error
