"""Everything ``make demo`` starts from, made from a seed: preference pairs, chat data, two tiny Llama checkpoints.

The world. A prompt states two facts about a thing ("The lamp is painted red and belongs to Anna.") and asks for one of
them ("Who owns the lamp?"). A response has four independent qualities; the ground-truth reward is their weighted sum:

    quality     weight   the response ...
    correct      2.0     states the asked fact as the prompt gives it (first statement about the thing)
    consistent   1.2     never gives one attribute two different values
    polite       0.7     has a polite phrase
    concise      0.4     has no sentence off the subject

The weights are such that two responses have equal rewards only if they have equal qualities. ``judge`` reads the
qualities back from any text, generated ones included, so the reward of a row can be recomputed from the row alone.

The facts (thing, attribute, value) are split in two: those of the held-out prompts occur in no training prompt and in
no SFT conversation, neither asked nor merely stated, and no training response names them. A model must therefore read
the prompt; it cannot remember. Wrong values are drawn from the same part of the split, so that having been seen in
training says nothing about right and wrong.

No shortcut decides the pairs, because every quality has look-alikes: confirming and contradicting sentences share their
templates, off-subject sentences compete with on-subject ones of the same length, polite phrases share their words with
impolite ones and stand at either end. Accuracy on seed 0's 1,800 pairs (recomputed by tests/unit/test_demo_data.py):

    the shorter response wins (characters; a tie counts half)                            0.554
    the response with a word of courtesy wins ("thank", "glad", "happy", ...; tie half)  0.572
    the response whose first statement is the asked fact wins (tie half)                 0.733

Files written: ``pairs_train.jsonl`` and ``pairs_heldout.jsonl`` (id, prompt, chosen, rejected, chosen_reward,
rejected_reward), ``sft_train.jsonl`` (messages), ``teacher_hf/`` and ``student_hf/`` (randomly initialised
LlamaForCausalLM in fp32 with one tokenizer), and ``done.json``, written last. The same parameters give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # transformers costs seconds to import and only the checkpoints need it
    from transformers import LlamaConfig, PreTrainedTokenizerFast

GENERATOR_VERSION = 1  # raise it whenever a file made from the same parameters would differ

WEIGHTS = {"correct": 2.0, "consistent": 1.2, "polite": 0.7, "concise": 0.4}
# How often each quality holds in the natural mix, from which the SFT answers and both responses of a pair are drawn.
RATES = {"correct": 0.65, "consistent": 0.65, "polite": 0.50, "concise": 0.60}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


THINGS = _words(
    "lamp box chair table carpet kettle violin mirror clock basket ladder bottle candle pillow blanket hammer bucket "
    "wagon statue drum globe vase coat helmet saddle cradle bench piano whistle lantern anchor barrel shovel kite sled "
    "trumpet ribbon scarf puppet teapot cupboard wardrobe typewriter umbrella compass telescope bracelet necklace "
    "envelope calendar jacket pencil fiddle parcel hammock locket banner trolley plate spoon"
)


@dataclass(frozen=True)
class Attribute:
    """One kind of fact: ``verb`` before the value makes the statement, ``questions`` ask for it."""

    verb: str
    questions: tuple[str, ...]
    values: tuple[str, ...]


ATTRIBUTES: dict[str, Attribute] = {
    "colour": Attribute(
        "is painted",
        ("What colour is the {thing}?", "How is the {thing} painted?"),
        _words("red blue green yellow black white brown purple orange pink grey golden"),
    ),
    "material": Attribute(
        "is made of",
        ("What is the {thing} made of?", "Which material is the {thing}?"),
        _words("oak iron glass paper stone silver copper leather plastic clay bamboo marble"),
    ),
    "place": Attribute(
        "stands in the",
        ("Where is the {thing}?", "In which place does the {thing} stand?"),
        _words("kitchen garden attic cellar garage hall library office barn chapel museum tower"),
    ),
    "owner": Attribute(
        "belongs to",
        ("Who owns the {thing}?", "To whom does the {thing} belong?"),
        _words("Anna Boris Clara David Emma Felix Greta Henry Irene Jonas Karin Luis"),
    ),
    "month": Attribute(
        "was bought in",
        ("When was the {thing} bought?", "In which month was the {thing} bought?"),
        _words("January February March April May June July August September October November December"),
    ),
}
HELDOUT_VALUES = 3  # of the 12 values per thing and attribute; a contradicted wrong answer needs three

GREETINGS = ("", "", "Hello.", "Good morning.", "Tell me something.", "One question.")
POLITE = (
    "Thank you for asking.",
    "Glad to help you.",
    "With pleasure, friend.",
    "Happy to answer that.",
    "A good question.",
    "You are most welcome.",
)
IMPOLITE = (  # neutral or rude, with the words and the lengths of the polite ones
    "Thank you for nothing.",
    "Nobody can help you.",
    "Ask a better friend.",
    "Must I answer that?",
    "A dull question.",
    "You are most annoying.",
)
STATEMENTS = ("The {thing} {fact}.", "I see it {fact}.", "This {thing} {fact}.", "I think it {fact}.")
SECOND_STATEMENTS = ("So the {thing} {fact}.", "Again, it {fact}.", "Indeed, it {fact}.", "Really, it {fact}.")
OTHER_STATEMENTS = ("The {thing} also {fact}.", "And it also {fact}.", "Besides, it {fact}.")
RAMBLE_SUBJECTS = ("My uncle", "The neighbour", "A sailor", "Our baker", "The king", "My cousin")
RAMBLE_VERBS = ("often sings", "plays chess", "feeds birds", "sleeps well", "reads news", "walks alone")
RAMBLE_TIMES = ("on Sunday", "at night", "every winter", "after lunch", "before dawn", "these days")

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>")
VOCAB_SIZE = 916  # all words whole; not a multiple of 128: Megatron pads it to 1,024 and must mask 108 columns
# The end token ends an assistant turn and nothing follows it, so the last token of a response is its end token.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\\n' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('the demo template knows the roles user and assistant, not ' + message['role']) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)

FILES = (
    "pairs_train.jsonl",
    "pairs_heldout.jsonl",
    "sft_train.jsonl",
    *(
        f"{model}_hf/{name}"
        for model in ("teacher", "student")
        for name in (
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "chat_template.jinja",
        )
    ),
)

_STATEMENT = re.compile(
    "|".join(
        f"(?P<{name}>\\b{re.escape(attribute.verb)} (?:{'|'.join(attribute.values)})\\b)"
        for name, attribute in ATTRIBUTES.items()
    )
)


@dataclass(frozen=True)
class Qualities:
    """The four independent qualities of a response."""

    correct: bool
    consistent: bool
    polite: bool
    concise: bool

    @property
    def reward(self) -> float:
        """The ground-truth reward; rounded, so that equal qualities give equal decimals in the files."""
        return round(sum(weight for name, weight in WEIGHTS.items() if getattr(self, name)), 6)


@dataclass(frozen=True)
class Question:
    """A prompt and what it is about: ``facts`` maps the two stated attributes to their values."""

    prompt: str
    thing: str
    asked: str
    facts: dict[str, str]


def split_facts(seed: int) -> dict[bool, dict[tuple[str, str], tuple[str, ...]]]:
    """The values that each (thing, attribute) may take, under ``False`` in training and under ``True`` held out."""
    rng = random.Random(f"facts {seed}")
    parts: dict[bool, dict[tuple[str, str], tuple[str, ...]]] = {False: {}, True: {}}
    for thing in THINGS:
        for name, attribute in ATTRIBUTES.items():
            values = rng.sample(attribute.values, len(attribute.values))
            parts[True][thing, name] = tuple(values[:HELDOUT_VALUES])
            parts[False][thing, name] = tuple(values[HELDOUT_VALUES:])
    return parts


def _statements(text: str) -> list[tuple[str, str]]:
    """All (attribute, value) that the text states, in order."""
    found = []
    for match in _STATEMENT.finditer(text):
        name = str(match.lastgroup)
        found.append((name, match.group()[len(ATTRIBUTES[name].verb) + 1 :]))
    return found


def read_prompt(prompt: str) -> Question:
    """Reads a prompt of this world back into its question; ValueError if it is none."""
    facts = dict(_statements(prompt))
    for name, attribute in ATTRIBUTES.items():
        for question in attribute.questions:
            match = re.search(re.escape(question).replace(re.escape("{thing}"), "(?P<thing>[a-z]+)") + "$", prompt)
            if match and name in facts:
                return Question(prompt, match["thing"], name, facts)
    raise ValueError(f"not a prompt of the demo world: {prompt!r}")


def judge(prompt: str, response: str) -> Qualities:
    """The qualities of a response, read from the text alone, so that a generated response can be judged too."""
    question = read_prompt(prompt)
    stated = _statements(response)
    sentences = [part for part in re.split(r"(?<=[.?!])\s+", response.strip()) if part]
    on_subject = [part in POLITE or part in IMPOLITE or bool(_statements(part)) for part in sentences]
    return Qualities(
        correct=bool(stated) and stated[0] == (question.asked, question.facts[question.asked]),
        consistent=len({name for name, _ in stated}) == len(set(stated)),
        polite=any(part in POLITE for part in sentences),
        concise=all(on_subject),
    )


def make_question(rng: random.Random, values: dict[tuple[str, str], tuple[str, ...]]) -> Question:
    """Draws a prompt whose facts come from one part of the split."""
    thing = rng.choice(THINGS)
    names = rng.sample(sorted(ATTRIBUTES), 2)
    facts = {name: rng.choice(values[thing, name]) for name in names}
    asked = rng.choice(names)
    first, second = (f"{ATTRIBUTES[name].verb} {facts[name]}" for name in names)
    question = rng.choice(ATTRIBUTES[asked].questions).format(thing=thing)
    parts = [rng.choice(GREETINGS), f"The {thing} {first} and {second}.", question]
    return Question(" ".join(part for part in parts if part), thing, asked, facts)


def make_response(rng: random.Random, question: Question, values: dict[tuple[str, str], tuple[str, ...]]) -> str:
    """Draws a response from the natural mix of qualities."""
    quality = {name: rng.random() < rate for name, rate in RATES.items()}
    thing, other = question.thing, next(name for name in question.facts if name != question.asked)

    def say(templates: tuple[str, ...], name: str, value: str) -> str:
        return rng.choice(templates).format(thing=thing, fact=f"{ATTRIBUTES[name].verb} {value}")

    def another(name: str, value: str) -> str:
        return rng.choice([v for v in values[thing, name] if v != value])

    stated, value = question.asked, question.facts[question.asked]
    if not quality["correct"]:
        if rng.random() < 0.4:  # a true fact that nobody asked for
            stated, value = other, question.facts[other]
        else:
            value = another(stated, value)
    sentences = [say(STATEMENTS, stated, value)]
    if not quality["consistent"]:
        sentences.append(say(SECOND_STATEMENTS, stated, another(stated, value)))
    elif rng.random() < 0.6:  # the look-alike: the same sentence, confirming
        sentences.append(say(SECOND_STATEMENTS, stated, value))
    if not quality["concise"]:
        subject, verb, time = (rng.choice(words) for words in (RAMBLE_SUBJECTS, RAMBLE_VERBS, RAMBLE_TIMES))
        sentences.append(f"{subject} {verb} {time}.")
    elif stated != other and rng.random() < 0.5:  # the look-alike: one more sentence, on the subject
        sentences.append(say(OTHER_STATEMENTS, other, question.facts[other]))
    sentences.insert(rng.choice((0, len(sentences))), rng.choice(POLITE if quality["polite"] else IMPOLITE))
    return " ".join(sentences)


def make_pairs(seed: int, count: int, heldout: bool) -> list[dict[str, Any]]:
    """Preference pairs with distinct prompts; the better of two independent draws is the chosen one."""
    split = "heldout" if heldout else "train"
    rng = random.Random(f"pairs {split} {seed}")
    values = split_facts(seed)[heldout]
    prompts: set[str] = set()  # asked for membership only: the order of a set must not reach the files
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        question = make_question(rng, values)
        if question.prompt in prompts:
            continue
        prompts.add(question.prompt)
        responses = [make_response(rng, question, values) for _ in range(2)]
        rewards = [judge(question.prompt, response).reward for response in responses]
        while rewards[0] == rewards[1]:
            responses[1] = make_response(rng, question, values)
            rewards[1] = judge(question.prompt, responses[1]).reward
        best = int(rewards[1] > rewards[0])
        rows.append(
            {
                "id": f"{split}-{len(rows):05d}",
                "prompt": question.prompt,
                "chosen": responses[best],
                "rejected": responses[1 - best],
                "chosen_reward": rewards[best],
                "rejected_reward": rewards[1 - best],
            }
        )
    return rows


def make_conversations(seed: int, count: int) -> list[dict[str, Any]]:
    """SFT conversations over the training facts; their answers are plausible, good and bad as the mix has it."""
    rng = random.Random(f"sft {seed}")
    values = split_facts(seed)[False]
    rows = []
    for _ in range(count):
        question = make_question(rng, values)
        answer = make_response(rng, question, values)
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": question.prompt},
                    {"role": "assistant", "content": answer},
                ]
            }
        )
    return rows


def heuristic_accuracy(rows: list[dict[str, Any]], score: Callable[[str, str], float]) -> float:
    """Share of pairs whose chosen response has the higher ``score(prompt, response)``; a tie counts half."""
    total = 0.0
    for row in rows:
        chosen, rejected = (score(row["prompt"], row[side]) for side in ("chosen", "rejected"))
        total += 1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0
    return total / len(rows)


def shortness(prompt: str, response: str) -> float:
    """The length heuristic."""
    return -len(response)


def courtesy(prompt: str, response: str) -> float:
    """The keyword heuristic."""
    return float(bool(re.search(r"\b(thank|glad|happy|pleasure|good|welcome)\b", response.lower())))


def correctness(prompt: str, response: str) -> float:
    """No shortcut but the strongest single quality: what a model reaches that learns only to read the prompt."""
    return float(judge(prompt, response).correct)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of VOCAB_SIZE tokens, trained on a fixed corpus of this world.

    It depends on the generator's version only, not on seed or sizes: checkpoints of two demos share their vocabulary.
    """
    # The trainer counts words in parallel; one thread keeps it out of the way of the demo's other processes.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    corpus: list[str] = []
    for conversation in make_conversations(seed=0, count=3000):
        corpus.extend(message["content"] for message in conversation["messages"])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # all bytes: any text can be encoded
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise RuntimeError(f"the corpus gives {tokenizer.get_vocab_size()} tokens, not {VOCAB_SIZE}")
    # Like Llama's own tokenizers, plain encoding starts with <s>. The template writes its own, so text rendered by
    # it has to be encoded with add_special_tokens=False, as for every real Llama.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,  # it would take the space from before a full stop when decoding
        model_max_length=512,
    )


