"""The checks of packing and of the token store prove something: each known bug, put into the real code, is caught."""

from contextlib import contextmanager
from types import ModuleType

import pytest
from data_checks import (
    check_epochs,
    check_isolated_documents,
    check_large_vocabulary,
    check_packed_loss,
    check_packs,
    check_reading,
    check_resumed_build,
    check_tokens,
)
from data_mutants import PACKING, TOKEN_STORE

from mutation import replaced

CHECKS = {
    "packed loss": check_packed_loss,
    "packs": check_packs,
    "isolated documents": check_isolated_documents,
    "tokens": check_tokens,
    "reading over shards": check_reading,
    "epochs": check_epochs,
    "large vocabulary": check_large_vocabulary,
    "resumed build": check_resumed_build,
}


@contextmanager
def put_in(mutant):
    """Puts the mutant into its class, or into every module that knows the function."""
    true = getattr(mutant.owner, mutant.attribute)
    by = mutant.make(true)
    if isinstance(mutant.owner, ModuleType):
        with replaced(true, by):
            yield
        return
    setattr(mutant.owner, mutant.attribute, by)
    try:
        yield
    finally:
        setattr(mutant.owner, mutant.attribute, true)


def caught(check, folder):
    """Only a failed assertion counts: a crash shows nothing."""
    try:
        CHECKS[check](folder)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("mutant", [*PACKING, *TOKEN_STORE], ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant, tmp_path):
    with put_in(mutant):
        assert caught(mutant.killed_by, tmp_path)


@pytest.mark.parametrize("check", CHECKS)
def test_true_code_passes(check, tmp_path):
    assert not caught(check, tmp_path)
