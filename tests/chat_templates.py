"""What the tests of tokenizers and templates share: published chat templates, tokenizer files, a pair and its ids."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_tvkd.data.records import Row, row_from_record
from nemo_tvkd.data.template import Tokenized

MISTRAL_CHAT = (  # Mistral-7B-Instruct-v0.2's
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_CHAT_V01 = (  # Mistral-7B-Instruct-v0.1's prints a space behind </s> and none before the response
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token + ' ' }}{% endif %}{% endfor %}"
)
LLAMA3_CHAT = (  # Meta-Llama-3-8B-Instruct's
    "{% for message in messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim"
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

MISTRAL_PROMPT = [1, 733, 16289, 28793, 15359, 733, 28748, 16289, 28793]  # <s> ▁[ INST ] ▁Hi ▁[ / INST ]
LLAMA_PROMPT = [128000, 128006, 882, 128007, 271, 13347, 128009, 128006, 78191, 128007, 271]


TURNS = (
    ("system", "Be brief."),
    *(("user", "Hi"), ("assistant", "Yes?")),
    *(("user", "2+2"), ("assistant", "Four.")),
    *(("user", "(a)"), ("assistant", "(b)")),
)
"""Three answers; the last question and answer tempt Mistral's tokenizer to join them with what is around them."""


def file_of(package: str, *parts: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed: its tokenizer is what is tested")
    return str(Path(spec.submodule_search_locations[0]).joinpath(*parts))


def pair(ask: str = "Hi", chosen: str = "Yes", rejected: str | None = "No") -> Row:
    prompt = [{"role": "user", "content": ask}]
    return row_from_record({"prompt": prompt, "chosen": chosen, "rejected": rejected}, "f:1", rejected is not None)


def conversation(*turns: tuple[str, str]) -> Row:
    messages = [{"role": role, "content": text} for role, text in turns]
    return row_from_record({"messages": messages}, "f:1", False)


def ids(tokenized: Tokenized) -> tuple[list[int], list[int], list[int]]:
    assert tokenized.rejected_ids is not None
    for array in (tokenized.prompt_ids, tokenized.chosen_ids, tokenized.rejected_ids):
        assert array.dtype == np.int32
    return tokenized.prompt_ids.tolist(), tokenized.chosen_ids.tolist(), tokenized.rejected_ids.tolist()


def trained(tokenizer: Any, made: Tokenized) -> list[str]:
    """What each run of trained tokens spells."""
    mask = made.chosen_mask
    assert mask is not None
    assert (mask.dtype, mask.shape) == (bool, made.chosen_ids.shape)
    starts = [i for i in np.flatnonzero(mask) if not i or not mask[i - 1]]
    runs = [made.chosen_ids[i:][: int(np.argmin([*mask[i:], False]))].tolist() for i in starts]
    return [tokenizer.decode(run) for run in runs]
