"""Imported once, by the server process that the pool's ranks are forked from."""

from nemo_tvkd.runtime import cpu

cpu.prepare_nemo()

import nemo_tvkd.models.conversion  # noqa: E402
import nemo_tvkd.models.online  # noqa: E402
import nemo_tvkd.training.trainer  # noqa: E402, F401
