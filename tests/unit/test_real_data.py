"""1,200 real HH-RLHF pairs through real tokenizers into packed batches, checked token by token.

No NeMo, no ranks: what is looked at is what every rank would compute on.
"""

import gzip
import importlib.util
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemo_tvkd.checkpoints.hf import find_checkpoint
from nemo_tvkd.config.compose import compose
from nemo_tvkd.data.batch import Item, collate
from nemo_tvkd.errors import UserError
from nemo_tvkd.parallel.sequence import response_states
from nemo_tvkd.prepare.encoder import Encoder

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh_rlhf_harmless_1200.jsonl.gz"
EMPTY = (87, 517, 926, 1104)
"""The lines whose chosen response is empty."""
ASSISTANT = "\n\nAssistant:"
TOKENIZERS = {
    # (package, file), size of the vocabulary
    "mistral": (("mistral_common", "data/tokenizer.model.v1"), 32000),
    "llama3": (("llama_models", "llama3/tokenizer.model"), 128256),
}

real_data = pytest.mark.skipif(not REAL.exists(), reason=f"the real HH-RLHF pairs are not here: {REAL} does not exist")


class Read:
    """The pairs as one tokenizer sees them."""

    def __init__(self, name: str, folder: Path) -> None:
        from transformers import LlamaConfig

        (package, file), vocabulary = TOKENIZERS[name]
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            pytest.skip(f"{package} is not installed: its tokenizer is what is tested")
        self.file = str(Path(spec.submodule_search_locations[0]) / file)
        LlamaConfig(vocab_size=vocabulary, eos_token_id=None, bos_token_id=None).save_pretrained(folder)
        (folder / "model.safetensors").touch()  # never read here
        self.checkpoint = find_checkpoint(str(folder), "student.path")
        self.said: list[str] = []
        self.rows = self.encoder("data.on_bad_row=skip").read([str(REAL)], "data.train", True, self.said.append)

    def encoder(self, *options: str) -> Encoder:
        data = compose("train", ["data.max_length=2048", *options]).data  # the longest pair has more than 1,024 tokens
        return Encoder.build(self.checkpoint, self.file, data, "student.tokenizer")


