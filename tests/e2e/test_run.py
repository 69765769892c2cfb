"""`chatpipe run`: what it prints, what it leaves, and what a second call does."""

import hashlib
import json

import pytest
import torch
from own_files import asked, write_rows
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from chatpipe.data.chat_template import encode_conversation
from chatpipe.data.datasets import load_conversations
from chatpipe.models.manifest import checkpoint_id
from chatpipe.recipe import load_recipe
from chatpipe.reward.training_data import drawn

STAGES = ("pretrain", "sft", "sample", "rank", "rm", "ppo")
TRAINED = ("pretrain", "sft", "rm", "ppo")
CAUSAL = ("pretrain", "sft", "ppo")


def manifest(folder):
    return json.loads((folder / "chatpipe.json").read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_is_the_object_of_the_contract_and_nothing_else(tiny_run):
    told = json.loads(tiny_run.said.out)
    assert set(told) == {"run", "stages", "seconds"}
    assert told["run"] == str(tiny_run.folder)
    assert [stage["stage"] for stage in told["stages"]] == list(STAGES)
    for stage in told["stages"]:
        assert set(stage) == {"stage", "round", "out", "seconds", "processes", "skipped", "metrics", "verdict"}
        assert stage["out"] == str(tiny_run.folder / stage["stage"])
        assert stage["processes"] == 1
        assert stage["skipped"] is False
        assert set(stage["verdict"]) == {"status", "reasons"}
        assert stage["verdict"]["status"] in ("pass", "warn", "fail")
        assert all(isinstance(reason, str) for reason in stage["verdict"]["reasons"])
        if stage["stage"] in TRAINED:
            assert stage["metrics"]["tokens_per_second"] > 0
            assert 0 < stage["metrics"]["train_seconds"] < stage["seconds"]
            assert 0 < stage["metrics"]["evaluation_seconds"] < stage["seconds"]
    assert told["seconds"] >= sum(stage["seconds"] for stage in told["stages"]) - 0.5
    names = {"pretrain": ("eval_loss", "bits_per_byte"), "sft": ("eval_loss",), "rm": ("eval_accuracy",)}
    for name, keys in {**names, "ppo": ("objective/kl", "win_rate")}.items():
        assert set(keys) <= set(tiny_run.stage(name)["metrics"])


def test_text_for_people_is_on_stderr(tiny_run):
    assert "What each stage gained" in tiny_run.said.err
    question = tiny_run.stage("ppo")["metrics"]["example"]["question"]
    assert f"Asked: {question}" in tiny_run.said.err
    for stage in STAGES:
        assert f"{stage}: {tiny_run.stage(stage)['verdict']['status']} (" in tiny_run.said.err


def test_text_is_tokenised_once_in_a_run(tiny_run):
    assert (tiny_run.folder / "pretrain" / "tokens" / "train.0" / "manifest.json").is_file()
    assert not (tiny_run.folder / "sft" / "tokens").exists()


def test_the_folder_of_the_contract(tiny_run):
    assert {path.name for path in tiny_run.folder.iterdir()} == {"recipe.yaml", *STAGES}
    assert (tiny_run.folder / "sample" / "completions.jsonl").is_file()
    assert (tiny_run.folder / "rank" / "rankings.jsonl").is_file()
    assert (tiny_run.folder / "rank" / "rankings.db").is_file()
    for stage in TRAINED:
        found = {path.name for path in (tiny_run.folder / stage).iterdir()}
        expected = {"config.json", "model.safetensors", "tokenizer.json", "README.md", "chatpipe.json"}
        expected |= {"metrics.jsonl", "checkpoints"}
        expected |= {"generation_config.json"} if stage != "rm" else set()
        expected |= {"chat_template.jinja"} if stage != "pretrain" else set()
        assert expected <= found, stage
        # what it would have resumed from is many times as large as the model
        assert {path.name for path in (tiny_run.folder / stage / "checkpoints").iterdir()} == {"stage.json"}, stage
        assert not {name for name in found if name.endswith((".bin", ".pt", ".pkl"))}, stage


@pytest.mark.parametrize("stage", TRAINED)
def test_transformers_opens_the_model(tiny_run, stage):
    kind = AutoModelForCausalLM if stage in CAUSAL else AutoModelForSequenceClassification
    model, info = kind.from_pretrained(tiny_run.folder / stage, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_run.folder / stage)
    assert (tokenizer.chat_template is None) == (stage == "pretrain")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.dtype == torch.float32
    if stage == "rm":
        assert model.config.num_labels == 1
        assert model.score.weight.shape[0] == 1
    else:
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("stage", STAGES)
def test_the_manifest_has_the_content_and_the_verdict_of_the_folder(tiny_run, stage):
    folder = tiny_run.folder / stage
    told = manifest(folder)
    others = {"chatpipe.json", "metrics.jsonl", "rankings.db", "rankings.db.lock"}
    there = {path.name: path for path in folder.iterdir() if path.is_file() and path.name not in others}
    assert told["files"] == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in there.items()}
    assert told["stage"] == stage
    assert told["seed"] == 0
    key = {"sample": "k", "rank": "temperature"}.get(stage, "learning_rate")
    assert told["settings"][f"{stage}.{key}"] == load_recipe(str(tiny_run.recipe)).recipe.model_dump()[stage][key]
    assert {"chatpipe", "torch", "transformers", "trl"} <= set(told["versions"])
    printed = tiny_run.stage(stage)
    assert told["metrics"] == printed["metrics"]
    assert told["verdict"] == printed["verdict"]
    read = {"sft": ["sft.data", "pretrain.data"], "rank": ["completions"], "rm": ["rm.data", "sft.data"]}
    assert list(told["data"]) == read.get(stage, [f"{stage}.data"])


