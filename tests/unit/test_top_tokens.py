"""The likeliest tokens in blocks of states and columns are those of the whole logits."""

import pytest
import torch

from nemo_tvkd.parallel.lm_head import head_statistics
from nemo_tvkd.parallel.statistic import Statistic
from nemo_tvkd.parallel.top import top_tokens


@pytest.mark.parametrize("memory", [0, 4096, 100_000])
@pytest.mark.parametrize(("states", "vocab", "count"), [(5, 37, 3), (1, 3, 3), (40, 5000, 4)])
def test_blocks_find_the_largest(states: int, vocab: int, count: int, memory: int) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(states, 8, generator=generator)
    weight = torch.randn(vocab + 91, 8, generator=generator)
    weight[vocab:] = 100 * hidden[0]  # padding that would win
    logits, ids = top_tokens(hidden, weight, count, vocab_size=vocab, memory=memory)
    expected = (hidden @ weight[:vocab].t()).topk(count, -1)
    assert ids.tolist() == expected.indices.tolist()
    assert torch.allclose(logits, expected.values, rtol=1e-5, atol=1e-6)
    assert logits.dtype == torch.float32


def test_half_precision_is_rounded_as_log_pi_is() -> None:
    """Else the likeliest token's probability, its logit less log sum exp of rounded ones, may be more than 1."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(20, 64, generator=generator).bfloat16()
    weight = 3 * torch.randn(50, 64, generator=generator).bfloat16()
    logits, _ = top_tokens(hidden, weight, 3, vocab_size=50)
    value, labels = Statistic("soft_value"), torch.zeros(20, dtype=torch.int64)
    total = head_statistics(hidden, weight, labels, [value], vocab_size=50)[value]
    assert (logits - total[:, None]).exp().sum(1).max() < 1 + 1e-5
