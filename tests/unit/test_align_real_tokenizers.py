"""Positions of the real Mistral v1 and Llama 3 tokenizers' states over random Unicode and real pairs.

Independent reference: the bytes of each token, from sentencepiece's pieces and llama_models' tiktoken ranks. A state
has read the whole characters that the bytes before it spell; no offsets are looked at. Texts of the real pairs are
kept out of messages: they can be offensive.
"""

import codecs
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import read_rows

from nemo_tvkd.data.align import align_states
from nemo_tvkd.data.encoding import tokenize_rows
from nemo_tvkd.data.records import Row, row_from_record
from nemo_tvkd.data.template import Template
from nemo_tvkd.data.tokenized import Tokenized

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh_rlhf_harmless_1200.jsonl.gz"
NAMES = ("mistral", "mistral v0.1", "mistral plain", "llama", "llama plain")
LONG = {"max_length": 4096, "max_prompt_length": None}

Bytes = Callable[[int], bytes]

ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFXYZ0123456789.,;:!?'\"()[]{}/\\*#-_=+&%$@~`|",
    "éèüößñçåøłžşğĩﬁ½²™Å",
    "e\u0301a\u0308o\u0302\u0323n\u0303q\u0330\u20dd",
    "世界漢字仮名交じり文ひらがなカタカナ한국어조선말你好嗎𠀀𪚥龘",
    "שלום עולםمرحبا بالعالم\u200f\u202b\u202c",
    "हिन्दी ไทย தமிழ் ሰላም ქართული",
    "🤖👍🏽🇫🇷🏳❤☃𒀀𝔘\U0010fffd\ue000\ufdd0",
    "\u200d\u200b\ufeff\ufe0f\u2060\x00\x07\x7f",
    " \t\n\r\u00a0\u3000\u2028\x85\x1c",
)
WORDS = (
    *(
        "the ",
        "Hello",
        " world",
        "12345",
        "don't",
        "https://a.b/c?d=e",
        "\r\n",
        "\n\n",
        "    ",
        "\n\nAssistant:",
        "[/INST]",
    ),
    *(
        "👨‍👩‍👧‍👦",
        "👩🏾‍🚀",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "e\u0301\u0323",
        "<0x0A>",
        "���",
    ),
)


def random_text(draw: random.Random) -> str:
    """Runs of a few characters of one kind after the other, with something in it that is no white space."""
    while True:
        runs = []
        for _ in range(draw.randint(1, 12)):
            if draw.random() < 0.3:
                runs.append(draw.choice(WORDS))
            else:
                runs.append("".join(draw.choices(draw.choice(ALPHABETS), k=draw.randint(1, 6))))
        if (text := "".join(runs)).strip():
            return text


def random_rows(seed: int, count: int) -> list[Row]:
    draw = random.Random(seed)
    rows: list[Row] = []
    while len(rows) < count:
        chosen, rejected = random_text(draw), random_text(draw)
        if chosen.strip() != rejected.strip():
            prompt = [{"role": "user", "content": random_text(draw)}]
            record = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            rows.append(row_from_record(record, f"seed {seed}:{len(rows) + 1}", True))
    return rows


@pytest.fixture(scope="module")
def bytes_of(mistral_file: str) -> dict[str, Bytes]:
    """The bytes of a token by its id, as the tokenizers' own libraries have them; nothing for control tokens."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=mistral_file)
    ranks = pytest.importorskip("llama_models.llama3.tokenizer").Tokenizer.get_instance()
    special = set(ranks.special_tokens.values())

    def mistral(token: int) -> bytes:
        piece = pieces.id_to_piece(token)
        if pieces.is_byte(token):
            return bytes([int(piece[3:5], 16)])
        assert not pieces.is_unknown(token)
        return b"" if pieces.is_control(token) else piece.replace("▁", " ").encode()

    def llama(token: int) -> bytes:
        return b"" if token in special else ranks.model.decode_single_token_bytes(token)

    return {"mistral": mistral, "llama": llama}


def expected_positions(tokens: list[int], text: str, bytes_of: Bytes, where: str) -> list[int]:
    """Positions of a response with its end token, by reading its bytes one token after the other."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    seen = [""]
    for token in tokens[:-1]:
        seen.append(seen[-1] + decoder.decode(bytes_of(token)))
    lead = len(seen[-1]) - len(seen[-1].lstrip())
    spelled = seen[-1][lead : lead + len(text)] == text and not seen[-1][lead + len(text) :].strip()
    if decoder.getstate()[0] or not spelled:
        pytest.fail(f"{where}: the ids do not spell the text")
    return [min(max(len(read) - lead, 0), len(text)) for read in seen] + [len(text) + 1]


