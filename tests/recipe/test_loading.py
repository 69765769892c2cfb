from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from chatpipe.errors import UsageError
from chatpipe.recipe import Recipe, find_recipe, load_recipe, packaged_recipes
from chatpipe.recipe.loading import RecipeDumper, flatten
from chatpipe.recipe.schema import TRAINING_STAGES, DataBlock
from chatpipe.run.chain import write_recipe
from chatpipe.run.step_checks import PACKAGES


@pytest.fixture
def write(tmp_path):
    """Writes a recipe file and returns its path as text."""

    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def problem_of(name: str | None, *overrides: str, **flags: object) -> str:
    """Message and hint of the refusal, which is at most eight lines long."""
    with pytest.raises(UsageError) as caught:
        load_recipe(name, overrides, flags)
    text = f"{caught.value.message}\n{caught.value.hint}"
    assert len(text.splitlines()) <= 8
    return text


def test_without_a_recipe_every_value_is_the_default():
    resolved = load_recipe(None)
    assert resolved.recipe == Recipe()
    assert {origin for _, _, origin in resolved.rows()} == {"default"}
    assert [key for key, _, _ in resolved.rows()] == list(flatten(Recipe().model_dump()))


def test_each_value_knows_where_it_comes_from(write):
    path = write("seed: 7\nppo:\n  kl_coef: 0.1\n  lam: 0.9\npretrain:\n  tokenizer: {vocab_size: 512}\n")
    resolved = load_recipe(path, ["ppo.lam=0.5"], {"sft.model": "gpt2"})
    rows = {key: (value, origin) for key, value, origin in resolved.rows()}
    assert rows["seed"] == ("7", f"{path}:1")
    assert rows["ppo.kl_coef"] == ("0.1", f"{path}:3")
    assert rows["ppo.lam"] == ("0.5", "command line")
    assert rows["pretrain.tokenizer.vocab_size"] == ("512", f"{path}:6")
    assert rows["ppo.gamma"] == ("1.0", "default")
    assert rows["pretrain.max_steps"] == ("2000", "default")
    assert rows["sft.model"] == ("gpt2", "command line")
    assert rows["rm.learning_rate"] == ("None", "default")
    assert rows["out"] == ("runs/mine", "the recipe's name")


def test_a_section_given_on_the_command_line_replaces_the_file_s(write):
    path = write("ppo:\n  kl_coef: 0.1\n  lam: 0.9\n")
    rows = {key: (value, origin) for key, value, origin in load_recipe(path, ["ppo={gamma: 0.5}"]).rows()}
    assert rows["ppo.gamma"] == ("0.5", "command line")
    assert rows["ppo.lam"] == ("0.95", "default")


def test_options_win_over_overrides_and_those_over_the_file(write):
    path = write("seed: 1\nprocesses: 1\nout: here\n")
    recipe = load_recipe(path, ["seed=2", "processes=2"], {"processes": 3}).recipe
    assert (recipe.out, recipe.seed, recipe.processes) == ("here", 2, 3)


def test_an_override_may_name_a_section_that_the_file_leaves_empty(write):
    path = write("sft:\nppo:\n")
    assert load_recipe(path, ["ppo.kl_coef=0.3"]).recipe.ppo.kl_coef == 0.3
    assert load_recipe(path).recipe == Recipe(out="runs/mine")


def test_numbers_may_be_written_as_people_write_them():
    overrides = ["ppo.learning_rate=1e-5", "sft.learning_rate=2E-4", "seed=3", "pretrain.bf16=true", "ppo.kl_coef=1"]
    recipe = load_recipe(None, overrides).recipe
    assert (recipe.ppo.learning_rate, recipe.sft.learning_rate) == (1e-5, 2e-4)
    assert (recipe.seed, recipe.pretrain.bf16, recipe.ppo.kl_coef) == (3, True, 1.0)


