"""Preference pairs and examples from files: every file format is read, every bad row is named.

Files become records (plain JSON-like objects, each with its "file:line"), records become `Row`s. A mistake in a row is
a `UserError` that starts with "file:line:"; a mistake about a whole file names the configuration key and the path.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nemo_tvkd.data import public
from nemo_tvkd.data.records import COLUMNS, REQUIRABLE, Row, parse_record, row_from_record
from nemo_tvkd.data.sources import Place, read_records
from nemo_tvkd.errors import UserError

__all__ = ["ReadReport", "Row", "iter_rows", "parse_rows", "row_from_record"]


@dataclass
class ReadReport:
    """What was read: good rows, how often each layout was recognised, and the bad rows ("file:line: what is wrong")."""

    rows: int = 0
    layouts: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    files: Counter[Place] = field(default_factory=Counter)
    """Records by (file, its format); of a dataset by (its name and split, what it is)."""
    sets: Counter[str] = field(default_factory=Counter)
    """Records by the public set that they look like they are from."""
    ties: int = 0
    """Two rated responses that are equally good: no preference, and no bad row either (HelpSteer2)."""
    single: int = 0
    """Rated responses without a second one for the same prompt."""

    @property
    def left_out(self) -> str:
        """The rows that make no pair and are not bad, in words; "" where there are none."""
        counts = ((self.ties, "pairs without a preference"), (self.single, "responses without a second one"))
        return ", ".join(f"{count} {what}" for count, what in counts if count)


def iter_rows(
    paths: Sequence[str],
    *,
    need_rejected: bool = True,
    on_bad_row: str = "error",
    key: str = "data.train",
    require: Mapping[str, str] = {},
    report: ReadReport | None = None,
) -> Iterator[Row]:
    """Every row of `paths` in order, one at a time; `need_rejected` asks for pairs, else examples are enough.

    Args:
        require: what each row's columns must hold ("rewards", "margin"), with the setting ("key=value") that asks for
            it: a row without a finite number there is bad. Rewards that nothing asks for may be absent or null; a
            margin is then not looked at.
        report: is filled in; complete when the last row has been taken.

    Raises:
        UserError: a path or file that cannot be used (names `key`), the first bad row if `on_bad_row` is "error",
            or nothing but bad rows.
    """
    if on_bad_row not in ("error", "skip"):
        raise UserError(f"data.on_bad_row={on_bad_row} is none of error, skip")
    report = ReadReport() if report is None else report
    for _, row in parse_rows(paths, need_rejected=need_rejected, key=key, require=require, report=report):
        if isinstance(row, Row):
            yield row
        elif on_bad_row == "error":
            raise row
        else:
            report.bad.append(str(row))
    if report.rows:
        return
    if report.bad:
        raise UserError(f"{key}: each of the {len(report.bad)} rows is bad; the first: {report.bad[0]}")
    raise UserError(f"{key}: there is no pair in its rows: {report.left_out}")


def parse_rows(
    paths: Sequence[str],
    *,
    need_rejected: bool,
    key: str,
    report: ReadReport,
    require: Mapping[str, str] = {},
) -> Iterator[tuple[str, Row | UserError]]:
    """("file:line", row) in order, a bad row as its UserError; `report` is filled in but for its bad rows.

    Raises:
        UserError: a path or file that cannot be used; names `key`.
    """
    assert set(require) <= set(REQUIRABLE), f"{require}: none but {REQUIRABLE} can be required"
    columns = COLUMNS | ({"margin"} & set(require))
    for path in paths:
        before = report.files.total()
        records = _noted(read_records(path, key, columns, need_rejected, report.files), report)
        for source, record in public.mapped(records, need_rejected, report):
            try:
                row, layout = parse_record(record, source, need_rejected, require)
            except UserError as error:
                yield source, error
            else:
                report.rows += 1
                report.layouts[layout] += 1
                yield source, row
        if report.files.total() == before:
            raise UserError(f"{key}: {path} is empty: it holds no rows")


def _noted(records: Iterator[tuple[str, object]], report: ReadReport) -> Iterator[tuple[str, object]]:
    for source, record in records:
        if name := public.set_name(record):
            report.sets[name] += 1
        yield source, record