def sides(made: Tokenized, row: Row) -> list[tuple[list[int], np.ndarray, str]]:
    """(ids, positions, text) of each response."""
    assert made.chosen_positions is not None
    assert made.rejected_positions is not None
    assert made.rejected_ids is not None
    assert row.rejected is not None
    chosen = (made.chosen_ids.tolist(), made.chosen_positions, row.chosen.strip())
    return [chosen, (made.rejected_ids.tolist(), made.rejected_positions, row.rejected.strip())]


def check_rows(template: Template, rows: list[Row], bytes_of: Bytes) -> list[Tokenized]:
    """`rows` with positions, all of them as expected, and the ids those of rows without positions."""
    kept, _ = tokenize_rows(rows, template, **LONG, positions=True)  # type: ignore[arg-type]
    bare, _ = tokenize_rows(rows, template, **LONG)  # type: ignore[arg-type]
    assert [made.pair_id for made in kept] == [made.pair_id for made in bare]
    for made, plain, row in zip(kept, bare, rows, strict=True):
        assert plain.chosen_positions is plain.rejected_positions is None
        assert np.array_equal(made.prompt_ids, plain.prompt_ids), row.source
        assert np.array_equal(made.chosen_ids, plain.chosen_ids), row.source
        assert np.array_equal(made.rejected_ids, plain.rejected_ids), row.source
        assert row.plain_chosen.strip() == row.chosen.strip() or pytest.fail(f"{row.source}: two texts")
        for tokens, positions, text in sides(made, row):
            assert positions.dtype == np.int32
            assert positions.tolist() == expected_positions(tokens, text, bytes_of, row.source), row.source
    return kept


def check_alignment(student: np.ndarray, teacher: np.ndarray) -> None:
    """What every alignment of two whole responses with one text must be."""
    assert student[-1] == teacher[-1]
    states = align_states(student, teacher)
    end = len(teacher) - 1
    assert len(states) == len(student)
    assert states[0] == 0
    assert states[-1] == end
    assert np.all(states[:-1] < end)
    assert np.all(np.diff(states) >= 0)
    assert np.all(teacher[states] <= student)
    inner = states[1:-1]
    assert np.all(teacher[inner + 1] > student[1:-1])


def check_own_alignment(positions: np.ndarray) -> None:
    states = align_states(positions, positions)
    single = [np.count_nonzero(positions == position) == 1 for position in positions]
    assert np.array_equal(states[single], np.arange(len(positions))[single])
    assert np.array_equal(positions[states], positions)


@pytest.mark.parametrize("name", NAMES)
def test_random_texts(name: str, templates: dict[str, Template], bytes_of: dict[str, Bytes]) -> None:
    rows = random_rows(11, 500)
    kept = check_rows(templates[name], rows, bytes_of[name.split()[0]])
    split = 0
    for made, row in zip(kept, rows, strict=True):
        for _, positions, text in sides(made, row):
            check_own_alignment(positions)
            split += bool(np.any(np.diff(positions[1:-1]) == 0)) and not text.isascii()
    assert split > 100  # the texts did have characters in pieces


