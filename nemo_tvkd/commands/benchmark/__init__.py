"""`nemo-tvkd benchmark`: tasks, answers and rewards of a Hugging Face checkpoint, without NeMo."""

from typing import Any


def main(config: Any) -> int:
    """Run what the configuration asks for, or the rest of it; returns the exit code.

    One process, on all visible GPUs. It may be stopped anywhere: what is finished is on disk, and the same command goes
    on from there.

    Raises:
        UserError: anything a user can get wrong, before any model is loaded where it can be known by then.
    """
    from nemo_tvkd.commands.benchmark.models import quiet

    quiet()
    from nemo_tvkd.commands.benchmark.job import prepare, run

    run(prepare(config))
    return 0
