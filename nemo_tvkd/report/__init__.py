"""`nemo-tvkd report RUN_DIR`: all results of a chain, or of one training run, as report.md and report.html."""

import os
from datetime import datetime, timezone
from pathlib import Path

from nemo_tvkd.errors import UserError


def main(run_dir: str) -> int:
    """Write RUN_DIR/report.md and RUN_DIR/report.html, print the table of results; returns the exit code.

    Raises:
        UserError: the folder is no run folder, or nothing can be written there.
    """
    from nemo_tvkd.report.contents import collect
    from nemo_tvkd.report.folder import read_run
    from nemo_tvkd.report.page import html, markdown, markdown_table

    directory = Path(run_dir)
    report = collect(read_run(directory, single=True), datetime.now(timezone.utc))
    for name, text in (("report.md", markdown(report)), ("report.html", html(report))):
        _write_whole(directory / name, text)
    print(markdown_table(report.results))
    for note in report.notes:
        print(note)
    print(f"\nwritten: {directory / 'report.md'} and {directory / 'report.html'}")
    return 0


def _write_whole(file: Path, text: str) -> None:
    """Under a hidden name first: a reader never sees a part."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8", errors="replace")
        partial.replace(file)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
