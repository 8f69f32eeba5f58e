"""Imported once, by the server process that the pool's ranks are forked from."""

from nemo_tvkd.runtime import cpu

cpu.prepare_nemo()

import nemo_tvkd.models.online  # noqa: E402
import nemo_tvkd.runtime.checkpoints  # noqa: E402
import nemo_tvkd.runtime.trainer  # noqa: E402, F401