def test_parents_link_the_stages(tiny_run):
    made = {stage: checkpoint_id(str(tiny_run.folder / stage)) for stage in TRAINED}
    assert len(set(made.values())) == 4
    assert {stage: manifest(tiny_run.folder / stage)["parents"] for stage in STAGES} == {
        "pretrain": {},
        "sft": {"sft.model": made["pretrain"]},
        "sample": {"sample.model": made["sft"]},
        "rank": {},
        "rm": {"rm.model": made["sft"]},
        "ppo": {"ppo.model": made["sft"], "ppo.reward_model": made["rm"]},
    }


@pytest.mark.parametrize("stage", TRAINED)
def test_metrics_has_a_line_for_each_logged_step(tiny_run, stage):
    section = load_recipe(str(tiny_run.recipe)).recipe.model_dump()[stage]
    found = lines(tiny_run.folder / stage / "metrics.jsonl")
    steps = [line["step"] for line in found]
    last = found[0]["max_steps"]
    if stage == "rm":  # and one for what was measured at the end
        measured = found.pop()
        assert measured["step"] == steps.pop() == last
        assert measured["eval_accuracy"] == tiny_run.stage("rm")["metrics"]["eval_accuracy"]
    if stage == "ppo":  # a line each iteration
        every = section["num_ppo_epochs"] * section["num_mini_batches"]
        assert steps == list(range(every, last + 1, every))
        assert {"objective/kl", "objective/scores", "policy/clipfrac_avg", "val/ratio_first"} <= set(found[0])
        assert [line["val/ratio_first"] for line in found] == pytest.approx([1.0] * len(found))
    else:
        every = section["logging_steps"]
        assert steps == sorted({1, *range(every, last + 1, every)})
    for line in found:
        assert line["loss"] == line["loss"]
        assert line["tokens_per_second"] > 0
        assert line["mfu"] == "unknown" or line["mfu"] > 0


def test_rankings_are_as_in_the_contract(tiny_run):
    rankings = lines(tiny_run.folder / "rank" / "rankings.jsonl")
    recipe = load_recipe(str(tiny_run.recipe)).recipe
    assert 0.5 * recipe.sample.prompts < len(rankings) <= recipe.sample.prompts
    for ranking in rankings:
        assert set(ranking) == {"prompt", "responses", "ranks", "annotator", "round", "kind"}
        assert ranking["prompt"][-1]["role"] == "user"
        assert all(set(message) == {"role", "content"} for message in ranking["prompt"])
        assert 2 <= len(ranking["responses"]) <= recipe.sample.k
        assert all(text.strip() == text != "" for text in ranking["responses"])
        assert len(ranking["ranks"]) == len(ranking["responses"])
        assert min(ranking["ranks"]) == 1
        assert max(ranking["ranks"]) <= len(ranking["ranks"])
    assert len({json.dumps(ranking["prompt"]) for ranking in rankings}) > 0.9 * len(rankings)


