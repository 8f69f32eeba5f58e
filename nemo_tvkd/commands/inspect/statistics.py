"""What models say at every state of a response: runs on the last pipeline stage, brings arrays to rank 0.

A response of T tokens has the states s_1 .. s_{T+1}; s_t predicts its token t.
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from nemo_tvkd.data.batch import Batch
from nemo_tvkd.models.readout import Readout
from nemo_tvkd.parallel.sequence import response_states
from nemo_tvkd.parallel.statistic import ACTION_KINDS, LOGPROB, Statistic
from nemo_tvkd.parallel.top import top_tokens

TOP = 3
"""Next tokens that are shown at each state."""

Arrays = dict[str, np.ndarray]
"""Of one response, by name: `value` [T + 1] of a state-dependent kind or [T] of an action-dependent one; `logp` [T]
(nats); `reward` [T + 1] at s_1 .. s_{T+1} (reward units); `top_ids`, `top_p` [T, TOP], the likeliest next tokens and
their probabilities at s_1 .. s_T."""
Asked = Callable[[Batch, Readout], list[Arrays]]
"""A micro-batch's N responses, chosen first."""


def values(value: Statistic) -> Asked:
    """The teacher's value alone: enough for Psi."""
    states = "actions" if value.kind in ACTION_KINDS else "all"

    def ask(batch: Batch, readout: Readout) -> list[Arrays]:
        found = readout.statistics(batch, [value], states, host=True)[value]
        return [{"value": part.numpy()} for part in found]

    return ask


def tokens(value: Statistic, top: bool = True) -> Asked:
    """The value, each token's log-probability and, with `top`, the likeliest next tokens."""
    total = Statistic("soft_value")  # log of the softmax's denominator

    def ask(batch: Batch, readout: Readout) -> list[Arrays]:
        found = readout.statistics(batch, list({value, LOGPROB, total}), "all", host=True)
        last = -1 if value.kind in ACTION_KINDS else None
        results = [
            {"value": v[:last].numpy(), "logp": p[:-1].numpy()}
            for v, p in zip(found[value], found[LOGPROB], strict=True)
        ]
        if top:
            hidden, counts = _states(batch, readout)
            assert readout.weight is not None
            logits, ids = top_tokens(
                hidden,
                readout.weight,
                min(TOP, readout.vocab_size),
                vocab_size=readout.vocab_size,
                group=readout.group,
                memory=readout.memory,
            )
            parts = zip(results, found[total], logits.cpu().split(counts), ids.cpu().split(counts), strict=True)
            for result, log_total, z, of in parts:
                result["top_ids"] = of[:-1].numpy()
                result["top_p"] = (z - log_total[:, None])[:-1].exp().numpy()
        return results

    return ask


def logps(batch: Batch, readout: Readout) -> list[Arrays]:
    """Each token's log-probability."""
    found = readout.statistics(batch, [LOGPROB], "actions", host=True)[LOGPROB]
    return [{"logp": part.numpy()} for part in found]


def rewards(batch: Batch, readout: Readout) -> list[Arrays]:
    """The reward head's reading of every state, as if the response ended there."""
    assert readout.reward_head is not None
    hidden, counts = _states(batch, readout)
    return [{"reward": part.numpy()} for part in readout.reward_head(hidden).float().cpu().split(counts)]


def together(*asked: Asked) -> Asked:
    """Several of these from one forward pass."""

    def ask(batch: Batch, readout: Readout) -> list[Arrays]:
        answers = [each(batch, readout) for each in asked]
        return [{name: array for part in parts for name, array in part.items()} for parts in zip(*answers, strict=True)]

    return ask


def _states(batch: Batch, readout: Readout) -> tuple[Tensor, list[int]]:
    """Hidden states [R, H] of all the responses' states, and how many belong to each."""
    assert not readout.sequence_parallel, "load_frozen never asks for it"
    index, counts = response_states(batch["lengths"], batch["prompt_lengths"], batch["response_lengths"], "all")
    return readout.hidden.index_select(0, index.to(readout.hidden.device)), counts
