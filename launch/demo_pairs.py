"""Preference pairs and chat data of the demo's world, drawn from a seed; the judge decides which response is better."""

from __future__ import annotations

import random
from typing import Any

from demo_world import (
    ATTRIBUTES,
    GREETINGS,
    HELDOUT_VALUES,
    IMPOLITE,
    OTHER_STATEMENTS,
    POLITE,
    RAMBLE_SUBJECTS,
    RAMBLE_TIMES,
    RAMBLE_VERBS,
    RATES,
    SECOND_STATEMENTS,
    STATEMENTS,
    THINGS,
    Question,
    judge,
)


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