def test_data_is_a_path_or_several_or_blocks(write):
    a, b = DataBlock(source="a.txt"), DataBlock(source="b.jsonl")
    assert load_recipe(None, ["sft.data=a.txt"]).recipe.sft.data == [a]
    assert load_recipe(None, ["sft.data=a.txt, b.jsonl"]).recipe.sft.data == [a, b]
    assert load_recipe(None, ["sft.data=[a.txt, b.jsonl]"]).recipe.sft.data == [a, b]
    path = write("sft:\n  data:\n    - a.txt\n    - {source: b.jsonl, format: alpaca, limit: 5}\n")
    block = DataBlock(source="b.jsonl", format="alpaca", limit=5)
    assert load_recipe(path).recipe.sft.data == [a, block]


@pytest.mark.parametrize("name", packaged_recipes())
def test_packaged_recipes_load_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resolved = load_recipe(name)
    assert resolved.recipe.out == f"runs/{name}"
    assert resolved.path == find_recipe(name)


def test_a_written_recipe_gives_the_same_run(tmp_path):
    overrides = ["out=runs/größer 1", "sft.data=a.txt,b.json", "ppo.learning_rate=1e-7", "ppo.missing_eos_penalty=null"]
    recipe = load_recipe("pocket", overrides).recipe
    write_recipe(recipe, tmp_path / "recipe.yaml")
    again = load_recipe(str(tmp_path / "recipe.yaml"))
    assert again.recipe == recipe
    assert all(origin.startswith(str(tmp_path)) for _, _, origin in again.rows())


def test_the_home_folder_is_meant_by_a_tilde_also_where_no_shell_sees_it(tmp_path, monkeypatch):
    """Trainer puts it in for the resume points alone, which a resumed run then did not find."""
    monkeypatch.setenv("HOME", "/home/mara")
    (tmp_path / "mine.yaml").write_text("out: ~/run\npretrain: {tokenizer: {pretrained: ~/own}}\n")
    words = ["sft.model=~/base", "rm.model=org/base", "ppo.reward_model=a~/b", "ppo.oracle_reward_model=~/oracle"]
    recipe = load_recipe(str(tmp_path / "mine.yaml"), words).recipe
    assert (recipe.out, recipe.pretrain.tokenizer.pretrained) == ("/home/mara/run", "/home/mara/own")
    assert (recipe.sft.model, recipe.rm.model) == ("/home/mara/base", "org/base")
    assert (recipe.ppo.reward_model, recipe.ppo.oracle_reward_model) == ("a~/b", "/home/mara/oracle")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    rate=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    seed=st.integers(0, 2**32 - 1),
    out=st.text(min_size=1).filter(lambda text: text.isprintable() and text[0] != "~"),
)
def test_no_value_changes_on_its_way_through_a_file(tmp_path, rate, seed, out):
    recipe = Recipe(out=out, seed=seed, ppo={"learning_rate": rate})
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(str(tmp_path / "recipe.yaml")).recipe == recipe


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("ppo.learning_ratee=1e-5", "ppo.learning_rate"),
        ("ppo.klcoef=0.1", "ppo.kl_coef"),
        ("kl_coef=0.1", "ppo.kl_coef"),
        ("seeed=1", "seed"),
        ("pretrian.max_steps=3", "pretrain"),
        ("pretrain.architecture.n_layers=3", "pretrain.architecture.n_layer"),
        ("sft.data=[{source: a.txt, fromat: text}]", "sft.data.0.format"),
        ("ppo.vocab_size=300", "pretrain.architecture.vocab_size or pretrain.tokenizer.vocab_size"),
        ("sft.epochs=3", "sft.num_train_epochs"),
        ("sft.lora.rank=3", "sft.lora.r"),
        ("max_length=9", "sft.max_length or rm.max_length"),
    ],
)
def test_a_misspelt_key_is_named_with_the_right_one(wrong, right):
    key = "sft.data.0.fromat" if "fromat" in wrong else wrong.partition("=")[0]
    key = "pretrian" if "pretrian" in wrong else key
    assert f"there is no key {key}; did you mean {right}?" in problem_of(None, wrong)


def test_a_key_like_none_that_exists_is_answered_with_the_known_ones_where_they_are_few():
    assert "known there: prompts, temperature, max_new_tokens." in problem_of(None, "evaluation.zzz=1")
    assert "there is no key ppo.zzz.\n" in problem_of(None, "ppo.zzz=1")


