"""Time limits: every form that sbatch's manual lists."""

import pytest

from nemo_tvkd.cluster.times import seconds, shorter
from nemo_tvkd.errors import UserError

FORMS = {
    "90": 90 * 60,
    "90:30": 90 * 60 + 30,
    "24:00:00": 24 * 3600,
    "1:02:03": 3723,
    "2-6": 2 * 86400 + 6 * 3600,
    "2-6:30": 2 * 86400 + 6 * 3600 + 30 * 60,
    "2-06:30:15": 2 * 86400 + 6 * 3600 + 30 * 60 + 15,
    " 0:10 ": 10,
}


@pytest.mark.parametrize(("limit", "expected"), FORMS.items())
def test_every_form_of_sbatch_has_its_length(limit: str, expected: int) -> None:
    assert seconds(limit) == expected


@pytest.mark.parametrize(
    "limit", ["", "1h", "24:00:00:00", "-5", "1-", "2-6:30:15:1", "1:2:", ":30", "1.5", "UNLIMITED"]
)
def test_anything_else_is_refused_with_its_key(limit: str) -> None:
    with pytest.raises(UserError, match=r"^export\.cluster\.time=.*hours:minutes:seconds") as caught:
        seconds(limit, "export.cluster.time")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("one", "other"), [("2:00:00", "1-0"), ("119", "2:00:00"), ("0:59", "1")])
def test_the_shorter_limit_is_chosen_by_length_not_by_text(one: str, other: str) -> None:
    assert shorter(one, other) == one
    assert shorter(other, one) == one
