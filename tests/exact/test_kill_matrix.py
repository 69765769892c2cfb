"""The proofs prove something: each known bug, put into the real code, is caught by one of them.

The tests run the one check that a mutant names; the tests of the file that defines a check show that the true code
passes it. To see every check on every mutant (two minutes):

    python tests/exact/test_kill_matrix.py
"""

import contextlib
import io
import tempfile

import pytest
from loop_mutants import LOOP_MUTANTS
from mutants import MUTANTS
from test_clipping import check_tables
from test_exact_gradient import check_tabular_gradient, check_trainer_gradient
from test_gae_definition import check_experience, check_gae, check_whitening
from test_loop import check_loop, plainly_trained
from test_no_learning import check_nothing_moves, check_sampler_is_what_is_trained
from test_padding_and_order import (
    check_against_a_loop_over_tokens,
    check_more_padding,
    check_poison,
    check_row_order,
    check_splits,
)

from chatpipe.errors import TrainingError
from mutation import replaced

CHECKS = {
    "T1 tabular": lambda folder: check_tabular_gradient(lam=1.0, micro_batch_size=192),
    "T1 trainer": lambda folder: check_trainer_gradient(folder, temperature=0.7, micro_batch_size=100),
    "T3 GAE": lambda folder: check_gae(gamma=0.9, lam=0.8),
    "T3 whitening": lambda folder: check_whitening(),
    "T3 experience": lambda folder: check_experience(),
    "T4 clip tables": lambda folder: check_tables(),
    "T5 poison": check_poison,
    "T6 splits": check_splits,
    "T6 row order": check_row_order,
    "T6 more padding": check_more_padding,
    "T6 loop": check_against_a_loop_over_tokens,
    "T7 nothing moves": check_nothing_moves,
    "T7 sampler": check_sampler_is_what_is_trained,
    "T9 loop": check_loop,
}


def caught(check, folder):
    """A failed assertion counts, or PPO's own refusal of scores that are not finite; a crash shows nothing."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Trainer's log lines
            CHECKS[check](folder)
    except (AssertionError, TrainingError):
        return True
    return False


@pytest.fixture(scope="module", autouse=True)
def of_the_true_code():
    plainly_trained()


@pytest.mark.parametrize("mutant", [*MUTANTS, *LOOP_MUTANTS], ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant, tmp_path):
    with replaced(mutant.function, mutant.make(mutant.function)):
        assert caught(mutant.killed_by, tmp_path)


def main():
    """Prints a Markdown table: a row for each mutant, a column for each check, x where it catches it."""
    plainly_trained()
    print("| | " + " | ".join(CHECKS) + " |\n|---" + "|:-:" * len(CHECKS) + "|")
    for mutant in [*MUTANTS, *LOOP_MUTANTS]:
        with replaced(mutant.function, mutant.make(mutant.function)), tempfile.TemporaryDirectory() as folder:
            cells = ["x" if caught(check, folder) else "" for check in CHECKS]
        print(f"| {mutant.name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
