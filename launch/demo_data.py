"""Everything ``make demo`` starts from, made from a seed: preference pairs, chat data, two tiny Llama checkpoints.

Files written: ``pairs_train.jsonl`` and ``pairs_heldout.jsonl`` (id, prompt, chosen, rejected, chosen_reward,
rejected_reward), ``sft_train.jsonl`` (messages), ``teacher_hf/`` and ``student_hf/`` (randomly initialised
LlamaForCausalLM in fp32 with one tokenizer), and ``done.json``, written last. The same parameters give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo_pairs import make_conversations, make_pairs

if TYPE_CHECKING:  # transformers costs seconds to import and only the checkpoints need it
    from transformers import LlamaConfig, PreTrainedTokenizerFast

GENERATOR_VERSION = 1  # raise it whenever a file made from the same parameters would differ

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
        model_input_names=["input_ids", "attention_mask"],  # or generate() is handed token types it refuses
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
