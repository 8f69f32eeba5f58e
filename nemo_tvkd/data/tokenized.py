"""A pair (or example) as token ids, and what became of the rows that were tokenised."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nemo_tvkd.errors import UserError

BAD_ROWS_KEPT = 20
"""Bad rows of which more than their number is kept."""


@dataclass(frozen=True, eq=False)
class Tokenized:
    """One pair (or example) as token ids."""

    prompt_ids: np.ndarray
    """int32 [P], P >= 1: the same ids for both responses."""
    chosen_ids: np.ndarray
    """int32 [T_w], T_w >= 1: the end token is the last unless the response was cut."""
    rejected_ids: np.ndarray | None
    """int32 [T_l]; None for an example."""
    pair_id: str
    """32 hex digits of sha256 over the lengths and ids of prompt, chosen and rejected, whatever `chosen_mask` says."""
    source: str
    truncated: bool
    """Whether the prompt or a response was cut."""
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    margin: float | None = None
    chosen_positions: np.ndarray | None = None
    """int32 [T_w + 1] if asked for: how many characters of the (stripped) text each state s_1..s_{T+1} has read, see
    `align.state_positions`; the state after the end token, which a cut response does not have, is at length + 1."""
    rejected_positions: np.ndarray | None = None
    chosen_mask: np.ndarray | None = None
    """bool [T_w], of an example whose assistant turns are all trained: which tokens are an assistant's, each turn's end
    token with them; `prompt_ids` then end where the first of these turns begins. None: all tokens of the response."""


@dataclass
class TokenizeReport:
    """Rows kept, prompts and single responses cut to length, and the bad rows ("file:line: what is wrong")."""

    pairs: int = 0
    prompts_truncated: int = 0
    responses_truncated: int = 0
    bad: list[str] = field(default_factory=list)
    left_out: str = ""
    """Rows that make no pair and are not bad either (see `pairs.ReadReport.left_out`)."""

    def add(self, other: "TokenizeReport") -> None:
        """Count other rows as well."""
        self.pairs += other.pairs
        self.prompts_truncated += other.prompts_truncated
        self.responses_truncated += other.responses_truncated
        self.bad += other.bad

    def check(self) -> None:
        """
        Raises:
            UserError: nothing but bad rows.
        """
        if self.bad and not self.pairs:
            raise UserError(f"each of the {len(self.bad)} rows is bad; the first: {self.bad[0]}")

    def figures(self) -> dict[str, Any]:
        """What is reported, with the first bad rows."""
        cut = {"prompts_truncated": self.prompts_truncated, "responses_truncated": self.responses_truncated}
        return {**cut, "bad_rows": len(self.bad), "bad": self.bad[:BAD_ROWS_KEPT], "left_out": self.left_out}


def pair_id(prompt: np.ndarray, chosen: np.ndarray, rejected: np.ndarray | None) -> str:
    """Lengths (int64, -1 for no rejected response), then ids (int32), all little-endian."""
    parts = [prompt, chosen, np.empty(0, dtype=np.int32) if rejected is None else rejected]
    lengths = np.array([len(prompt), len(chosen), -1 if rejected is None else len(rejected)], dtype="<i8")
    data = lengths.tobytes() + b"".join(part.astype("<i4").tobytes() for part in parts)
    return hashlib.sha256(data).hexdigest()[:32]
