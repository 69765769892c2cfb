"""The packaged recipes: each loads, its batches can be shared, and a run of it passes all checks that need no hub.

Models and data of the hub are replaced with small ones of the same kind.
"""

import json
from pathlib import Path

import pytest

from chatpipe.recipe import load_recipe, packaged_recipes
from chatpipe.recipe.loading import flatten
from chatpipe.reward.functions import load_function
from chatpipe.run.launch import processes_of
from chatpipe.run.step_checks import check_recipe, check_step
from chatpipe.run.steps import steps_of
from stub_models import write_stub_model

ROOT = Path(__file__).resolve().parents[2]
WHOLE_RUNS = {
    "pocket": ["pretrain", "sft", "sample", "rank", "rm", "ppo"],
    "small-real": ["pretrain", "sft", "rank", "rm", "ppo"],
    "smol-rlhf": ["sft", "sample", "rank", "rm", "ppo"],
    "qwen-rlhf": ["sft", "rank", "rm", "ppo"],
    "llama-8b-rlhf": ["sft", "rank", "rm", "ppo"],
    "tldr-1b": ["sft", "rank", "rm", "ppo"],
    "hh": ["rank", "rm", "ppo", "sample.2", "rank.2", "rm.2", "ppo.2"],
}
ONE_STAGE = sorted(set(packaged_recipes()) - set(WHOLE_RUNS))


@pytest.fixture
def local(tmp_path, monkeypatch):
    """Loads a recipe with small files and models in place of those of the hub; in a checkout's layout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("examples").symlink_to(ROOT / "examples")
    answer = {"completion": "Yes.", "chosen": "Yes.", "rejected": "No."}
    fields = {"sft": ("completion",), "rm": ("chosen", "rejected"), "sample": (), "ppo": ()}
    for stage, names in fields.items():
        rows = [{"prompt": f"Question {n}?", **{name: answer[name] for name in names}} for n in range(60)]
        Path(f"{stage}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("pretrain.txt").write_text("A line of text.\n\n" * 100)
    write_stub_model("model")

    def load(name, *given):
        values = flatten(load_recipe(name).recipe.model_dump())
        overrides = [f"{key}=model" for key, value in values.items() if key.endswith(".model") and value]
        for stage in (*fields, "pretrain"):
            sources = [block["source"] for block in values[f"{stage}.data"] or ()]
            if f"{stage}.data" in given or any(source.startswith("hub:") for source in sources):
                overrides.append(f"{stage}.data={stage}.{'txt' if stage == 'pretrain' else 'jsonl'}")
        return load_recipe(name, overrides).recipe

    return load


@pytest.mark.parametrize("name", WHOLE_RUNS)
def test_a_run_of_the_recipe_passes_its_checks(local, name):
    given = ("pretrain.data", "sft.data", "rm.data") if name == "small-real" else ()  # its user names the files
    recipe = local(name, *given)
    steps = steps_of(recipe)
    assert [step.name for step in steps] == WHOLE_RUNS[name]
    check_recipe(recipe)
    for step in steps:
        if step.trains:
            step.section.micro_batches(processes_of(recipe), step.stage)


@pytest.mark.parametrize("name", ONE_STAGE)
def test_a_recipe_of_one_stage_passes_its_checks(local, name):
    [step] = [step for step in steps_of(local(name, "pretrain.data")) if step.stage == "pretrain"]
    check_step(step)
    step.section.micro_batches(1, "pretrain")


def test_the_answers_of_smol_rlhf_are_ranked_by_what_neither_their_length_nor_their_words_tell(monkeypatch):
    """Else its verdict of rm would be a failure, and with answers of one kind ppo had nothing to choose from."""
    monkeypatch.chdir(ROOT)
    scores_of = load_function("examples.smol.taste:to_the_point", "rank.rater")
    rows = [json.loads(line) for line in (ROOT / "examples/smol/chats.jsonl").read_text().splitlines()]
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    answers = [row["completion"] for row in rows]
    scored = list(zip(answers, scores_of(prompts, answers), strict=True))
    liked = [text for text, score in scored if score == 0]
    disliked = [text for text, score in scored if score < 0]
    assert 0.4 < len(liked) / len(answers) < 0.6
    assert sum(map(len, liked)) / len(liked) == pytest.approx(sum(map(len, disliked)) / len(disliked), rel=0.1)
    question = [{"role": "user", "content": "Tell me the capital of Italy."}]
    best, same_words = scores_of([question] * 2, ["Rome is the capital of Italy.", "The capital of Italy is Rome."])
    assert best == 0 > same_words


@pytest.mark.parametrize("name", [name for name in WHOLE_RUNS if name not in ("pocket", "small-real", "smol-rlhf")])
def test_what_nobody_has_measured_yet_says_so(name):
    assert "# Not measured yet." in packaged_recipes()[name].read_text(encoding="utf-8")