@pytest.mark.parametrize("name", NAMES)
def test_cut_random_texts(name: str, templates: dict[str, Template]) -> None:
    """Whatever the cut, the states that are left have the positions they had."""
    template = templates[name]
    for row in random_rows(12, 60):
        whole = template.encode(row, 4096, None, positions=True)
        for room in (1, 2, 3, 5, 8, 13):
            responses = [tokens[:room] for tokens, _, _ in sides(whole, row)]
            if responses[0] == responses[1]:
                continue  # a bad row
            made = template.encode(row, len(whole.prompt_ids) + room, None, positions=True)
            for (tokens, positions, _), (all_tokens, all_positions, _) in zip(
                sides(made, row), sides(whole, row), strict=True
            ):
                assert tokens == all_tokens[:room]
                assert positions.tolist() == all_positions[: room + 1].tolist()


@pytest.mark.parametrize("student", NAMES)
@pytest.mark.parametrize("teacher", NAMES)
def test_random_alignments(student: str, teacher: str, templates: dict[str, Template]) -> None:
    for row in random_rows(13, 40):
        made = [templates[name].encode(row, 4096, None, positions=True) for name in (student, teacher)]
        for (_, ours, _), (_, theirs, _) in zip(*(sides(tokenized, row) for tokenized in made), strict=True):
            check_alignment(ours, theirs)


@pytest.mark.parametrize("name", ["mistral", "mistral plain"])
def test_sentencepiece_s_own_mark_in_a_text(name: str, templates: dict[str, Template]) -> None:
    """ "▁" is a space to sentencepiece, so its ids spell another text; the positions count characters all the same."""
    row = row_from_record(
        {"prompt": [{"role": "user", "content": "▁"}], "chosen": "▁a▁▁🤖", "rejected": "b▁"}, "f:1", True
    )
    made = templates[name].encode(row, 100, None, positions=True)
    pieces = templates[name].tokenizer.convert_ids_to_tokens(made.chosen_ids)
    assert pieces == ["▁", "▁a", "▁▁", "<0xF0>", "<0x9F>", "<0xA4>", "<0x96>", "</s>"]
    assert made.chosen_positions is not None
    assert made.chosen_positions.tolist() == [0, 0, 2, 4, 4, 4, 4, 5, 6]


def test_saved_tokenizers_and_other_mistrals(
    mistral: Any, llama: Any, mistral_file: str, bytes_of: dict[str, Bytes], tmp_path: Path
) -> None:
    """As read back from a directory, and with the newer pre-tokenizer in the older normalizer's place."""
    from transformers import LlamaTokenizerFast

    from nemo_tvkd.data.tokenizer import load_tokenizer

    newer = LlamaTokenizerFast(vocab_file=mistral_file, add_prefix_space=True, legacy=False)
    assert "Metaspace" in str(newer.backend_tokenizer.pre_tokenizer)
    for name, tokenizer in (("mistral", mistral), ("llama", llama), ("newer", newer)):
        tokenizer.save_pretrained(tmp_path / name)
        template = Template(load_tokenizer(str(tmp_path / name)), "plain")
        check_rows(template, random_rows(14, 100), bytes_of["llama" if name == "llama" else "mistral"])


@pytest.mark.skipif(not REAL.exists(), reason=f"the real HH-RLHF pairs are not here ({REAL})")
def test_real_pairs(templates: dict[str, Template], bytes_of: dict[str, Bytes]) -> None:
    """100 pairs in all five forms, and each form's states aligned to each other's."""
    rows = random.Random(15).sample(read_rows([str(REAL)], on_bad_row="skip")[0], 110)
    roles = [[turn["role"] for turn in row.messages] for row in rows]
    rows = [
        row
        for row, turns in zip(rows, roles, strict=True)
        if turns == ["user", "assistant"] * (len(turns) // 2) + ["user"]
    ]
    rows = rows[:100]
    assert len(rows) == 100
    kept = {name: check_rows(templates[name], rows, bytes_of[name.split()[0]]) for name in NAMES}
    for student in kept.values():
        for teacher in kept.values():
            for row, ours, theirs in zip(rows, student, teacher, strict=True):
                for (_, mine, _), (_, other, _) in zip(sides(ours, row), sides(theirs, row), strict=True):
                    check_alignment(mine, other)