@pytest.fixture(scope="module", params=TOKENIZERS)
def read(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Read:
    return Read(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def lines() -> dict[int, dict[str, str]]:
    """The file's rows by line number, read by other means."""
    with gzip.open(REAL, "rt", encoding="utf-8") as stream:
        return {number: json.loads(line) for number, line in enumerate(stream, 1)}


def line_of(row: Any) -> int:
    return int(row.source.rpartition(":")[2])


@real_data
def test_counts(read: Read, lines: dict[int, dict[str, str]]) -> None:
    assert len(lines) == 1200
    assert [line_of(row) for row in read.rows] == [number for number in lines if number not in EMPTY]
    assert len(read.rows) == 1196
    assert len({row.pair_id for row in read.rows}) == 1196
    (said,) = read.said
    assert said == (
        f"data.train: 1196 pairs from {REAL}; template plain; cut to length: 0 prompts, 0 responses; "
        f"skipped: 4 bad rows, first {REAL}:87: chosen: the response is empty"
    )
    assert not any(row.truncated for row in read.rows)


@real_data
def test_a_bad_row_is_an_error_by_default(read: Read) -> None:
    with pytest.raises(UserError, match=rf"^{REAL}:87: chosen: the response is empty$"):
        read.encoder().read([str(REAL)], "data.train", True)


@real_data
def test_prompt_and_response_are_the_file_s_text(read: Read, lines: dict[int, dict[str, str]]) -> None:
    """BOS and the prompt; the response and one end token: nothing lost, nothing in both, whatever the pair."""
    tokenizer = read.encoder().tokenizer
    for row in read.rows:
        record = lines[line_of(row)]
        for side, ids in (("chosen", row.chosen_ids), ("rejected", row.rejected_ids)):
            prompt, mark, reply = record[side].rpartition(ASSISTANT)
            assert ids[-1] == tokenizer.eos_token_id
            assert tokenizer.eos_token_id not in ids[:-1]
            assert row.prompt_ids[0] == tokenizer.bos_token_id
            # sentencepiece puts a space before a text and takes one away on decoding: ends are compared without
            assert tokenizer.decode(row.prompt_ids[1:]).strip() == (prompt + mark).strip()
            assert tokenizer.decode(ids[:-1]).strip() == reply.strip()
            together = np.concatenate([row.prompt_ids[1:], ids[:-1]])
            assert tokenizer.decode(together).strip() == record[side].strip()


def expected_row(items: list[Item]) -> list[tuple[list[int], int]]:
    """(all tokens, number of prompt tokens) of each sequence: the chosen ones, then the rejected ones."""
    sides = [[(i.tokens.prompt_ids, i.tokens.chosen_ids) for i in items]]
    sides.append([(i.tokens.prompt_ids, i.tokens.rejected_ids) for i in items])
    return [([*prompt.tolist(), *response.tolist()], len(prompt)) for side in sides for prompt, response in side]


@real_data
@pytest.mark.parametrize("multiple", [1, 2, 8])
def test_packed_batches_token_by_token(read: Read, lines: dict[int, dict[str, str]], multiple: int) -> None:
    tokenizer = read.encoder().tokenizer
    rows = random.Random(multiple).sample(read.rows, 64)
    for start in range(0, 64, 4):
        items = [Item(row) for row in rows[start : start + 4]]
        batch = collate(items, multiple)
        sequences = expected_row(items)
        total = sum(len(ids) for ids, _ in sequences)
        width = total + -total % multiple
        assert batch["count"] == 4
        assert batch["tokens"].shape == batch["position_ids"].shape == (1, width)
        assert batch["labels"].shape == (width,)
        assert batch["lengths"][:8] == [len(ids) for ids, _ in sequences]
        assert batch["lengths"][8:] == ([width - total] if width > total else [])
        bounds = [0]
        for length in batch["lengths"]:
            bounds.append(bounds[-1] + length)
        assert batch["cu_seqlens"].tolist() == bounds
        assert batch["cu_seqlens"].dtype == torch.int32
        tokens, positions, labels = (batch[n].flatten().tolist() for n in ("tokens", "position_ids", "labels"))
        at, counts = response_states(*(batch[f"{n}lengths"] for n in ("", "prompt_", "response_")), "actions")
        in_place = batch["labels"][at].split(counts)
        assert len(in_place) == 8
        for index, (ids, prompt) in enumerate(sequences):
            assert batch["prompt_lengths"][index] == prompt
            assert batch["response_lengths"][index] == len(ids) - prompt
            for at, token in enumerate(ids):
                assert tokens[bounds[index] + at] == token
                assert positions[bounds[index] + at] == at
                if at + 1 < len(ids):  # the last state predicts nothing, and its label counts nowhere
                    assert labels[bounds[index] + at] == ids[at + 1]
            # what the losses will read as the response's labels is the response, whole, and its end token
            response = in_place[index].tolist()
            assert response == ids[prompt:]
            side = "chosen" if index < 4 else "rejected"
            text = lines[line_of(items[index % 4].tokens)][side].rpartition(ASSISTANT)[2]
            assert response[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(response[:-1]).strip() == text.strip()


@real_data
def test_cut_to_length(read: Read) -> None:
    """Cut prompts keep BOS and their end; a cut response has no end token, so it never looks finished."""
    said: list[str] = []
    options = ("data.on_bad_row=skip", "data.max_length=160", "data.max_prompt_length=100")
    encoder = read.encoder(*options)
    end, bos = encoder.tokenizer.eos_token_id, encoder.tokenizer.bos_token_id
    whole = {line_of(row): row for row in read.rows}
    prompts = responses = 0
    for row in encoder.read([str(REAL)], "data.train", True, said.append):
        full = whole[line_of(row)]
        cut = len(full.prompt_ids) > 100
        prompts += cut
        kept = [bos, *full.prompt_ids[len(full.prompt_ids) - 99 :]] if cut else full.prompt_ids
        assert row.prompt_ids.tolist() == list(kept)
        for ids, all_ids in ((row.chosen_ids, full.chosen_ids), (row.rejected_ids, full.rejected_ids)):
            room = 160 - len(row.prompt_ids)
            assert ids.tolist() == all_ids[:room].tolist()
            assert (ids[-1] == end) == (len(all_ids) <= room)
            responses += len(all_ids) > room
    assert prompts > 100
    assert responses > 100
    assert f"cut to length: {prompts} prompts, {responses} responses" in said[0]


@real_data
def test_examples_for_sft(read: Read) -> None:
    """The same file as examples: the chosen responses alone, and one sequence each in a batch."""
    examples = read.encoder("data.on_bad_row=skip").read([str(REAL)], "data.train", False, lambda line: None)
    assert len(examples) == 1196
    for example, pair in zip(examples, read.rows, strict=True):
        assert example.rejected_ids is None
        assert np.array_equal(example.prompt_ids, pair.prompt_ids)
        assert np.array_equal(example.chosen_ids, pair.chosen_ids)
    batch = collate([Item(row) for row in examples[:3]])
    assert (batch["count"], len(batch["lengths"])) == (3, 3)


@real_data
def test_nothing_of_nemo_is_needed() -> None:
    import subprocess

    program = (
        "import sys\nimport nemo_tvkd.prepare.training, nemo_tvkd.data.batch, nemo_tvkd.scores.store\n"
        "assert not {'nemo', 'megatron'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
