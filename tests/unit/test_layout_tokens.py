"""Every layout, from a file of every format, against ids and masks written by hand, with two real tokenizers.

The ids come from the bare sentencepiece and tiktoken libraries (see `check_by_hand`), not from the code under test.
"""

from pathlib import Path
from typing import Any

import datasets
import pytest
from data_files import FORMATS, Records, read_rows
from pair_records import ASK, HH, RIGHT, WRONG, from_value

from nemo_tvkd.data.batch import Item, collate
from nemo_tvkd.data.records import REWARDS
from nemo_tvkd.data.template import Template, Tokenized
from nemo_tvkd.parallel.sequence import response_states

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}, ASK]
OLD_TURNS = [from_value("human", "Hi"), from_value("gpt", "Hello!"), from_value("human", "Two plus two?")]
OLD_RIGHT, OLD_WRONG = from_value("gpt", "Four."), from_value("gpt", "Five.")
ASSISTANT_TEXTS = {"chosen": " Four.", "rejected": " Five."}

PAIRS: dict[str, dict[str, Any]] = {
    "strings": {"prompt": HH, **ASSISTANT_TEXTS},
    "messages": {"prompt": TURNS, "chosen": [RIGHT], "rejected": [WRONG]},
    "messages, responses as text": {"prompt": TURNS, "chosen": "Four.", "rejected": "Five."},
    "a prompt string with whole conversations": {
        "prompt": "Two plus two?",
        "chosen": [*TURNS, RIGHT],
        "rejected": [*TURNS, WRONG],
    },
    "a prompt repeated in whole conversations": {
        "prompt": TURNS,
        "chosen": [*TURNS, RIGHT],
        "rejected": [*TURNS, WRONG],
    },
    "transcripts": {"chosen": HH + " Four.", "rejected": HH + " Five."},
    "message lists": {"chosen": [*TURNS, RIGHT], "rejected": [*TURNS, WRONG]},
    "from/value": {"chosen": [*OLD_TURNS, OLD_RIGHT], "rejected": [*OLD_TURNS, OLD_WRONG]},
    "from/value, turns apart": {"conversations": OLD_TURNS, "chosen": OLD_RIGHT, "rejected": OLD_WRONG},
}
EXAMPLES: dict[str, dict[str, Any]] = {
    "messages": {"messages": [*TURNS, RIGHT]},
    "conversations": {"conversations": [*OLD_TURNS, OLD_RIGHT]},
    "completion": {"prompt": HH, "completion": " Four."},
    "completion as messages": {"prompt": TURNS, "completion": [RIGHT]},
    "response": {"prompt": HH, "response": " Four."},
    "instruction": {"instruction": HH, "input": "", "output": " Four."},
    "half a pair": {"chosen": HH + " Four."},
}

EXPECTED: dict[str, tuple[list[int], list[int], list[int]]] = {
    # <s>, the transcript | Four . </s> | Five . </s>
    "mistral plain": (
        [1, 28705, 13, 13, 28769, 6366, 28747, 15359, 13, 13, 7226, 11143, 28747, 22557, 28808]
        + [13, 13, 28769, 6366, 28747, 6005, 3285, 989, 28804, 13, 13, 7226, 11143, 28747],
        [9611, 28723, 2],
        [15243, 28723, 2],
    ),
    # <s> [INST] Hi [/INST] Hello! </s> [INST] Two plus two? [/INST]
    "mistral mistral": (
        [1, 733, 16289, 28793, 15359, 733, 28748, 16289, 28793, 22557, 28808, 2]
        + [733, 16289, 28793, 6005, 3285, 989, 28804, 733, 28748, 16289, 28793],
        [9611, 28723, 2],
        [15243, 28723, 2],
    ),
    # <|begin_of_text|>, the transcript | Four . <|end_of_text|>
    "llama plain": (
        [128000, 271, 35075, 25, 21694, 271, 72803, 25, 22691, 2268, 35075, 25, 9220, 5636, 1403, 1980, 72803, 25],
        [13625, 13, 128001],
        [21594, 13, 128001],
    ),
    # <|start_header_id|> user <|end_header_id|> \n\n Hi <|eot_id|> ...
    "llama llama3": (
        [128000, 128006, 882, 128007, 271, 13347, 128009, 128006, 78191, 128007, 271, 9906, 0, 128009]
        + [128006, 882, 128007, 271, 11874, 5636, 1403, 30, 128009, 128006, 78191, 128007, 271],
        [28070, 13, 128009],
        [38120, 13, 128009],
    ),
}
MASKS = {
    # one character for each token of the packed row, chosen before rejected: 1 where it is trained on
    "mistral plain": "00000000000000000000000000000111" * 2,
    "mistral mistral": "00000000000000000000000111" * 2,
    "llama plain": "000000000000000000111" * 2,
    "llama llama3": "000000000000000000000000000111" * 2,
}


@pytest.fixture(scope="module")
def made(mistral: Any, llama: Any) -> dict[str, Template]:
    tokenizers = {"mistral": mistral, "llama": llama}
    return {name: Template(tokenizers[name.split()[0]], name.split()[1]) for name in EXPECTED}


@pytest.fixture(scope="module", autouse=True)
def _quiet(tmp_path_factory: pytest.TempPathFactory) -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
    patch.undo()


