"""Public data sets whose rows are no pairs yet: nvidia/HelpSteer2 and openai/summarize_from_feedback.

They are recognised by their columns, so a copy in any file format is read like the hub's. Other public sets have a
layout of `records`; their names are for the reader of a report alone.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from nemo_tvkd.data.fields import BadRow, bad, kind, number_of, text_of
from nemo_tvkd.errors import UserError

RATED = frozenset({"prompt", "response", "helpfulness"})
"""HelpSteer2: responses with ratings from 0 to 4; two rows after each other answer the same prompt."""
COMPARED = frozenset({"info", "summaries", "choice"})
"""OpenAI's comparisons of summaries: Reddit posts (TL;DR) and CNN articles."""
HELPSTEER2_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
SETS = {
    frozenset({"dataset", "chosen", "rejected", "chosen_rating", "rejected_rating"}): "argilla/dpo-mix-7k",
    frozenset({"prompt", "prompt_id", "messages"}): "HuggingFaceH4/deita-10k-v0-sft (or ultrachat_200k)",
    frozenset(
        {"prompt", "prompt_id", "chosen", "rejected", "messages", "score_chosen", "score_rejected"}
    ): "HuggingFaceH4/ultrafeedback_binarized",
}
"""By all of their columns. gx-ai-architect/HelpSteer2_DPO has message lists, as many others have."""


class Counts(Protocol):
    """Counts of rows that make no pair."""

    ties: int
    single: int


def columns_of(names: Iterable[str]) -> frozenset[str]:
    """The columns that a set with these columns is read by; none of one that needs no mapping."""
    there = frozenset(names)
    return next((needed for needed in (RATED, COMPARED) if needed <= there and "chosen" not in there), frozenset())


def set_name(record: object) -> str:
    """The public set that a record looks like it is from, or ""."""
    if not isinstance(record, dict):
        return ""
    if mapping := columns_of(record):
        return "nvidia/HelpSteer2" if mapping == RATED else "openai/summarize_from_feedback"
    chosen, prompt = record.get("chosen"), record.get("prompt")
    if isinstance(prompt, str) and prompt.startswith("SUBREDDIT: r/"):
        return "TL;DR (trl-lib/tldr, openai_summarize_comparisons)"
    if record.keys() == {"chosen", "rejected"} and isinstance(chosen, str) and chosen.startswith("\n\nHuman:"):
        return "Anthropic/hh-rlhf"
    return SETS.get(frozenset(record), "")


def mapped(records: Iterable[tuple[str, object]], pairs: bool, counts: Counts) -> Iterator[tuple[str, object]]:
    """Records (with their sources) in a layout of `records`: those of the two sets mapped, others as they are.

    HelpSteer2's rows are joined two by two where pairs are asked for: the more helpful response is chosen, and the
    ratings are the rewards. Two equally helpful ones (`counts.ties`) and a row that has no partner (`counts.single`)
    are left out. A record that does not fit its set becomes a UserError, as unreadable ones are.
    """
    held: tuple[str, dict[str, Any]] | None = None
    for source, record in records:
        columns = columns_of(record) if isinstance(record, dict) else None
        if not columns:
            counts.single += held is not None
            held = None
            yield source, record
            continue
        try:
            assert isinstance(record, dict)
            made = _rated(record) if columns == RATED else _comparison(record)
        except BadRow as error:
            yield source, UserError(f"{source}: {error}")
            continue
        if columns != RATED or not pairs:
            yield source, made
        elif held is None or held[1]["prompt"] != made["prompt"]:
            counts.single += held is not None
            held = source, made
        else:
            if pair := _joined(held[1], made):
                yield _sources(held[0], source), pair
            else:
                counts.ties += 1
            held = None
    counts.single += held is not None


def _rated(record: Mapping[str, Any]) -> dict[str, Any]:
    """A response of HelpSteer2 as an example in messages, with its rating."""
    prompt, response = (text_of(record[name], name) for name in ("prompt", "response"))
    rating = number_of(record["helpfulness"], "helpfulness")
    first, *rest = HELPSTEER2_TURN.split(prompt)
    turns = [("User", first), *zip(rest[::2], rest[1::2], strict=True)]
    asked = [{"role": role.lower(), "content": text} for role, text in turns]
    return {"prompt": asked, "completion": [{"role": "assistant", "content": response}], "helpfulness": rating}


def _joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any] | None:
    """A pair; None where both are equally helpful."""
    if one["helpfulness"] == other["helpfulness"]:
        return None
    worse, better = sorted((one, other), key=lambda made: float(made["helpfulness"]))
    return {
        "prompt": better["prompt"],
        "chosen": better["completion"],
        "rejected": worse["completion"],
        "chosen_reward": better["helpfulness"],
        "rejected_reward": worse["helpfulness"],
    }


def _sources(one: str, other: str) -> str:
    """ "file:17" and "file:18" as "file:17+18"."""
    place, _, number = other.rpartition(":")
    return f"{one}+{number if one.rpartition(':')[0] == place else other}"


def _comparison(record: Mapping[str, Any]) -> dict[str, Any]:
    """Two summaries as a pair, the prompt written as in trl-lib/tldr-preference."""
    info, summaries, choice = record["info"], record["summaries"], record["choice"]
    if not isinstance(info, dict):
        bad(f"info is {kind(info)}: it must be an object with post or article")
    if isinstance(choice, bool) or not isinstance(choice, int) or choice not in (0, 1):
        bad(f"choice is {number_of(choice, 'choice'):g}: it must be 0 or 1")
    if not (isinstance(summaries, list) and len(summaries) == 2 and all(isinstance(s, dict) for s in summaries)):
        bad("summaries must be a list of two objects with text")
    texts = [text_of(summary.get("text"), f"summaries, text {n}") for n, summary in enumerate(summaries, 1)]
    name = "article" if info.get("post") is None else "post"
    body = text_of(info.get(name), f"info, {name}").replace("\n\n", "\n")
    title = text_of(info.get("title"), "info, title")
    if name == "article":
        prompt = f"TITLE: {title}\n\n{body}\n\nTL;DR:"
    else:
        subreddit = text_of(info.get("subreddit"), "info, subreddit")
        prompt = f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {body}\n\nTL;DR:"
    return {"prompt": prompt, "chosen": texts[choice], "rejected": texts[1 - choice]}
