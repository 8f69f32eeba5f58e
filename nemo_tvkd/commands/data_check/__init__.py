"""`nemo-tvkd data check PATH`: what is in a data file, before a model is trained on it."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_tvkd.errors import UserError
from nemo_tvkd.files import write_result

KEY = "data.train"


def main(config: Any) -> int:
    """Print what was recognised in data.train; 0 also where rows are bad.

    Raises:
        UserError: a mistake in the configuration; a path, file or data set that cannot be read (to its end): what was
            read before is shown.
    """
    from nemo_tvkd.commands.data_check.figures import Check, reads_pairs
    from nemo_tvkd.commands.data_check.show import show
    from nemo_tvkd.config.paths import check_result, weighted_paths
    from nemo_tvkd.config.values import check_values

    check_values(config)
    paths, weights = weighted_paths(config.data.train, KEY)
    if config.output:
        check_result(config.output, "output", "a JSON", paths)
    template = _template(config)
    pairs = reads_pairs(paths, KEY, config.rows)
    check = Check(pairs=pairs, template=template, data=config.data, examples=config.examples)
    with _status() as report_count:
        check.read(paths, KEY, report_count)
    figures = {"paths": paths, "weights": weights, "tokenizer": config.tokenizer or None, **check.figures()}
    if config.output:
        write_result(Path(config.output), json.dumps(figures, indent=2) + "\n")
    if check.report.files:
        show(figures)
    if check.error:
        raise UserError(check.error)
    return 0


def _template(config: Any) -> Any:
    """The chat template of the tokenizer; None where lengths are to be in characters."""
    data = config.data
    if not config.tokenizer:
        for name in ("chat_template", "end_token", "pad_token", "assistant_turns"):
            if data[name] not in ("", "auto", "last"):
                raise UserError(f"data.{name}={data[name]} says how text becomes tokens: give tokenizer=MODEL as well")
        return None
    from nemo_tvkd.checkpoints.hf import Checkpoint, find_checkpoint
    from nemo_tvkd.data.template import Template
    from nemo_tvkd.data.tokenizer import TOKENIZER_FILES, load_tokenizer, set_tokens
    from nemo_tvkd.prepare.encoder import Encoder

    place = Path(config.tokenizer).expanduser()
    if not place.is_file() and not any((place / name).exists() for name in TOKENIZER_FILES):
        place = find_checkpoint(config.tokenizer, "tokenizer").hf_dir
    if (place / "config.json").is_file():  # it may name more tokens that end a response
        return Encoder.build(Checkpoint("hf", place, place), "", data, "tokenizer").template
    loaded = load_tokenizer(str(place), "tokenizer")
    set_tokens(loaded, data.end_token, data.pad_token)
    if loaded.eos_token_id is None:
        raise UserError(f"tokenizer: {place} has no end-of-sequence token: name one by data.end_token")
    return Template(loaded, data.chat_template)


@contextmanager
def _status() -> Iterator[Callable[[int], None]]:
    """Says how far reading is, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console

    with Console(stderr=True).status("reading") as shown:
        yield lambda count: shown.update(f"reading: {count:,} rows")
