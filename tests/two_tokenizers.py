"""A student and a teacher with tokenizers of their own, trained here; tiny checkpoints with them, pairs of text rows.

The student's tokenizer is byte-level, without a chat template (the plain transcript); the teacher's is as
sentencepiece makes them, with Mistral's template. What each makes of a row is also said here, from the tokenizers
alone: ids of the text that is known to be rendered, and characters read by decoding the tokens' bytes.
"""

import codecs
import json
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import reference as ref
from chat_templates import MISTRAL_CHAT
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

from nemo_tvkd.checkpoints.hf import find_checkpoint
from nemo_tvkd.commands.score import prepare_scoring, writer_of
from nemo_tvkd.config.compose import compose
from nemo_tvkd.losses.methods import METHODS
from nemo_tvkd.prepare.encoder import Encoder
from nemo_tvkd.prepare.frozen import resolve, training_sources
from nemo_tvkd.prepare.needs import Needs
from nemo_tvkd.prepare.training import Prepared, prepare_training
from nemo_tvkd.scores.shard import PairScores

TRANSCRIPT = (  # the plain transcript as a jinja file
    "{{ bos_token }}{% for m in messages %}"
    "{{ '\n\n' + ('Human' if m['role'] == 'user' else 'Assistant') + ': ' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)

LENGTH = 75
"""data.max_length: cuts one chosen response for the student alone, and one rejected one for the teacher alone."""

TEXTS = (
    ("Who greets whom?", "Hello there, wide world!", "Hello, I am not there."),
    ("Say it in Chinese.", "你好,世界。", "你 好 🤖"),
    ("Où est le café?", "Le café est là, à côté du théâtre.", "Nai\u0308ve: e\u0301te\u0301!"),
    ("Only a robot 🤖?", "🤖", "no"),
    ("Which family?", "👨\u200d👩\u200d👧 and 👍🏽", "the others, there and there and there"),
    ("Count.", "one two three", "  1\n\n2 3\t4 \n"),
    ("Cut the student's.", "🤖🤖🤖🤖世世世世🤖🤖🤖🤖世世世世 there", "there and there the others"),
    ("Cut the teacher's.", "the others", "world " * 12),
)
"""(what is asked, chosen, rejected)."""

_GREETINGS = (
    "hello world, hello there, say it, human and assistant, Human: Assistant: wide white worlds; Count two 12 34"
)
_OTHERS = (
    "the others and there, this and that; the theatre, the café, 你好 世界 界 [INST] [/INST] in the other there, oui"
)


def student_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, 300 tokens, <s> before a plain text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>"]
    backend.train_from_iterator([_GREETINGS] * 5, _trainer(300, special_tokens=special, initial_alphabet=alphabet))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def teacher_tokenizer() -> PreTrainedTokenizerFast:
    """BPE of words that begin with their space, bytes of what it does not know, one space put before every text."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator([_OTHERS] * 5, _trainer(110, special_tokens=["<unk>", "<s>", "</s>"]))
    content = json.loads(trained.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    content["model"] |= {"byte_fallback": True, "fuse_unk": True}
    backend = Tokenizer.from_str(json.dumps(content | {"pre_tokenizer": None}))
    mark = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence(mark)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=MISTRAL_CHAT, **names)


def _trainer(size: int, **kwargs: Any) -> Any:
    return trainers.BpeTrainer(vocab_size=size, show_progress=False, **kwargs)


# --- what each makes of a row, without nemo_tvkd ----------------------------------------------------------------------


@dataclass
class Reading:
    """One response as one tokenizer reads it, cut to LENGTH."""

    prompt: list[int]
    response: list[int]
    read: list[float]
    """Of each state s_1 .. s_{T+1}: whole characters of the text that were read; infinity behind the end token."""
    cut: bool


def student_reading(tokenizer: Any, ask: str, text: str) -> Reading:
    """Through the plain transcript; the end token is appended."""
    asked = f"\n\nHuman: {ask}\n\nAssistant:"
    prompt, whole = (tokenizer.encode(t, add_special_tokens=False) for t in (asked, f"{asked} {text}"))
    back = {character: byte for byte, character in bytes_to_unicode().items()}
    spell = lambda piece: bytes(back[character] for character in piece)  # noqa: E731
    return _reading(tokenizer, [1, *prompt], [1, *whole, 2], text, spell)


def teacher_reading(tokenizer: Any, ask: str, text: str) -> Reading:
    """Through Mistral's template."""
    asked = f"<s>[INST] {ask} [/INST]"
    prompt, whole = (tokenizer.encode(t, add_special_tokens=False) for t in (asked, f"{asked} {text}</s>"))

    def spell(piece: str) -> bytes:
        byte = re.fullmatch("<0x(..)>", piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()

    return _reading(tokenizer, prompt, whole, text, spell)


def _reading(tokenizer: Any, prompt: list[int], whole: list[int], text: str, spell: Any) -> Reading:
    response = whole[len(prompt) :]
    assert whole == prompt + response, "the prompt's tokens are the same with a response behind them"
    assert response[-1] == 2, "the response ends"
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    seen = [""]
    for piece in tokenizer.convert_ids_to_tokens(response[:-1]):
        seen.append(seen[-1] + decoder.decode(spell(piece)))
    assert seen[-1].strip() == text.strip(), "the tokens spell the text"
    before = len(seen[-1]) - len(seen[-1].lstrip())
    read = [float(min(max(len(part) - before, 0), len(text.strip()))) for part in seen]
    room = LENGTH - len(prompt)
    return Reading(prompt, response[:room], [*read, math.inf][: room + 1], len(response) > room)


def states_at(student: Reading, teacher: Reading) -> list[int]:
    """For each of the student's states the teacher's furthest that has read no more; s_1 for s_1."""
    found = [0]
    for mine in student.read[1:]:
        found.append(max(state for state, theirs in enumerate(teacher.read) if theirs <= mine))
    return found


# --- checkpoints and rows ---------------------------------------------------------------------------------------------


class TwoTokenizers:
    """Both as Hugging Face checkpoints with their tokenizers, and the rows as a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizers = {"student": student_tokenizer(), "teacher": teacher_tokenizer()}
        sizes = {name: len(tokenizer) for name, tokenizer in self.tokenizers.items()}
        self.student = ref.tiny_llama(1, vocab=sizes["student"], tie=True)
        self.teacher = ref.tiny_llama(2, vocab=sizes["teacher"], hidden=48, heads=6)
        self.hf = {name: self._save(name, getattr(self, name)) for name in sizes}
        self.pairs = write_pairs(folder / "pairs.jsonl", TEXTS)
        self.readings = [
            tuple(
                (
                    student_reading(self.tokenizers["student"], ask, y),
                    teacher_reading(self.tokenizers["teacher"], ask, y),
                )
                for y in responses
            )
            for ask, *responses in TEXTS
        ]
        """[pairs][chosen, rejected][student, teacher]."""

    def _save(self, name: str, model: PreTrainedModel) -> Path:
        model.save_pretrained(self.folder / name)
        self.tokenizers[name].save_pretrained(self.folder / name)
        return self.folder / name


def write_pairs(path: Path, texts: Any) -> Path:
    """Rows in which what is asked is a chat message."""
    rows = [
        {"prompt": [{"role": "user", "content": ask}], "chosen": chosen, "rejected": rejected}
        for ask, chosen, rejected in texts
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Setting:
    """Commands over the two checkpoints, and stores with numbers that say where they come from."""

    def __init__(self, folder: Path) -> None:
        self.two = TwoTokenizers(folder)
        self.folder = folder
        self.student, self.teacher = self.two.hf["student"], self.two.hf["teacher"]
        self.jinja = folder / "transcript.jinja"
        self.jinja.write_text(TRANSCRIPT)
        self.stores = 0

    def training(self, *options: object, pairs: Path | None = None) -> Any:
        overrides = [f"student.path={self.student}", f"teacher.path={self.teacher}", "trainer.max_steps=1"]
        overrides += [f"data.train={pairs or self.two.pairs}", f"trainer.output_dir={self.folder / 'run'}"]
        return compose("train", [*overrides, f"data.max_length={LENGTH}", *map(str, options)])

    def prepare(self, *options: object, pairs: Path | None = None) -> Prepared:
        return prepare_training(self.training(*options, pairs=pairs))

    def needs(self, *options: object) -> tuple[Needs, list[str]]:
        """What the configuration needs, and what was said about it."""
        config, said = self.training(*options), []
        encoder = Encoder.build(find_checkpoint(config.student.path, ""), "", config.data, "student.tokenizer")
        needs = Needs(encoder, METHODS[config.algorithm.name].pairs)
        resolve(needs, training_sources(config, METHODS[config.algorithm.name]), config, said.append)
        return needs, said

    def store(self, *options: object, model: Path | None = None, pairs: Path | None = None) -> Path:
        """1000 n + i for state (or token) i of the n-th pair's chosen response, 500 more for the rejected one's."""
        self.stores += 1
        path = self.folder / f"store-{self.stores}"
        overrides = [f"score.model={model or self.teacher}", f"data.train={pairs or self.two.pairs}"]
        overrides += [f"score.output={path}", f"data.max_length={LENGTH}", *map(str, options)]
        config = compose("score", overrides)
        job = prepare_scoring(config)
        writer = writer_of(config.score, job)
        writer.prepare()
        scores = []
        for n, row in enumerate(job.rows):
            found: dict[str, tuple[Any, Any]] = {"logprob": (-float(n), -n - 0.5)}
            for stem, value in job.identity.value_stems.items():
                more = value.kind not in ("logit", "logprob")
                both = [1000.0 * n + np.arange(len(row.chosen_ids) + more)]
                both.append(1000.0 * n + 500 + np.arange(len(row.rejected_ids) + more))
                found[stem] = tuple(v[[0, -1]] if job.identity.value_storage == "ends" else v for v in both)
            scores.append(PairScores(row.pair_id, {stem: found[stem] for stem in job.identity.stems}))
        for part in writer.parts():
            writer.write_part(part, list(writer.part_rows(part, scores)))
        writer.finish()
        return path

    def copy(self, source: Path, name: str, *without: str) -> Path:
        path = self.folder / name
        if not path.exists():
            shutil.copytree(source, path)
            for file in (file for pattern in without for file in path.glob(pattern)):
                file.unlink()
        return path
