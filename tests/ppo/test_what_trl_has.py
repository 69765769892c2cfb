"""What somebody who comes from TRL's PPOTrainer has at hand: models and rows as they are there, and its methods."""

import json
import os
import stat
from types import SimpleNamespace

import parts
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser

from chatpipe import PPOConfig, PPOTrainer
from chatpipe.errors import UsageError
from chatpipe.ppo.experience import read_prompts

PROMPTS = [{"input_ids": ids} for ids in ([3], [4, 5], [6, 7, 8])]
LEARN = {"learning_rate": 3e-2, "total_episodes": 16}


def load(folder, model, auto, dtype=None):
    """`model` as transformers loads it from a folder, without a pad token in its config.json."""
    if dtype is not None:
        model = model.to(dtype)
    model.config.pad_token_id = None
    model.save_pretrained(folder)
    return auto.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_without_a_pad_token_train_in_float32_and_are_saved_as_given(tmp_path, capsys, dtype):
    policy = load(tmp_path / "sft", tiny.policy(), AutoModelForCausalLM, dtype)
    reward = load(tmp_path / "reward", tiny.random_reward_model(), AutoModelForSequenceClassification, dtype)
    value = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    assert policy.dtype == reward.dtype == dtype
    before = parts.weights(policy)
    ppo = parts.trainer(
        tmp_path / "out", LEARN, model=policy, ref_model=reference, reward_model=reward, value_model=value
    )
    assert ppo.policy_model.dtype == ppo.value_model.dtype == ppo.ref_model.dtype == torch.float32
    assert ppo.reward_model.dtype == dtype
    assert capsys.readouterr().err.count("become float32") == 3
    ppo.train()
    lines = tiny.logged_iterations(ppo)
    assert lines[0]["objective/kl"] == 0
    assert lines[0]["val/ratio_first"] == pytest.approx(1, abs=1e-5)
    ppo.save_model(str(tmp_path / "saved"))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert saved.dtype == dtype
    assert parts.changed(saved, before)
    assert ppo.policy_model.dtype == torch.float32  # and training could continue


def test_the_default_value_model_of_a_reward_model_in_bf16_is_float32(tmp_path, capsys):
    ppo = parts.trainer(tmp_path, LEARN, reward_model=tiny.random_reward_model().bfloat16())
    assert ppo.value_model.dtype == torch.float32
    assert "float32" not in capsys.readouterr().err
    ppo.train()
    assert tiny.logged_iterations(ppo)[0]["objective/kl"] == 0


def test_a_folder_that_is_saved_can_be_read_by_others_and_keeps_use_cache(tmp_path):
    policy = tiny.policy()
    policy.config.use_cache = True
    ppo = parts.trainer(tmp_path / "out", LEARN, model=policy)
    ppo.train()
    mask = os.umask(0o022)
    try:
        ppo.save_model(str(tmp_path / "saved"))
    finally:
        os.umask(mask)
    files = list((tmp_path / "saved").iterdir())
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {path.name for path in files}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["use_cache"] is True


# ---- an adapter that the policy has already ----


def adapted(trainable=True, seed=0):
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny.policy(), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return model if trainable else model.requires_grad_(False)


@pytest.mark.parametrize("value_model", ["reward", "policy"])
def test_a_peft_model_trains_its_adapter_against_the_model_without_it(tmp_path, value_model):
    model = adapted()
    plain, before = tiny.policy(), parts.weights(model.get_base_model())
    ppo = parts.trainer(tmp_path, LEARN | {"value_model": value_model}, model=model)
    assert ppo.ref_model is None
    assert not any("lora_" in name for name, _ in ppo.value_model.named_parameters())
    made = tiny.make_experience(ppo)
    reference = parts.trainer(tmp_path, LEARN, model=plain).ref_model
    ids, start = made.sequences.ids[: made.sequences.lengths[0]], int(made.sequences.prompt_lengths[0])
    logits = reference(ids[None]).logits[0, start - 1 : -1].log_softmax(-1)
    expected = logits.gather(-1, ids[start:, None])[:, 0]
    assert torch.allclose(expected, made.ref_logprobs[: len(expected)], atol=1e-4)
    assert (made.logprobs - made.ref_logprobs).abs().max() > 1e-3
    ppo.train()
    learned = parts.changed(model.get_base_model(), before)
    assert learned
    assert all("lora_" in name for name in learned)
    ppo.save_model(str(tmp_path / "saved"))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    row = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        assert torch.allclose(saved(row).logits, model.eval()(row).logits, atol=1e-5)


def test_a_frozen_adapter_and_two_adapters_are_refused(tmp_path):
    peft = pytest.importorskip("peft")
    with pytest.raises(UsageError, match="frozen") as refused:
        parts.trainer(tmp_path, model=adapted(trainable=False))
    assert "is_trainable" in refused.value.hint
    with pytest.raises(UsageError, match="peft_config asks for another"):
        parts.trainer(tmp_path, model=adapted(), peft_config=peft.LoraConfig(r=2, target_modules=["c_attn"]))


