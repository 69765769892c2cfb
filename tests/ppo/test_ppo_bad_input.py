"""What is refused before the first step: what is wrong, and what to do."""

import parts
import pytest
import tiny

from chatpipe.errors import UsageError


def smaller_reward_model():
    model = tiny.random_reward_model()
    model.resize_token_embeddings(5)
    return model


def reward_model_of_two_labels():
    model = tiny.random_reward_model()
    model.config.num_labels = 2
    return model


def broken_policy():
    policy = tiny.policy()
    policy.lm_head.weight.data[3, 3] = float("nan")
    return policy


def tokenizer_without_eos():
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    return tokenizer


@pytest.mark.parametrize(
    "given, message, remedy",
    [
        (
            lambda: {"reward_model": smaller_reward_model()},
            "reward_model knows 5 tokens, the policy can write 12",
            "tokenizer",
        ),
        (lambda: {"oracle_reward": smaller_reward_model()}, "reward_model1 knows 5 tokens", "tokenizer"),
        (lambda: {"reward_model": reward_model_of_two_labels()}, "reward_model gives 2 numbers", "num_labels=1"),
        (lambda: {"settings": {"num_ppo_epochs": 0}}, "num_ppo_epochs = 0: ", "num_ppo_epochs"),
        (lambda: {"settings": {"batch_size": -8}}, "batch_size = -8 ", "multiple"),
        (lambda: {"settings": {"kl_coef": -1.0}}, "kl_coef = -1.0: ", "default"),
        (lambda: {"settings": {"kl_coef": float("nan")}}, "kl_coef = nan: ", "default"),
        (lambda: {"settings": {"gamma": 2.0}}, "gamma = 2.0: ", "default"),
        (lambda: {"settings": {"missing_eos_penalty": -1.0}}, "missing_eos_penalty = -1.0: ", "default"),
        (lambda: {"settings": {"response_length": 2.5}}, "response_length = 2.5: ", "response_length"),
        (lambda: {"settings": {"temperature": float("inf")}}, "temperature = inf", "default"),
        (lambda: {"model": broken_policy()}, "output of GPT2LMHeadModel is not finite", "weights"),
        (
            lambda: {"train_prompts": [[3], [12]]},
            "row 1: token id 12 .* model's 12",
            "tokenizer",
        ),
        (lambda: {"processing_class": tokenizer_without_eos()}, "no EOS token", "eos_token"),
        (lambda: {"settings": {"stop_token_id": 99}}, "stop token 99 .* policy's 12", "stop_token_id"),
        (lambda: {"train_prompts": [[3] * 26, [3] * 27]}, "1 of 2 prompts leave no room", "response_length"),
        (lambda: {"train_prompts": [[3], []]}, "row 1 has no tokens", "at least one"),
        (lambda: {"eval_dataset": [{"input_ids": [3] * 30}]}, "eval_dataset: 1 of 1 prompts", "response_length"),
        (lambda: {"train_prompts": None}, "no prompts", "train_dataset"),
        (lambda: {"reward_model": None}, "no reward to learn from", "reward_funcs"),
        (lambda: {"settings": {"reward_weights": [1.0, 1.0]}}, "there are 1 rewards", "one number for each"),
    ],
)
def test_is_refused(tmp_path, given, message, remedy):
    with pytest.raises(UsageError, match=message) as refused:
        parts.trainer(tmp_path, **given())
    assert remedy in refused.value.hint
    assert not list(tmp_path.iterdir())


def test_the_shortest_context_of_all_models_counts(tmp_path):
    torch_shorter = tiny.random_reward_model()
    torch_shorter.config.n_positions = torch_shorter.config.max_position_embeddings = 8
    with pytest.raises(UsageError, match=r"in the context of reward_model \(8\)"):
        parts.trainer(tmp_path, reward_model=torch_shorter)


def test_one_model_cannot_play_two_parts(tmp_path):
    policy, reward_model = tiny.policy(), tiny.random_reward_model()
    for change, message in (
        ({"ref_model": policy}, "model and ref_model are the same object"),
        ({"value_model": reward_model}, "reward_model and value_model are the same object"),
        ({"oracle_reward": reward_model}, "reward_model and reward_model1 are the same object"),
    ):
        with pytest.raises(UsageError, match=message):
            parts.trainer(tmp_path, model=policy, reward_model=reward_model, **change)


def test_another_stop_token_ends_completions(tmp_path):
    made = tiny.make_experience(parts.trainer(tmp_path, {"stop_token_id": 5}))
    completions = [
        ids[start:].tolist()
        for ids, start in zip(
            made.sequences.ids.split(made.sequences.lengths.tolist()), made.sequences.prompt_lengths, strict=True
        )
    ]
    assert any(tiny.EOS in completion[:-1] for completion in completions)
    for completion, ended in zip(completions, made.sequences.ended.tolist(), strict=True):
        assert (completion[-1] == 5) == ended
        assert 5 not in completion[:-1]


def test_a_reward_model_from_a_folder_with_another_tokenizer_is_refused(tmp_path):
    """Also where it knows more tokens than the policy, so that every id would be read."""
    folder = tmp_path / "reward"
    tiny.random_reward_model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    parts.trainer(tmp_path, reward_model=type(tiny.random_reward_model()).from_pretrained(folder))
    other = tiny.tokenizer()
    other.add_tokens(["another"])
    padded = tiny.tokenizer()
    padded.add_special_tokens({"pad_token": "<padding>"})  # never read, unless it ends an answer too
    padded.save_pretrained(folder)
    parts.trainer(tmp_path, reward_model=type(tiny.random_reward_model()).from_pretrained(folder))
    ends = tiny.tokenizer()
    ends.add_special_tokens({"pad_token": "<padding>", "eos_token": "<padding>"})
    for different in (other, ends):
        different.save_pretrained(folder)
        with pytest.raises(UsageError, match="reward_model = .*reward has another tokenizer"):
            parts.trainer(tmp_path, reward_model=type(tiny.random_reward_model()).from_pretrained(folder))


def test_evaluation_without_prompts_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no prompts to evaluate on"):
        parts.trainer(tmp_path).evaluate()
