"""Rows as token ids: lengths and what is cut, examples, hashes, counts, and nothing lost of real pairs."""

import hashlib
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from chat_templates import LLAMA_PROMPT, MISTRAL_PROMPT, ids, pair
from data_files import read_rows

from nemo_tvkd.data.encoding import tokenize_rows
from nemo_tvkd.data.template import Template
from nemo_tvkd.errors import UserError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh_rlhf_harmless_1200.jsonl.gz"


def test_long_prompt_keeps_bos_and_its_end(templates: dict[str, Template]) -> None:
    made = templates["mistral"].encode(pair(), 100, 4)
    assert made.prompt_ids.tolist() == [1, *MISTRAL_PROMPT[-3:]]
    assert made.truncated
    assert templates["mistral"].encode(pair(), 100, 1).prompt_ids.tolist() == [1]
    assert not templates["mistral"].encode(pair(), 100, 9).truncated
    no_bos = Template(templates["mistral"].tokenizer, "plain")
    no_bos._lead = []
    assert no_bos.encode(replace(pair(), plain_prompt="Hi"), 100, 1).prompt_ids.tolist() == [15359]
    full = no_bos.encode(pair(), 100, None).prompt_ids.tolist()
    assert no_bos.encode(pair(), 100, 3).prompt_ids.tolist() == full[-3:]


def test_long_response_is_cut_without_an_end(templates: dict[str, Template]) -> None:
    row = pair(chosen="one two three four", rejected="No")
    whole = ids(templates["mistral"].encode(row, 100, None))[1]
    assert len(whole) == 5
    made = templates["mistral"].encode(row, 13, None)
    assert ids(made) == (MISTRAL_PROMPT, whole[:4], [1770, 2])  # only </s> did not fit
    assert made.truncated
    assert not templates["mistral"].encode(row, 14, None).truncated


def test_prompt_that_fills_max_length(templates: dict[str, Template]) -> None:
    for limit in (None, 8, 9, 50):
        with pytest.raises(UserError, match=r"^f:1: the prompt's 9 tokens fill data\.max_length=9$"):
            templates["mistral"].encode(pair(), 9, limit)
    assert ids(templates["mistral"].encode(pair(), 10, None)) == (MISTRAL_PROMPT, [5592], [1770])


def test_same_ids_are_a_bad_row(templates: dict[str, Template]) -> None:
    row = pair(chosen="one two three", rejected="one two four")
    with pytest.raises(UserError, match=r"^f:1: chosen and rejected have the same 2 token ids"):
        templates["mistral"].encode(row, 11, None)
    with pytest.raises(UserError, match=r"^f:1: chosen and rejected have the same 2 token ids"):
        templates["llama"].encode(pair(chosen="Yes", rejected="Yes "), 100, None)


def test_example_has_no_rejected(templates: dict[str, Template]) -> None:
    made = templates["llama"].encode(pair(rejected=None), 100, None)
    assert (made.prompt_ids.tolist(), made.chosen_ids.tolist()) == (LLAMA_PROMPT, [9642, 128009])
    assert made.rejected_ids is None


def test_pair_id(templates: dict[str, Template]) -> None:
    made = templates["mistral"].encode(pair(), 100, None)
    data = struct.pack("<3q", 9, 2, 2) + struct.pack("<13i", *MISTRAL_PROMPT, 5592, 2, 1770, 2)
    assert made.pair_id == hashlib.sha256(data).hexdigest()[:32]
    single = templates["mistral"].encode(pair(rejected=None), 100, None)
    data = struct.pack("<3q", 9, 2, -1) + struct.pack("<11i", *MISTRAL_PROMPT, 5592, 2)
    assert single.pair_id == hashlib.sha256(data).hexdigest()[:32]


def test_rewards_are_kept(templates: dict[str, Template]) -> None:
    made = templates["mistral"].encode(replace(pair(), chosen_reward=2.0, rejected_reward=-1.0), 100, None)
    assert (made.chosen_reward, made.rejected_reward) == (2.0, -1.0)


def test_tokenize_rows_counts(templates: dict[str, Template]) -> None:
    rows = [
        pair(),
        pair(ask="one two three four five six"),
        pair(chosen="one two three four five", rejected="six seven eight nine ten"),
        replace(pair(chosen="Yes", rejected="Yes "), source="f:4"),
    ]
    with pytest.raises(UserError, match=r"^f:4: "):
        tokenize_rows(rows, templates["llama"], max_length=16, max_prompt_length=14)
    kept, report = tokenize_rows(rows, templates["llama"], max_length=16, max_prompt_length=14, on_bad_row="skip")
    assert [made.truncated for made in kept] == [False, True, True]
    assert (report.pairs, report.prompts_truncated, report.responses_truncated) == (3, 1, 2)
    assert report.bad == ["f:4: chosen and rejected have the same 2 token ids"]
    with pytest.raises(UserError, match=r"^each of the 1 rows is bad; the first: f:4: "):
        tokenize_rows(rows[3:], templates["llama"], max_length=16, max_prompt_length=14, on_bad_row="skip")
    with pytest.raises(UserError, match=r"data\.on_bad_row=warn"):
        tokenize_rows(rows, templates["llama"], max_length=16, max_prompt_length=14, on_bad_row="warn")


@pytest.mark.skipif(not REAL.exists(), reason=f"the real HH-RLHF pairs are not here ({REAL})")
@pytest.mark.parametrize("name", ["mistral plain", "llama plain", "llama"])
def test_real_pairs(name: str, templates: dict[str, Template]) -> None:
    """Nothing of the text is lost or shifted between prompt and response, whatever the row."""
    template = templates[name]
    rows = read_rows([str(REAL)], on_bad_row="skip")[0][:400]
    kept, report = tokenize_rows(rows, template, max_length=4096, max_prompt_length=None)
    assert (report.pairs, report.prompts_truncated, report.responses_truncated) == (400, 0, 0)
    end = 128009 if name == "llama" else template.tokenizer.eos_token_id
    for row, made in zip(rows, kept, strict=True):
        for response, text, plain in zip(
            ids(made)[1:], (row.chosen, row.rejected), (row.plain_chosen, row.plain_rejected), strict=True
        ):
            assert response[-1] == end
            assert end not in response[:-1]
            if name == "llama":
                assert template.tokenizer.decode(response[:-1]) == text
            else:
                whole = template.tokenizer.decode([*made.prompt_ids[1:], *response[:-1]])
                assert whole == row.plain_prompt + (plain or "")