def test_an_adapter_on_a_base_in_bf16_learns_in_float32_and_one_in_bf16_is_refused(tmp_path):
    peft = pytest.importorskip("peft")
    base = tiny.policy().bfloat16()
    before = parts.weights(base)
    config = peft.LoraConfig(r=4, target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM")
    ppo = parts.trainer(tmp_path, LEARN, model=base, peft_config=config)
    ppo.train()
    assert tiny.logged_iterations(ppo)[0]["objective/kl"] == 0
    assert {weight.dtype for weight in ppo.policy_model.parameters() if weight.requires_grad} == {torch.float32}
    ppo.save_model(str(tmp_path / "saved"))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert saved.dtype == torch.bfloat16
    assert parts.changed(saved, before)
    with pytest.raises(UsageError, match="model is trained in torch.bfloat16") as refused:
        parts.trainer(tmp_path, model=adapted().bfloat16())
    assert "float32" in refused.value.hint


def test_a_learned_prompt_is_refused(tmp_path):
    """Only the model behind it would be trained, which learns nothing."""
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(UsageError, match="prompt tuning") as refused:
        parts.trainer(tmp_path, model=peft.get_peft_model(tiny.policy(), config))
    assert "LoRA" in refused.value.hint


# ---- rows and evaluation sets ----


def test_rows_padded_with_pad_tokens_lose_them_also_without_a_mask():
    tokenizer = tiny.tokenizer()
    rows = [[0, 0, 3, 4], [3, 4, 0], [0, 3, 0, 4, 0], [3, 4, 1]]
    read = [prompt.ids for prompt in read_prompts([{"input_ids": ids} for ids in rows], tokenizer)]
    assert read == [[3, 4], [3, 4], [3, 0, 4], [3, 4, 1]]  # inside a prompt it is a token like any other
    tokenizer.pad_token = tokenizer.eos_token
    rows = [[1, 1, 3, 4], [1, 3, 4], [3, 4, 1], [3, 4, 1, 1], [3, 1, 1, 4]]
    read = [prompt.ids for prompt in read_prompts([{"input_ids": ids} for ids in rows], tokenizer)]
    assert read == [[3, 4], [1, 3, 4], [3, 4, 1], [3, 4], [3, 1, 1, 4]]  # one alone may be BOS or EOS
    masked = {"input_ids": [1, 1, 3], "attention_mask": [0, 1, 1]}
    assert read_prompts([masked], tokenizer)[0].ids == [1, 3]


def test_a_row_of_padding_alone_is_refused(tmp_path):
    with pytest.raises(UsageError, match="row 1 has no tokens"):
        parts.trainer(tmp_path, train_prompts=None, train_dataset=[{"input_ids": [3]}, {"input_ids": [0, 0]}])


def test_several_evaluation_sets_have_their_metrics_under_their_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    sets = datasets.DatasetDict(short=datasets.Dataset.from_list(PROMPTS[:1]), long=datasets.Dataset.from_list(PROMPTS))
    ppo = parts.trainer(tmp_path, {"eval_strategy": "steps", "eval_steps": 4}, eval_dataset=sets)
    ppo.train()
    lines = [line for line in ppo.state.log_history if "eval_long_objective/scores" in line]
    assert [line["step"] for line in lines] == [4, 8]
    assert "eval_short_response/eos_frac" in lines[0]
    alone = ppo.evaluate(PROMPTS)
    assert alone["eval_objective/scores"] == lines[1]["eval_long_objective/scores"]
    with pytest.raises(UsageError, match="eval_dataset b"):
        parts.trainer(tmp_path, eval_dataset={"a": PROMPTS, "b": [{"input_ids": [3] * 30}]})


def test_without_total_episodes_the_prompts_are_read_num_train_epochs_times(tmp_path):
    settings = {**parts.SETTINGS, "output_dir": str(tmp_path), "num_train_epochs": 4, "batch_size": 2}
    del settings["total_episodes"]
    parts_of = {"processing_class": tiny.tokenizer(), "model": tiny.policy(), "train_prompts": tiny.PROMPTS}
    ppo = PPOTrainer(args=PPOConfig(**settings), reward_model=tiny.random_reward_model(), **parts_of)
    assert ppo.args.total_episodes == 4 * len(tiny.PROMPTS)


# ---- methods ----


def test_generate_completions_shows_five_and_returns_a_row_for_each_prompt(tmp_path, capsys):
    ppo = parts.trainer(tmp_path, {"per_device_eval_batch_size": 2}, eval_dataset={"a": PROMPTS, "b": PROMPTS})
    rows = ppo.generate_completions()
    assert [row["query"] for row in rows] == ["w3", "w4 w5", "w6 w7 w8"] * 2
    assert all(isinstance(row["score"], float) and isinstance(row["model response"], str) for row in rows)
    shown = capsys.readouterr().err
    assert all(f"{row['score']}" in shown for row in rows[:5])
    assert f"{rows[5]['score']}" not in shown
    assert len(ppo.generate_completions(sampling=True)) == 2
    assert parts.trainer(tmp_path).generate_completions() == []


def test_a_model_card_is_written(tmp_path):
    ppo = parts.trainer(tmp_path, {"total_episodes": 16}, eval_dataset=PROMPTS)
    ppo.train()
    ppo.create_model_card(model_name="mine", dataset_name="somebody/prompts", tags="trial")
    card = (tmp_path / "README.md").read_text()
    assert all(word in card for word in ("mine", "somebody/prompts", "trial", "chatpipe"))


def test_push_to_hub_sends_the_policy_its_tokenizer_and_a_card(tmp_path, monkeypatch):
    """The hub itself is what a test cannot have: what would be sent is looked at instead."""
    sent = {}

    def upload(repo_id, folder_path, **_):
        sent.update(repo=repo_id, files=set(os.listdir(folder_path)))

    monkeypatch.setattr("transformers.trainer.hf_api", lambda: SimpleNamespace(upload_folder=upload))
    monkeypatch.setattr(PPOTrainer, "init_hf_repo", lambda self, **_: setattr(self, "hub_model_id", "me/policy"))
    ppo = parts.trainer(tmp_path, {"total_episodes": 16, "hub_model_id": "me/policy"})
    ppo.train()
    ppo.push_to_hub(dataset_name="somebody/prompts")
    assert sent["repo"] == "me/policy"
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= sent["files"]
    assert "somebody/prompts" in (tmp_path / "README.md").read_text()
    AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("added", ["policy", "reward", "processing_class"])
def test_a_pad_token_that_one_tokenizer_alone_has_does_not_matter(tmp_path, added):
    """TRL's scripts add `[PAD]` to the tokenizer, and to no model."""
    tokenizers = {name: tiny.tokenizer() for name in ("policy", "reward", "processing_class")}
    tokenizers[added].add_special_tokens({"pad_token": "[PAD]"})
    for name, model in (("policy", tiny.policy()), ("reward", tiny.random_reward_model())):
        model.save_pretrained(tmp_path / name)
        tokenizers[name].save_pretrained(tmp_path / name)
    models = {
        "model": AutoModelForCausalLM.from_pretrained(tmp_path / "policy"),
        "reward_model": AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward"),
    }
    processing_class = tokenizers["processing_class"]
    ppo = parts.trainer(tmp_path / "out", {"total_episodes": 16}, processing_class=processing_class, **models)
    ppo.train()
    assert ppo.state.global_step == 4  # two minibatches in each of two epochs


@pytest.mark.parametrize("with_lora", [False, True])
def test_a_script_as_trl_has_it_runs(tmp_path, monkeypatch, with_lora):
    """Settings from the command line, models in bfloat16, a tokenizer with `[PAD]`, prompts as ids with EOS."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    load(tmp_path / "sft", tiny.policy(), AutoModelForCausalLM, torch.bfloat16)
    load(tmp_path / "reward", tiny.random_reward_model(), AutoModelForSequenceClassification, torch.bfloat16)
    for name in ("sft", "reward"):
        tiny.tokenizer().save_pretrained(tmp_path / name)
    words = f"--output_dir {tmp_path / 'out'} --per_device_train_batch_size 4 --num_ppo_epochs 2 --total_episodes 16"
    words += " --learning_rate 0.01 --missing_eos_penalty 1.0 --response_length 6 --report_to none --save_strategy no"
    (args,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(words.split())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "sft", padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    value_model, reward_model = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", num_labels=1) for _ in range(2)
    )
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    reference = None if with_lora else AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    lora = pytest.importorskip("peft").LoraConfig(r=4, target_modules=["c_attn"]) if with_lora else None
    texts = [f"w{i % 9 + 2} w3" for i in range(20)]
    rows = [{"input_ids": [*tokenizer(text)["input_ids"], tiny.EOS]} for text in texts]
    before = [{name: weight.clone() for name, weight in model.named_parameters()} for model in (value_model, policy)]
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=rows[4:],
        eval_dataset=rows[:4],
        peft_config=lora,
    )
    trainer.train()
    for model, weights in zip((trainer.model.value_model, trainer.model.policy), before, strict=True):
        now = dict(model.named_parameters())
        learned = [name for name in now if name not in weights or not torch.equal(weights[name], now[name])]
        assert learned
    trained = [name for name, weight in trainer.policy_model.named_parameters() if weight.requires_grad]
    assert any("lora_" in name for name in trained) == all("lora_" in name for name in trained) == with_lora
    trainer.save_model(args.output_dir)
    assert AutoModelForCausalLM.from_pretrained(args.output_dir).dtype == torch.bfloat16
    assert len(trainer.generate_completions()) == 4
