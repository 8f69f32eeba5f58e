"""The demo's synthetic world: splits, rewards, the judge, no shortcuts, claimed figures."""

from typing import Any

import demo_pairs
import demo_world
import pytest


def test_other_seed_gives_other_data() -> None:
    assert demo_pairs.make_pairs(0, 5, heldout=False) != demo_pairs.make_pairs(1, 5, heldout=False)
    assert demo_pairs.make_conversations(0, 5) != demo_pairs.make_conversations(1, 5)
    assert demo_pairs.split_facts(0) != demo_pairs.split_facts(1)


def test_splits_are_disjoint(demo_rows: dict[str, list[dict[str, Any]]]) -> None:
    def facts(prompts: list[str]) -> set[tuple[str, str, str]]:
        questions = [demo_world.read_prompt(prompt) for prompt in prompts]
        return {(q.thing, name, value) for q in questions for name, value in q.facts.items()}

    def named(prompt: str, response: str) -> set[tuple[str, str, str]]:
        thing = demo_world.read_prompt(prompt).thing
        return {(thing, name, value) for name, value in demo_world._statements(response)}

    heldout = facts([row["prompt"] for row in demo_rows["heldout"]])
    training = facts([row["prompt"] for row in demo_rows["train"]])
    for row in demo_rows["train"]:
        training |= named(row["prompt"], row["chosen"]) | named(row["prompt"], row["rejected"])
    for row in demo_rows["sft"]:
        user, assistant = (message["content"] for message in row["messages"])
        training |= facts([user]) | named(user, assistant)
    assert len(heldout) > 300
    assert not heldout & training
    for rows in (demo_rows["train"], demo_rows["heldout"]):
        assert len({row["prompt"] for row in rows}) == len({row["id"] for row in rows}) == len(rows)


def test_rewards_are_those_of_the_text(demo_rows: dict[str, list[dict[str, Any]]]) -> None:
    margins = []
    for row in demo_rows["train"] + demo_rows["heldout"]:
        for side in ("chosen", "rejected"):
            assert demo_world.judge(row["prompt"], row[side]).reward == row[f"{side}_reward"]
        assert row["chosen_reward"] > row["rejected_reward"]
        margins.append(round(row["chosen_reward"] - row["rejected_reward"], 6))
    assert min(margins) < 0.5
    assert max(margins) > 3.5
    assert len(set(margins)) > 15


@pytest.mark.parametrize(
    ("response", "correct", "consistent", "polite", "concise"),
    [
        ("The lamp belongs to Anna. Glad to help you.", 1, 1, 1, 1),
        ("I think it belongs to Boris. Nobody can help you.", 0, 1, 0, 1),
        ("It belongs to Anna. Really, it belongs to Boris.", 1, 0, 0, 1),
        ("It belongs to Boris. Really, it belongs to Anna.", 0, 0, 0, 1),
        ("The lamp is painted red. Thank you for asking.", 0, 1, 1, 1),
        ("It belongs to Anna. And it also is painted red. A dull question.", 1, 1, 0, 1),
        ("It belongs to Anna. A sailor often sings at night.", 1, 1, 0, 0),
        ("", 0, 1, 0, 1),
        ("What?", 0, 1, 0, 0),
    ],
)
def test_judge(response: str, correct: int, consistent: int, polite: int, concise: int) -> None:
    prompt = "Hello. The lamp is painted red and belongs to Anna. Who owns the lamp?"
    qualities = demo_world.judge(prompt, response)
    assert qualities == demo_world.Qualities(bool(correct), bool(consistent), bool(polite), bool(concise))
    assert qualities.reward == pytest.approx(2.0 * correct + 1.2 * consistent + 0.7 * polite + 0.4 * concise)


def test_judge_refuses_foreign_prompts() -> None:
    with pytest.raises(ValueError, match="not a prompt of the demo world"):
        demo_world.judge("What is the capital of France?", "Paris.")


def test_rewards_tell_all_qualities_apart() -> None:
    from itertools import product

    rewards = {demo_world.Qualities(*qualities).reward for qualities in product((False, True), repeat=4)}
    assert len(rewards) == 16


def test_sft_answers_are_a_mix(demo_rows: dict[str, list[dict[str, Any]]]) -> None:
    assert [message["role"] for message in demo_rows["sft"][0]["messages"]] == ["user", "assistant"]
    judged = [demo_world.judge(*(message["content"] for message in row["messages"])) for row in demo_rows["sft"]]
    for name, rate in demo_world.RATES.items():
        assert sum(getattr(qualities, name) for qualities in judged) / len(judged) == pytest.approx(rate, abs=0.04)


def test_docstring_reports_the_heuristics(demo_rows: dict[str, list[dict[str, Any]]]) -> None:
    rows = demo_rows["train"] + demo_rows["heldout"]
    lines = (demo_world.__doc__ or "").splitlines()
    for start, score in (
        ("the shorter response", demo_world.shortness),
        ("the response with a word of courtesy", demo_world.courtesy),
        ("the response whose first statement", demo_world.correctness),
    ):
        claimed = float(next(line for line in lines if line.strip().startswith(start)).split()[-1])
        assert demo_world.heuristic_accuracy(rows, score) == pytest.approx(claimed, abs=0.002)
        assert demo_world.heuristic_accuracy(demo_rows["heldout"], score) == pytest.approx(claimed, abs=0.05)
        assert claimed < 0.65 or score is demo_world.correctness


def test_no_single_word_decides(demo_rows: dict[str, list[dict[str, Any]]]) -> None:
    rows = demo_rows["train"] + demo_rows["heldout"]
    words = [[set(row[side].split()) for row in rows] for side in ("chosen", "rejected")]
    for word in sorted(set().union(*words[0], *words[1])):
        lead = sum((word in chosen) - (word in rejected) for chosen, rejected in zip(*words, strict=True)) / len(rows)
        assert abs(lead) / 2 < 0.1, word
