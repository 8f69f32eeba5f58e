"""`nemo-tvkd inspect`: per-token shaping, values, log-probabilities and rewards of chosen pairs, as one HTML file.

The paper's figure (Kwon et al. 2025, arXiv 2509.16965) marks the three response tokens with the largest shaping. The
figure itself could not be looked at here: that the marks are an underline and a rank is this project's choice.
"""

from typing import Any


def main(config: Any) -> int:
    """Check, launch the ranks, measure and write the page; returns the exit code."""
    from nemo_tvkd.commands.inspect.job import run

    return run(config)