def trained(tokens: Tokenized) -> str:
    """Which tokens of the packed row the loss reads as labels."""
    batch = collate([Item(tokens)])
    at, _ = response_states(batch["lengths"], batch["prompt_lengths"], batch["response_lengths"], "actions")
    row = batch["tokens"].flatten().tolist()
    mask = ["0"] * len(row)
    for state in at.tolist():
        assert batch["labels"][state] == row[state + 1]
        mask[state + 1] = "1"
    return "".join(mask)


def check(path: Path, made: dict[str, Template], pairs: bool, count: int, rewards: bool = False) -> None:
    rows, report = read_rows([str(path)], need_rejected=pairs)
    assert (len(rows), report.rows, report.bad) == (count, count, [])
    for name, template in made.items():
        prompt, chosen, rejected = EXPECTED[name]
        for number, row in enumerate(rows, 1):
            tokens = template.encode(row, 1024, None)
            assert tokens.prompt_ids.tolist() == prompt, name
            assert tokens.chosen_ids.tolist() == chosen, name
            assert not tokens.truncated
            mask = MASKS[name] if pairs else MASKS[name][: len(prompt + chosen)]
            assert trained(tokens) == mask
            assert (tokens.rejected_ids.tolist() if tokens.rejected_ids is not None else None) == (
                rejected if pairs else None
            )
            if rewards:
                assert (tokens.chosen_reward, tokens.rejected_reward, row.id) == (float(number), -0.5, f"n{number}")


def test_the_masks_are_as_long_as_the_ids() -> None:
    for name, (prompt, chosen, rejected) in EXPECTED.items():
        assert len(MASKS[name]) == 2 * len(prompt) + len(chosen) + len(rejected)


@pytest.mark.parametrize("form", FORMATS)
def test_pairs(form: str, made: dict[str, Template], tmp_path: Path) -> None:
    name, write = FORMATS[form]
    for number, (layout, record) in enumerate(PAIRS.items()):
        better, worse = REWARDS[number % len(REWARDS)]
        folder = tmp_path / layout.replace("/", " ")
        folder.mkdir()
        more: Records = [{"id": f"n{i}", better: float(i), worse: -0.5, "extra": [i]} for i in (1, 2, 3)]
        write(folder / name, [{**record, **each} for each in more])
        check(folder / name, made, True, 3, rewards=True)


@pytest.mark.parametrize("form", FORMATS)
def test_examples(form: str, made: dict[str, Template], tmp_path: Path) -> None:
    name, write = FORMATS[form]
    for layout, record in EXAMPLES.items():
        (tmp_path / layout).mkdir()
        write(tmp_path / layout / name, [record] * 2)
        check(tmp_path / layout / name, made, False, 2)


def test_layouts_in_one_table(made: dict[str, Template], tmp_path: Path) -> None:
    """Columns that a row does not have are nulls there, and so are a message's keys."""
    name, write = FORMATS["Parquet"]
    pairs = [PAIRS[layout] for layout in ("message lists", "from/value", "a prompt string with whole conversations")]
    examples = [EXAMPLES[layout] for layout in ("messages", "completion", "conversations", "response")]
    for records in (pairs, examples):
        columns = dict.fromkeys(column for record in records for column in record)
        write(tmp_path / name, [{**columns, **record} for record in records])
        check(tmp_path / name, made, records is pairs, len(records))


def test_a_sequence_of_messages(made: dict[str, Template], tmp_path: Path) -> None:
    """`datasets` stored a Sequence of objects as an object of lists."""
    name, write = FORMATS["Parquet"]
    record = {
        side: {"role": [turn["role"] for turn in turns], "content": [turn["content"] for turn in turns]}
        for side, turns in PAIRS["message lists"].items()
    }
    write(tmp_path / name, [record])
    check(tmp_path / name, made, True, 1)


def check_by_hand(sentencepiece_file: str, tiktoken_file: str) -> None:
    """How EXPECTED was made, with nothing of this project."""
    import sentencepiece
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    pieces = sentencepiece.SentencePieceProcessor(model_file=sentencepiece_file)
    asked = [1, *pieces.encode("[INST] Hi [/INST]"), *pieces.encode("Hello!"), 2]
    asked += pieces.encode("[INST] Two plus two? [/INST]")
    answers = [[*pieces.encode(text), 2] for text in ("Four.", "Five.")]
    assert EXPECTED["mistral plain"] == ([1, *pieces.encode(HH)], *answers)
    assert EXPECTED["mistral mistral"] == (asked, *answers)
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    ranks = load_tiktoken_bpe(tiktoken_file)
    bare = tiktoken.Encoding("llama3", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    plain = [[*bare.encode(text), 128001] for text in (" Four.", " Five.")]
    assert EXPECTED["llama plain"] == ([128000, *bare.encode(HH)], *plain)
    prompt = [128000]
    for turn in (*TURNS, {"role": "assistant", "content": ""}):
        prompt += [128006, *bare.encode(turn["role"]), 128007, *bare.encode("\n\n")]
        prompt += [*bare.encode(turn["content"]), 128009] if turn["content"] else []
    replies = [[*bare.encode(text), 128009] for text in ("Four.", "Five.")]
    assert EXPECTED["llama llama3"] == (prompt, *replies)


def test_the_expectation_is_that_of_the_bare_libraries(mistral_file: str, llama_file: str) -> None:
    check_by_hand(mistral_file, llama_file)
