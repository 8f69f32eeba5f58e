"""Figures of an inspection with made-up numbers, of texts that are the test's: what the page is tested with."""

import random
from pathlib import Path
from typing import Any

import numpy as np
from conversions import add_tokenizer

from nemo_tvkd.commands.inspect.numbers import Figures, Pair, Response, psi
from nemo_tvkd.commands.inspect.text import pieces, words
from nemo_tvkd.data.tokenized import Tokenized
from nemo_tvkd.losses.shaping import Shaping
from nemo_tvkd.parallel.statistic import Statistic

RULE = Shaping(Statistic("soft_value", 0.1), "potential_difference", "bootstrap", 1.0)


def byte_tokenizer(folder: Path) -> Any:
    """A token for every byte, so that every character beyond ASCII is spelled by several."""
    from transformers import AutoTokenizer

    add_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def make_response(
    tokenizer: Any, text: str, rule: Shaping, rng: np.random.Generator, *, ref: bool, reward: bool, start: float
) -> Response:
    """A response with its end token; random walks for values and rewards."""
    ids = np.array([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id], dtype=np.int32)
    count = len(ids)
    walk = np.append(start, start + rng.normal(size=count).cumsum()).astype(np.float32)
    value = walk if not rule.of_actions else rng.normal(size=count).astype(np.float32)
    top = rng.integers(3, 200, size=(count, 3))
    return Response(
        ids=ids,
        pieces=pieces(tokenizer, ids),
        psi=psi(rule, value),
        logp=-rng.exponential(size=count).astype(np.float32),
        value=value if not rule.of_actions else None,
        ref=-rng.exponential(size=count).astype(np.float32) if ref else None,
        reward=rng.normal(size=count + 1).astype(np.float32) if reward else None,
        top_ids=top,
        top_p=np.sort(rng.dirichlet(np.ones(4), size=count)[:, :3].astype(np.float32))[:, ::-1],
        label=round(float(rng.normal()), 1),
    )


def make_figures(
    tokenizer: Any,
    texts: list[tuple[list[tuple[str, str]], str, str]],
    *,
    rule: Shaping = RULE,
    ref: bool = True,
    reward: bool = False,
    source: str = "data/pairs.jsonl",
    name: str = "row",
) -> Figures:
    """Figures of (turns, chosen, rejected), the same whenever they are made."""
    rng = np.random.default_rng(5)
    pairs = []
    for index, (turns, *responses) in enumerate(texts):
        start = float(rng.normal())
        made = [make_response(tokenizer, text, rule, rng, ref=ref, reward=reward, start=start) for text in responses]
        row = Tokenized(np.array([1]), made[0].ids, made[1].ids, f"{index:032x}", f"{source}:{index + 1}", False)
        said = [{"role": role, "content": text} for role, text in turns]
        pairs.append(Pair(index + 1, row, f"{name}-{index}", said, *made, rule))
    margins = [(pair.margin, len(pair.chosen.ids) - len(pair.rejected.ids)) for pair in pairs]
    facts = [("checkpoint", f"models/{name}"), ("data", source)]
    return Figures(pairs, rule, 0.1, facts, [f"a note about {name}"], margins, words(tokenizer, list(range(3, 200))))


def plain_texts(count: int, length: int, seed: int = 3) -> list[tuple[list[tuple[str, str]], str, str]]:
    """Random words, about `length` characters a response."""
    rng = random.Random(seed)
    say = lambda n: " ".join(rng.choice(("lamp", "blue", "owns", "the", "rain", "of")) for _ in range(n // 4))  # noqa: E731
    return [([("user", say(60))], say(length), say(length // 2)) for _ in range(count)]
