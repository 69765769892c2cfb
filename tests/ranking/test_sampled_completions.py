"""`chatpipe sample`: different answers, the same whatever interrupts it, and the best of several."""

import json
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file

from chatpipe.data.durable import file_lock
from chatpipe.data.rankings import normalised
from chatpipe.models.pretrained import load_tokenizer
from chatpipe.ranking.completions import Sampling, join_shares, sample_share
from chatpipe.ranking.raters import model_scorer
from chatpipe.reward.training_data import encode_answers


@pytest.fixture
def prompts(work, tiny_run):
    rows = [json.loads(line) for line in (tiny_run.folder / "rank" / "rankings.jsonl").open()]
    prompts = [row["prompt"] for row in rows[:40]]
    (work / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return prompts


@pytest.fixture
def sample(chatpipe, prompts):
    def sample(*words, prompts="prompts.jsonl"):
        return chatpipe("sample", *words, "--prompts", prompts, "--max-new-tokens", 24)

    return sample


def rows_of(path):
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def test_answers_are_as_many_as_asked_for_and_no_two_are_the_same(sample, work, tiny_run, prompts):
    said = sample(tiny_run.folder / "sft", "-k", 3, "-o", "out/c.jsonl", "--json")
    rows = rows_of(work / "out" / "c.jsonl")
    assert said.object == {
        "out": "out/c.jsonl",
        "prompts": len(rows),
        "left_out": len(prompts) - len(rows),
        "skipped": False,
    }
    assert len(rows) > len(prompts) / 2
    assert sum(len(row["responses"]) == 3 for row in rows) > len(rows) / 2
    asked = iter(prompts)
    assert all(any(row["prompt"] == prompt for prompt in asked) for row in rows)  # in the order of the prompts
    for row in rows:
        texts = list(map(normalised, row["responses"]))
        assert 2 <= len(texts) == len(set(texts)) <= 3
        assert "" not in texts
        assert row["models"] == [str(tiny_run.folder / "sft")] * len(texts)


def test_the_share_of_answers_that_are_cut_is_named(sample, tiny_run):
    said = sample(tiny_run.folder / "sft", "-k", 2, "-o", "out/c.jsonl")
    assert re.search(r"sample: \d+% of the answers were cut at 24 tokens \(max_new_tokens\)", said.err)


@pytest.mark.parametrize("one, other", [("A  cat.", " a cat.\n"), ("ﬁne", "FINE"), ("e\u0301", "\u00e9")])
def test_case_space_and_forms_of_a_letter_make_no_other_answer(one, other):
    assert normalised(one) == normalised(other)


def test_it_continues_where_it_was_killed(sample, work, tiny_run):
    command = (tiny_run.folder / "sft", "-k", 2, "-o", "c.jsonl")
    assert sample(*command).code == 0
    whole = (work / "c.jsonl").read_bytes()
    (work / "c.jsonl").unlink()
    lines = whole.splitlines(keepends=True)
    (work / "c.jsonl.0-of-1.partial").write_bytes(b"".join(lines[:5]) + lines[5][:20])
    assert sample(*command).code == 0
    rows = rows_of(work / "c.jsonl")
    # The killed one had answered the first rows of the finished file; what it had left out before counts as done.
    assert rows[:5] == [json.loads(line) for line in lines[:5]]
    assert not (work / "c.jsonl.0-of-1.partial").exists()


@pytest.mark.parametrize("shares", [2, 3])
def test_processes_that_share_the_prompts_make_the_same_file(sample, work, tiny_run, prompts, shares):
    model = str(tiny_run.folder / "sft")
    assert sample(model, "-k", 2, "-o", "c.jsonl").code == 0
    sampling = Sampling(k=2, seed=0, max_new_tokens=24)
    shared = work / "shared.jsonl"
    for share in reversed(range(shares)):
        sample_share(shared, [model], prompts, sampling, share=share, shares=shares)
    partial = work / f"shared.jsonl.1-of-{shares}.partial"  # killed in its last line
    partial.write_bytes(partial.read_bytes()[:-20])
    sample_share(shared, [model], prompts, sampling, share=1, shares=shares)
    written = join_shares(shared, sampling, shares)
    assert written.prompts + written.left_out == len(prompts)
    assert shared.read_bytes() == (work / "c.jsonl").read_bytes()
    assert [path.name for path in work.glob("shared*")] == ["shared.jsonl"]


def test_what_another_command_left_is_not_gone_on_with(sample, work, tiny_run):
    model = tiny_run.folder / "sft"
    assert sample(model, "-k", 2, "-o", "c.jsonl").code == 0
    whole = (work / "c.jsonl").read_bytes()
    (work / "c.jsonl").rename(work / "d.jsonl.0-of-1.partial")
    assert sample(model, "-k", 2, "--seed", 1, "-o", "d.jsonl").code == 0
    assert not {row["made"] for row in rows_of(work / "d.jsonl")} & {json.loads(whole.splitlines()[0])["made"]}


def test_a_finished_file_is_kept(sample, work, tiny_run):
    command = (tiny_run.folder / "sft", "-k", 2, "-o", "c.jsonl")
    assert sample(*command).code == 0
    before = (work / "c.jsonl").read_bytes()
    again = sample(*command, "--json")
    assert again.object["skipped"] is True
    assert "c.jsonl is complete already." in again.err
    other = sample(*command, "--seed", 1)
    assert other.code == 2
    assert "c.jsonl exists, and another command made it." in other.err
    assert (work / "c.jsonl").read_bytes() == before
    assert sample(*command, "--seed", 1, "--fresh").code == 0
    assert (work / "c.jsonl").read_bytes() != before


def test_an_answer_depends_on_its_own_prompt_alone(sample, work, chatpipe, tiny_run, prompts):
    command = (tiny_run.folder / "sft", "-k", 2)
    assert sample(*command, "-o", "all.jsonl").code == 0
    rows = rows_of(work / "all.jsonl")
    last = rows[-1]
    (work / "one.jsonl").write_text(json.dumps({"prompt": last["prompt"]}) + "\n")
    words = ("--prompts", "one.jsonl", "--max-new-tokens", 24, "-o", "alone.jsonl")
    assert chatpipe("sample", *command, *words).code == 0
    assert rows_of(work / "alone.jsonl")[0]["responses"] == last["responses"]


def test_several_models_answer_in_turn(sample, work, tiny_run):
    sft, ppo = (tiny_run.folder / stage for stage in ("sft", "ppo"))
    assert sample(sft, ppo, "-k", 4, "-o", "c.jsonl").code == 0
    mixed = [row["models"] for row in rows_of(work / "c.jsonl")]
    assert max(models.count(str(sft)) for models in mixed) == 2
    assert max(models.count(str(ppo)) for models in mixed) == 2
    assert sum(str(sft) in models and str(ppo) in models for models in mixed) > len(mixed) / 2


def test_the_best_of_several_scores_higher(sample, work, tiny_run):
    sft, rm = (tiny_run.folder / stage for stage in ("sft", "rm"))
    assert sample(sft, "-k", 1, "-o", "one.jsonl").code == 0
    assert sample(sft, "--best-of", 8, "--reward", rm, "-o", "best.jsonl").code == 0
    score = model_scorer(str(rm), "--reward")
    mean = {}
    for name in ("one", "best"):
        rows = rows_of(work / f"{name}.jsonl")
        assert {len(row["responses"]) for row in rows} == {1}
        scores = score([(row["prompt"], row["responses"]) for row in rows])
        mean[name] = sum(score for [score] in scores) / len(scores)
    assert mean["best"] > mean["one"] + 0.1


def test_a_reward_model_of_nan_chooses_nothing(sample, work, tiny_run):
    shutil.copytree(tiny_run.folder / "rm", work / "nan")
    weights = load_file(work / "nan" / "model.safetensors")
    weights["score.weight"].fill_(3e38)
    save_file(weights, work / "nan" / "model.safetensors", metadata={"format": "pt"})
    said = sample(tiny_run.folder / "sft", "--best-of", 2, "--reward", "./nan", "-o", "c.jsonl")
    assert said.code == 2
    assert "--reward = ./nan gives NaN or infinity for an answer." in said.err
    assert not (work / "c.jsonl").exists()


def test_answers_that_the_reward_model_cannot_read_whole_are_not_chosen(sample, work, tiny_run):
    shutil.copytree(tiny_run.folder / "rm", work / "short")
    manifest = json.loads((work / "short" / "chatpipe.json").read_text())
    manifest["settings"]["rm.max_length"] = 9
    (work / "short" / "chatpipe.json").write_text(json.dumps(manifest))
    assert sample(tiny_run.folder / "sft", "--best-of", 4, "--reward", "./short", "-o", "c.jsonl").code == 0
    rows = rows_of(work / "c.jsonl")
    tokenizer = load_tokenizer(str(tiny_run.folder / "rm"))
    assert {len(encode_answers(tokenizer, row["prompt"], row["responses"], 9)) for row in rows} == {1}


def test_what_was_replaced_is_there_until_the_new_file_is_whole(sample, work, tiny_run, monkeypatch):
    command = (tiny_run.folder / "sft", "-k", 2, "-o", "c.jsonl")
    assert sample(*command).code == 0
    before = (work / "c.jsonl").read_bytes()

    def breaking(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("chatpipe.ranking.sample_answers.sample_answers", breaking)
        assert sample(*command, "--seed", 1, "--fresh").code == 130
    assert (work / "c.jsonl").read_bytes() == before
    assert sample(*command, "--seed", 1, "--fresh").code == 0
    assert (work / "c.jsonl").read_bytes() != before


FOREIGN = {
    "notes": "by hand\n",
    "prompts": '{"prompt": "Who?"}\n',
    "cars": '{"made": "in Turin"}\n',
    "a list": "[1, 2]\n",
    "one row more": '{"prompt": [], "responses": [], "made": "0123456789abcdef"}\n{"prompt": [], "responses": []}\n',
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("flag", [(), ("--fresh",)], ids=["kept", "fresh"])
def test_a_file_that_sample_did_not_make_is_not_replaced(sample, work, tiny_run, content, flag):
    (work / "mine.jsonl").write_text(content)
    said = sample(tiny_run.folder / "sft", "-k", 2, "-o", "mine.jsonl", *flag)
    assert said.code == 2
    assert "mine.jsonl exists, and chatpipe sample did not make it." in said.err
    assert (work / "mine.jsonl").read_text() == content


def test_a_folder_is_no_completions_file(sample, work, tiny_run):
    (work / "mine").mkdir()
    said = sample(tiny_run.folder / "sft", "-k", 2, "-o", "mine", "--fresh")
    assert said.code == 2
    assert "mine is a folder or a device." in said.err


def test_two_at_once_do_not_write_one_file(sample, work, tiny_run):
    command = (tiny_run.folder / "sft", "-k", 2, "-o", "c.jsonl")
    with file_lock(work / "c.jsonl"):
        for flag in ([], ["--fresh"]):
            said = sample(*command, *flag)
            assert said.code == 2
            assert "Another chatpipe writes to c.jsonl." in said.err
    assert [path.name for path in work.glob("c.jsonl*")] == ["c.jsonl.lock"]
    assert sample(*command).code == 0


@pytest.mark.parametrize(
    "words, told",
    [
        (("pretrain", "-o", "c.jsonl"), "is a base model: it completes text and answers nobody"),
        (("rm", "-o", "c.jsonl"), "is a reward model, but a causal language model is needed there"),
        (("sft", "sft", "-o", "c.jsonl"), "is given twice"),
        (("sft", "ppo", "-k", 1, "-o", "c.jsonl"), "2 models for 1 answers a prompt"),
        (("sft", "-o", "c.jsonl", "--best-of", 4), "--best-of and --reward belong together"),
        (("sft", "-o", "c.jsonl", "--best-of", 4, "--reward", "sft"), "but a reward model is needed there"),
    ],
    ids=["base", "reward", "twice", "few", "no-reward", "no-reward-model"],
)
def test_what_cannot_answer_is_refused(sample, work, tiny_run, words, told):
    said = sample(*(tiny_run.folder / word if word in ("pretrain", "sft", "rm", "ppo") else word for word in words))
    assert said.code == 2, said.err
    assert told in said.err
    assert {path.name for path in work.glob("c.jsonl*")} <= {"c.jsonl.lock"}


@pytest.mark.parametrize("longest", [95, 96, 500])
def test_answers_that_leave_no_prompt_room_are_refused_by_what_is_read(chatpipe, work, tiny_run, prompts, longest):
    sft = tiny_run.folder / "sft"
    said = chatpipe("sample", sft, "--prompts", "prompts.jsonl", "-o", "c.jsonl", "--max-new-tokens", longest)
    assert said.code == 2
    assert f"no prompt leaves room for max_new_tokens = {longest} in the context of {sft} (96 tokens)" in said.err
    assert "Lower max_new_tokens" in said.err


def test_prompts_with_tools_are_left_out_and_counted_where_the_template_has_none(sample, work, tiny_run, prompts):
    tool = {"type": "function", "function": {"name": "age", "description": "", "parameters": {"type": "object"}}}
    rows = [{"prompt": prompt, "tools": [tool] if number < 3 else []} for number, prompt in enumerate(prompts)]
    (work / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (work / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    said = sample(tiny_run.folder / "sft", "-k", 2, "-o", "c.jsonl", prompts="some.jsonl")
    assert said.code == 0, said.err
    assert f"3 of {len(prompts)} prompts left out" in said.err
    assert not any(row["prompt"][-1]["content"] in str(prompts[:3]) for row in rows_of(work / "c.jsonl"))
    said = sample(tiny_run.folder / "sft", "-k", 2, "-o", "d.jsonl", prompts="all.jsonl")
    assert said.code == 2
    assert "the chat template has no tools" in said.err


def test_ids_of_ones_own_stay_with_their_prompts(sample, work, tiny_run, prompts):
    asked = [{"prompt_id": f"q{number}", "prompt": prompt} for number, prompt in enumerate(prompts)]
    (work / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    assert sample(tiny_run.folder / "sft", "-k", 2, "-o", "c.jsonl", prompts="own.jsonl").code == 0
    known = {row["prompt_id"]: row["prompt"] for row in asked}
    rows = rows_of(work / "c.jsonl")
    assert rows
    assert all(known[row["id"]] == row["prompt"] for row in rows)
