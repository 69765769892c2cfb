"""Training as it was: a change in any part of it shows in the losses of the first steps."""

import json

import pytest
from golden_losses import CASES, LOSSES, losses_of

# Sums in another order, as on another CPU, differ in the seventh digit at first; a step multiplies that a little.
TOLERANCE = 5e-4


@pytest.mark.parametrize("name", CASES)
def test_the_first_losses_are_those_that_were_written_down(name):
    assert losses_of(**CASES[name]) == pytest.approx(json.loads(LOSSES.read_text())[name], abs=TOLERANCE)