def test_a_misspelt_key_in_a_file_is_named_with_its_line(write):
    path = write("seed: 0\n\nppo:\n  # the rate\n  learning_ratee: 1e-5\n")
    assert f"{path}:5: there is no key ppo.learning_ratee; did you mean ppo.learning_rate?" in problem_of(path)


def test_all_wrong_keys_are_named_at_once(write):
    path = write("sed: 0\nppo:\n  lamm: 1\n  gama: 1\nsft:\n  learning_rate: fast\n")
    text = problem_of(path)
    for part in (f"{path}:1: ", "seed?", f"{path}:3: ", "ppo.lam?", f"{path}:4: ", "ppo.gamma?", f"{path}:6: sft."):
        assert part in text


def test_many_wrong_keys_still_fit_eight_lines(write):
    path = write("ppo:\n" + "".join(f"  unheard_of_{i}: 1\n" for i in range(20)))
    assert "... and 14 more." in problem_of(path)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("ppo.batch_size=many", ("ppo.batch_size = 'many'", "integer")),
        ("ppo.batch_size=0", ("ppo.batch_size = 0", "greater than or equal to 1")),
        ("ppo.batch_size=1.5", ("ppo.batch_size = 1.5", "integer")),
        ("pretrain.bf16=perhaps", ("pretrain.bf16 = 'perhaps'", "True, False or 'auto'")),
        ("sft.lr_scheduler_type=cosinus", ("sft.lr_scheduler_type = 'cosinus'", "'cosine'")),
        ("ppo.learning_rate=.inf", ("ppo.learning_rate = inf", "finite")),
        ("ppo.kl_coef=.nan", ("ppo.kl_coef = nan", "finite")),
        ("out=3", ("out = 3", "string")),
        ("ppo=3", ("ppo = 3",)),
        ("sft.data=3", ("sft.data = 3", "list")),
        ("sft.data=[{format: text}]", ("sft.data.0.source", "required")),
        ("sft.pretrain_mix=1", ("sft.pretrain_mix = 1", "less than 1")),
        ("pretrain.architecture.n_head=3", ("n_embd = 128 cannot be shared by n_head = 3 heads",)),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_is_wanted(override, parts):
    text = problem_of(None, override)
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seed: 0\nppo: {kl_coef: 1}\nseed: 1\n", (":3: seed is given twice", ":1.")),
        ("ppo:\n  lam: 1\n  lam: 0.9\n", (":3: ppo.lam is given twice", ":2.")),
        ("seed: [0\nppo: }\n", (":2: this is not YAML",)),
        ("seed: 0\nout: !path here\n", (":2: this is not YAML", "!path")),
        (f"seed: {'9' * 5000}\n", ("this is not YAML: Exceeds the limit",)),
        ("", ("is empty", "recipes copy pocket")),
        ("# only words\n", ("is empty",)),
        ("- seed\n", (":1: a recipe consists of `key: value` lines",)),
        ("1: 2\n", (":1: 1 = 1: keys should be strings",)),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_its_line(write, text, parts):
    path = write(text)
    told = problem_of(path)
    assert path in told
    for part in parts:
        assert part in told


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"seed: \xff\xfe")
    assert f"{path} is not a text file" in problem_of(str(path))


def test_a_value_is_never_taken_for_a_section(write):
    told = problem_of(write("ppo: 3\n"), "ppo.kl_coef=0.1")
    assert "ppo.kl_coef cannot be set: ppo is 3" in told
    assert "sft.data is 'pocketworld'" in problem_of("pocket", "sft.data.source=chats.jsonl")


@pytest.mark.parametrize("override", ["ppo.lam=[", "out=!path here"])
def test_an_override_that_cannot_be_read_is_quoted(override):
    assert f"The value of {override!r} cannot be read" in problem_of(None, override)


def test_an_unknown_recipe_is_answered_with_the_nearest():
    assert "There is no recipe called pockte.\nDid you mean pocket?" in problem_of("pockte")
    assert f"Packaged recipes: {', '.join(sorted(packaged_recipes()))}." in problem_of("zzzz")
    assert "There is no recipe file nowhere/x.yaml." in problem_of("nowhere/x.yaml")


