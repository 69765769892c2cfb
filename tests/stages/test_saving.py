import pytest

from chatpipe.stages.shared import _ends


@pytest.mark.parametrize(
    "before, ends",
    [(None, 7), (7, 7), ([7], 7), (2, [7, 2]), ([2, 7, 3], [7, 2, 3])],
)
def test_generation_stops_at_the_end_of_a_turn_and_where_it_did_before(before, ends):
    assert _ends(before, 7) == ends
