"""The world of ``make demo``: facts about things, and a judge that reads a response's qualities back from its text.

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
impolite ones and stand at either end. Accuracy on seed 0's 1,800 pairs (recomputed by tests/unit/test_demo_world.py):

    the shorter response wins (characters; a tie counts half)                            0.554
    the response with a word of courtesy wins ("thank", "glad", "happy", ...; tie half)  0.572
    the response whose first statement is the asked fact wins (tie half)                 0.733
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