def model_configs(tokenizer: PreTrainedTokenizerFast) -> dict[str, LlamaConfig]:
    """The two models: heads and key-value heads divide by TP 2, layers by PP 2."""
    from transformers import LlamaConfig

    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.05,  # 0.02 is for widths in the thousands; these learn faster from it
        "torch_dtype": "float32",
    }
    return {
        "teacher": LlamaConfig(
            hidden_size=192,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=4,
            tie_word_embeddings=False,
            max_position_embeddings=512,
            rope_theta=10000.0,
            **common,
        ),
        # A Llama 3.2 in small: tied embeddings and its rope scaling.
        "student": LlamaConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            max_position_embeddings=131072,
            rope_theta=500000.0,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            **common,
        ),
    }


def _write_checkpoints(directory: Path, seed: int) -> None:
    import torch
    from transformers import GenerationConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    for offset, (name, config) in enumerate(model_configs(tokenizer).items()):
        with torch.random.fork_rng(devices=[]):  # the caller's random state is not ours to change
            torch.manual_seed(2 * seed + offset)
            model = LlamaForCausalLM(config)
        model.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            max_new_tokens=40,
            do_sample=False,
        )
        model.save_pretrained(directory / f"{name}_hf", safe_serialization=True)
        tokenizer.save_pretrained(directory / f"{name}_hf")


