"""`nemo-tvkd evaluate`: how checkpoints judge held-out preference pairs, and how sure that is.

`prepare` reads configuration and pairs, `forward` runs the models, `figures` says what is reported (`metrics`,
`calibration`), `intervals` how sure it is, `comparison` what differs between checkpoints, `tables` shows it.
"""

from nemo_tvkd.commands.evaluate.job import main
from nemo_tvkd.commands.evaluate.prepare import prepare_evaluation

__all__ = ["main", "prepare_evaluation"]