def test_rewards_of_demonstrations_average_zero(tiny_run):
    """Measured with the stock class and the offset in its config.json."""
    folder = tiny_run.folder / "rm"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    recipe = load_recipe(str(tiny_run.recipe)).recipe
    conversations = load_conversations(recipe.sft.data, recipe.worlds, "sft.data").train
    demonstrations = [encode_conversation(tokenizer, said)[0] for said in drawn(conversations, 256, recipe.seed)]
    assert max(map(len, demonstrations)) <= recipe.rm.max_length
    with torch.no_grad():
        logits = [model(torch.tensor([ids])).logits.item() for ids in demonstrations]
    offset = model.config.chatpipe_reward_offset
    rewards = torch.tensor(logits) - offset
    assert abs(rewards.mean()) < 0.02
    assert rewards.std() > 0.05


def test_a_second_call_skips_all_stages(tiny_run, chatpipe, listing):
    before = listing(tiny_run.folder)
    again = chatpipe("run", tiny_run.recipe, "--json").object
    assert listing(tiny_run.folder) == before
    for now, first in zip(again["stages"], tiny_run.said.object["stages"], strict=True):
        assert now == {**first, "skipped": True}


def test_a_changed_evaluation_costs_no_training_and_the_changes_are_printed(tiny_run, chatpipe):
    result = tiny_run.stage("sft")
    command = ("sft", tiny_run.recipe, "--out", tiny_run.folder / "sft", "--json")
    again = chatpipe(*command, "evaluation.prompts=50", "evaluation.max_new_tokens=20")
    assert again.object == {**result, "skipped": True}
    changes = "evaluation.prompts was 40, is 50 now; evaluation.max_new_tokens was 24, is 20 now"
    assert f"warning: sft was measured with other settings: {changes} (--fresh " in again.err
    assert "other settings" not in chatpipe(*command).err
    rm = ("rm", tiny_run.recipe, "evaluation.prompts=50", "--out", tiny_run.folder / "rm")
    assert "other settings" not in chatpipe(*rm, f"rm.data={tiny_run.folder}/rank/rankings.jsonl").err


@pytest.mark.parametrize(
    "change, where", [("seed=1", "run"), ("pocketworld.seed=1", "run"), ("ppo.kl_coef=0.3", "ppo")]
)
def test_a_folder_that_holds_another_run_is_refused(tiny_run, chatpipe, listing, change, where):
    before = listing(tiny_run.folder)
    said = chatpipe("run", tiny_run.recipe, change)
    assert said.code == 2
    assert f" holds another {where}:\n{change.split('=')[0]} was " in said.err
    assert "--fresh" in said.err
    assert said.out == ""
    assert listing(tiny_run.folder) == before


def test_a_refused_stage_leaves_the_recipe_of_its_run_alone(tiny_run, chatpipe, listing):
    before = listing(tiny_run.folder)
    said = chatpipe("sft", tiny_run.recipe, "sft.learning_rate=9e-3")
    assert said.code == 2
    assert "sft.learning_rate was 0.0015, is 0.009 now" in said.err
    assert listing(tiny_run.folder) == before


# ---- a run that is started over ----

