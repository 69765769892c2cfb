import pytest

from chatpipe.recipe import load_recipe, packaged_recipes


def test_ls_lists_each_recipe_with_what_it_is_for(chatpipe):
    result = chatpipe("recipes", "ls")
    assert (result.code, result.err) == (0, "")
    rows = [line.split(maxsplit=1) for line in result.out.splitlines()]
    assert [name for name, _ in rows] == list(packaged_recipes())
    assert {"pocket", "small-real"} <= {name for name, _ in rows}
    assert all(headline.strip() and not headline.startswith("#") for _, headline in rows)


def test_show_prints_the_file_as_it_is(chatpipe):
    result = chatpipe("recipes", "show", "pocket")
    assert (result.code, result.err) == (0, "")
    assert result.out.rstrip() == packaged_recipes()["pocket"].read_text(encoding="utf-8").rstrip()


def test_copy_gives_a_file_that_runs_as_documented(chatpipe, work):
    result = chatpipe("recipes", "copy", "pocket")
    assert (result.code, result.out) == (0, "")
    copied = work / "pocket.yaml"
    assert copied.read_bytes() == packaged_recipes()["pocket"].read_bytes()
    words = result.err.split("chatpipe run ")[1].split()[0]
    assert chatpipe("run", words, "--processes", "1", "--dry-run").code == 0
    assert load_recipe(words).path.samefile(copied)


@pytest.mark.parametrize(("to", "expected"), [("mine.yaml", "mine.yaml"), ("sub", "sub/pocket.yaml")])
def test_copy_to_a_name_or_into_a_folder(chatpipe, work, to, expected):
    (work / "sub").mkdir()
    result = chatpipe("recipes", "copy", "pocket", to)
    assert result.code == 0
    assert (work / expected).is_file()
    assert expected in result.err


def test_copy_overwrites_nothing(refused, work):
    (work / "pocket.yaml").write_text("seed: 1\n")
    assert "pocket.yaml exists already" in refused("recipes", "copy", "pocket")
    assert "There is no folder nowhere" in refused("recipes", "copy", "pocket", "nowhere/a.yaml")


@pytest.mark.parametrize("command", ["show", "copy"])
def test_an_unknown_recipe_is_answered_with_the_nearest(refused, command):
    assert "There is no recipe called poket.\nDid you mean pocket?" in refused("recipes", command, "poket")