def _write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="\n")


def make_demo_data(directory: Path, seed: int = 0, pairs: int = 1500, heldout: int = 300, sft: int = 2000) -> None:
    """Writes the demo's files into ``directory``; returns at once when the same parameters have made them before."""
    directory = Path(directory)
    done = directory / "done.json"
    parameters = {"generator": GENERATOR_VERSION, "seed": seed, "pairs": pairs, "heldout": heldout, "sft": sft}
    try:
        made = json.loads(done.read_text(encoding="utf-8")) == parameters
    except (FileNotFoundError, ValueError):
        made = False
    if made and all((directory / name).is_file() for name in FILES):
        return
    directory.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)  # an interrupted run must not look finished
    _write_jsonl(directory / "pairs_train.jsonl", make_pairs(seed, pairs, heldout=False))
    _write_jsonl(directory / "pairs_heldout.jsonl", make_pairs(seed, heldout, heldout=True))
    _write_jsonl(directory / "sft_train.jsonl", make_conversations(seed, sft))
    _write_checkpoints(directory, seed)
    done.write_text(json.dumps(parameters) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Command line: the directory, and the parameters of ``make_demo_data`` as options."""
    parser = argparse.ArgumentParser(description="Makes the demo's data and its two small Llama checkpoints.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=1500, help="training pairs")
    parser.add_argument("--heldout", type=int, default=300, help="held-out pairs")
    parser.add_argument("--sft", type=int, default=2000, help="SFT conversations")
    options = parser.parse_args(argv)
    make_demo_data(options.directory, options.seed, options.pairs, options.heldout, options.sft)
    print(f"demo data in {options.directory}")


if __name__ == "__main__":
    main()