BRIEF = (
    "pretrain.max_steps=5",
    "pocketworld.documents=300",
    "sft.max_steps=3",
    "rm.num_train_epochs=1",
    "ppo.total_episodes=32",
    "evaluation.prompts=10",
    "checks.reward_at_chance=false",  # so little training makes no reward model
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A file for `rm.data`: what so short a run would sample could not be ranked."""
    rows = [{"prompt": one.question, "chosen": one.right, "rejected": one.wrong} for one in asked()]
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)


@pytest.fixture(scope="module")
def brief_run(tmp_path_factory, small, pairs, chatpipe):
    """Its folder, and the output of `--strict --json` for a run that is too short to learn anything."""
    folder = tmp_path_factory.mktemp("brief") / "run"
    command = ("run", "pocket", f"out={folder}", f"rm.data={pairs}", *small, *BRIEF)
    return folder, chatpipe(*command, "--strict", "--json")


def test_strict_exits_with_1_when_a_verdict_is_fail(brief_run):
    _, said = brief_run
    assert said.code == 1
    told = json.loads(said.out)
    assert [stage["stage"] for stage in told["stages"]] == [stage for stage in STAGES if stage != "sample"]
    assert told["stages"][0]["verdict"]["status"] == "fail"


def test_strict_also_fails_a_run_that_was_done_before(brief_run, chatpipe):
    folder, _ = brief_run
    again = chatpipe("run", folder / "recipe.yaml", "--strict", "--json")
    assert again.code == 1
    assert all(stage["skipped"] for stage in json.loads(again.out)["stages"])
    assert chatpipe("rm", folder / "recipe.yaml", "--json").object["skipped"]


def test_where_and_how_a_run_runs_may_change(brief_run, chatpipe):
    folder, _ = brief_run
    how = ("sft.save_steps=7", "ppo.logging_steps=1", "processes=2")
    again = chatpipe("run", folder / "recipe.yaml", *how, "--json").object
    assert all(stage["skipped"] for stage in again["stages"])
    assert chatpipe("run", folder / "recipe.yaml", "processes=1", "--json").object


def test_five_steps_of_pretraining_fail(brief_run):
    _, said = brief_run
    pretrain = json.loads(said.out)["stages"][0]
    metrics, (worst, other) = pretrain["metrics"], pretrain["verdict"]["reasons"]
    assert metrics["bits_per_byte"] > metrics["trigram_bits_per_byte"]
    assert f"counting 3-grams of bytes gives {metrics['trigram_bits_per_byte']:.2f}, which must be beaten" in worst
    assert "Try: raise pretrain.max_steps" in worst
    assert "below the untrained model's" in other


def test_the_resolved_recipe_gives_the_same_model_again(brief_run, tmp_path, chatpipe):
    folder, _ = brief_run
    assert chatpipe("pretrain", folder / "recipe.yaml", f"out={tmp_path}/again").code == 0
    first, again = (load_file(run / "pretrain" / "model.safetensors") for run in (folder, tmp_path / "again"))
    assert first.keys() == again.keys()
    assert all(first[name].equal(again[name]) for name in first)


def test_fresh_starts_over(brief_run, pairs, chatpipe):
    folder, _ = brief_run
    before = {stage: checkpoint_id(str(folder / stage)) for stage in TRAINED}
    fewer = write_rows(pairs.with_name("fewer.jsonl"), lines(pairs)[:200])
    over = chatpipe("run", folder / "recipe.yaml", "seed=1", f"rm.data={fewer}", "--fresh", "--json").object
    assert not any(stage["skipped"] for stage in over["stages"])
    assert {manifest(folder / stage)["seed"] for stage in TRAINED} == {1}
    for stage in TRAINED:
        assert checkpoint_id(str(folder / stage)) != before[stage]
    assert len(lines(folder / "rank" / "rankings.jsonl")) == 200


def test_fresh_deletes_nothing_that_chatpipe_did_not_make(tmp_path, small, chatpipe, listing):
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "thesis.txt").write_text("years of work")
    before = listing(tmp_path)
    for command in (("run", "pocket"), ("pretrain", "pocket")):
        said = chatpipe(*command, f"out={tmp_path}", *small, "--fresh")
        assert said.code == 2
        assert "chatpipe did not make" in said.err
    (tmp_path / "recipe.yaml").write_text("seed: 3  # why 3\n")
    said = chatpipe("sft", tmp_path / "recipe.yaml", f"out={tmp_path}", f"sft.model={tmp_path}")
    assert said.code == 2
    assert (tmp_path / "recipe.yaml").read_text() == "seed: 3  # why 3\n"
    assert set(before) < set(listing(tmp_path))
