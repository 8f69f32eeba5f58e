"""Time limits as Slurm writes them."""

import re

from nemo_tvkd.errors import UserError


def seconds(limit: str, key: str = "cluster.time") -> int:
    """The length of "minutes", "minutes:seconds", "hours:minutes:seconds", "days-hours[:minutes[:seconds]]" (sbatch).

    Raises:
        UserError: it is none of them; names `key`.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(limit).strip())
    if not found:
        raise UserError(f"{key}={limit} is no time limit: write hours:minutes:seconds, for example 24:00:00")
    days, first, second, third = (int(part) if part else 0 for part in found.groups())
    if found[1]:
        return days * 86400 + first * 3600 + second * 60 + third
    if found[4]:
        return first * 3600 + second * 60 + third
    return first * 60 + second


def shorter(one: str, other: str) -> str:
    """The lesser of two time limits."""
    return min(one, other, key=seconds)
