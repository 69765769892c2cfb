"""One error for all that was found, in eight lines at most."""

import re
from pathlib import Path

import pytest

from chatpipe.checks import by_stage
from chatpipe.checks.gate import CheckResult, Finding, enforce, run_checks
from chatpipe.errors import UsageError
from chatpipe.recipe.loading import load_recipe
from chatpipe.recipe.schema import CheckSwitches
from chatpipe.stages import ppo

NAMES = ["eos_not_learned", "double_bos", "turns_lost", "answers_cut", "validation_seen"]


def failing(count):
    return {name: (lambda name=name: Finding(f"{name} it is.", f"Mend {name}.")) for name in NAMES[:count]}


def message(count):
    with pytest.raises(UsageError) as caught:
        enforce("sft", failing(count), CheckSwitches())
    return [*caught.value.message.splitlines(), *caught.value.hint.splitlines()]


def test_each_check_has_its_outcome_in_order():
    checks = {"double_bos": lambda: None, **failing(1), "turns_lost": lambda: 1 / 0}
    assert list(run_checks("rm", checks, CheckSwitches(turns_lost=False))) == [
        CheckResult("rm", "checks.double_bos", "ok"),
        CheckResult("rm", "checks.eos_not_learned", "failed", "eos_not_learned it is.", "Mend eos_not_learned."),
        CheckResult("rm", "checks.turns_lost", "off"),
    ]


def test_a_check_without_a_switch_says_what_it_looked_at_or_fails_as_the_rooms_below_do():
    def missing():
        raise UsageError("There is no x.", "Give x.")

    assert list(run_checks("sft", {"out": lambda: "runs/x", "sft.data": missing})) == [
        CheckResult("sft", "out", "ok", "runs/x"),
        CheckResult("sft", "sft.data", "failed", "There is no x.", "Give x."),
    ]


def test_nothing_found_lets_the_stage_begin():
    enforce("ppo", {"double_bos": lambda: None}, CheckSwitches())
    enforce("ppo", failing(1), CheckSwitches(eos_not_learned=False))


def test_one_failure_is_reported_with_its_remedy_and_its_key():
    assert message(1) == [
        "sft would go wrong without any error, so it stops before its first step.",
        "checks.eos_not_learned: eos_not_learned it is.",
        "  Mend eos_not_learned.",
        "To train anyway, turn this check off: checks.eos_not_learned=false.",
    ]


def test_three_are_shown_in_full_and_of_five_the_first_two():
    three, five = message(3), message(5)
    assert len(three) == 8
    assert three[5:7] == ["checks.turns_lost: turns_lost it is.", "  Mend turns_lost."]
    assert three[-1] == "To train anyway, turn this check off: checks.eos_not_learned=false (likewise for the others)."
    assert len(five) == 7
    assert five[3:6] == [
        "checks.double_bos: double_bos it is.",
        "  Mend double_bos.",
        "... and 3 more: checks.turns_lost, checks.answers_cut, checks.validation_seen",
    ]


def test_every_check_has_a_switch_and_every_switch_a_check():
    """A switch that no stage reads would promise what is not there."""
    text = Path(by_stage.__file__).read_text() + Path(ppo.__file__).read_text()
    listed = set(re.findall(r'^        "(\w+)": lambda', text, re.MULTILINE))
    assert listed == set(CheckSwitches.model_fields)
    assert len(listed) == 22


def test_a_recipe_turns_checks_off_by_name():
    resolved = load_recipe(None, ["checks.double_bos=false"])
    assert not resolved.recipe.checks.double_bos
    assert resolved.recipe.checks.turns_lost
    assert resolved.origins["checks.double_bos"] == "command line"
    with pytest.raises(UsageError, match=r"there is no key checks.duble_bos; did you mean checks.double_bos\?"):
        load_recipe(None, ["checks.duble_bos=false"])