def test_the_schema_for_editors_knows_every_key_and_describes_data_as_text_too():
    schema = Recipe.model_json_schema()
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False
    for stage in TRAINING_STAGES:
        kinds = schema["$defs"][stage.capitalize()]["properties"]["data"]["anyOf"]
        assert {"string", "array", "null"} <= {kind.get("type") for kind in kinds}


def test_packaged_recipes_begin_with_a_line_for_the_list():
    for path in packaged_recipes().values():
        first, *rest = Path(path).read_text(encoding="utf-8").splitlines()
        assert first.startswith("# ")
        assert yaml.safe_load("\n".join(rest))


def test_the_trackers_are_those_of_transformers():
    """Kubeflow is none that a recipe names: its jobs turn it on by an environment variable."""
    assert set(PACKAGES) == set(INTEGRATION_TO_CALLBACK) - {"kubeflow"}


@pytest.mark.parametrize(
    ("text", "number"), [("008", 8), ("010", 10), ("09", 9), ("1_000", 1000), ("0x10", 16), ("+7", 7), ("0", 0)]
)
def test_whole_numbers_are_what_people_mean(write, text, number):
    """YAML 1.1, which PyYAML reads, takes 010 for eight."""
    assert load_recipe(write(f"seed: {text}\n")).recipe.seed == number
    assert load_recipe(None, [f"seed={text}"]).recipe.seed == number


def test_times_and_days_are_text_and_so_no_numbers(write):
    for text in ("1:30", "1:30.5"):
        assert f"seed = '{text}': input should be a valid integer" in problem_of(write(f"seed: {text}\n"))
        assert "ppo.kl_coef" in problem_of(None, f"ppo.kl_coef={text}")
    assert load_recipe(None, ["out=2026-11-30"]).recipe.out == "2026-11-30"
    assert load_recipe(None, ["sft.learning_rate=1e-5", "ppo.lam=.5"]).recipe.ppo.lam == 0.5


@pytest.mark.parametrize("text", ["yes", "no", "on", "off", "true"])
@pytest.mark.parametrize("key", ["seed", "ppo.kl_coef", "sft.max_length", "sft.data.0.limit"])
def test_yes_and_no_are_no_numbers_and_switches_take_them(write, text, key):
    given = f"sft.data=[{{source: a.jsonl, limit: {text}}}]" if "data" in key else f"{key}={text}"
    assert f"{key}: yes or no is given" in problem_of(None, given)
    assert load_recipe(None, [f"sft.packing={text}"]).recipe.sft.packing == (text in ("yes", "on", "true"))


def test_a_written_recipe_is_read_as_the_same_values(tmp_path):
    texts = ["008", "010", "1:30", "2026-11-30", "1e5", ".5", "on", "null", "0x1F", "-3", "+.5", "a: b"]
    recipe = Recipe(sft={"sample_prompts": texts})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.dump(recipe.model_dump(mode="json"), Dumper=RecipeDumper, allow_unicode=True))
    assert load_recipe(str(path)).recipe == recipe


def test_a_comma_parts_paths_unless_it_is_in_the_name_of_a_file(tmp_path):
    path = tmp_path / "my data, final.jsonl"
    assert [block.source for block in load_recipe(None, flags={"sft.data": "a.jsonl, b.jsonl"}).recipe.sft.data] == [
        "a.jsonl",
        "b.jsonl",
    ]
    path.write_text("{}")
    (block,) = load_recipe(None, flags={"sft.data": str(path)}).recipe.sft.data
    assert block.source == str(path)


@pytest.mark.parametrize(
    ("words", "block"),
    [
        ([], 128),
        (["pretrain.architecture.n_positions=512"], 512),
        (["pretrain.architecture.preset=gpt2-124m"], 1024),
        (["pretrain.architecture.n_positions=8192"], 2048),
        (["pretrain.architecture.n_positions=512", "pretrain.block_size=64"], 64),
        (["pretrain.model=base"], 128),
    ],
)
def test_blocks_are_as_long_as_a_new_model_reads(words, block):
    assert load_recipe(None, words).recipe.pretrain.block_size == block
