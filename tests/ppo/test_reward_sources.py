"""Several reward models and Python functions, their weights, and an oracle that is not trained on."""

import math
import sys

import numpy as np
import parts
import pytest
import tiny
import torch
from tokenizers.pre_tokenizers import WhitespaceSplit

from chatpipe.errors import TrainingError, UsageError
from chatpipe.ppo.experience import Prompt, read_prompts
from chatpipe.reward.functions import load_function
from chatpipe.reward.rewards import CheckedFunction, Rewards, name_of


def long_ones(prompts, completions):
    return [float(len(text.split())) for text in completions]


def same_start(prompts, completions):
    return [float(text.split()[:1] == prompt.split()[-1:]) for prompt, text in zip(prompts, completions, strict=True)]


def test_scores_are_the_weighted_sum_of_all_sources(tmp_path):
    models = [tiny.random_reward_model(seed=seed) for seed in (1, 2)]
    settings = {"reward_weights": [2.0, -1.0, 0.5], "missing_eos_penalty": None, "num_mini_batches": 1}
    ppo = parts.trainer(tmp_path, settings, reward_model=models, reward_funcs=long_ones)
    made = tiny.make_experience(ppo)
    singles = [
        parts.trainer(tmp_path, settings | {"reward_weights": None}, reward_model=tiny.random_reward_model(seed=seed))
        for seed in (1, 2)
    ]
    of_models = [tiny.make_experience(single).scores for single in singles]
    texts = [
        tiny.tokenizer().decode(ids[start:], skip_special_tokens=True)
        for ids, start in zip(
            made.sequences.ids.split(made.sequences.lengths.tolist()), made.sequences.prompt_lengths, strict=True
        )
    ]
    lengths = torch.tensor(long_ones(None, texts))
    assert len(set(lengths.tolist())) > 1
    assert torch.allclose(made.scores, 2 * of_models[0] - of_models[1] + 0.5 * lengths, atol=1e-5)
    ppo.train()
    line = tiny.logged_iterations(ppo)[0]
    means = {"rewards/model_0": of_models[0], "rewards/model_1": of_models[1], "rewards/long_ones": lengths}
    for name, values in means.items():
        assert line[name] == pytest.approx(values.mean().item(), abs=1e-5)
    assert line["objective/scores"] == pytest.approx(made.scores.mean().item(), abs=1e-5)


def test_a_function_alone_is_enough_and_is_learned_from(tmp_path):
    """The value model then comes from the policy. More words are worth more, so completions get longer."""
    settings = {
        "total_episodes": 64 * 12,
        "batch_size": 32,
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-2,
        "kl_coef": 0.0,
        "missing_eos_penalty": None,
    }
    ppo = parts.trainer(tmp_path, settings, reward_model=None, reward_funcs=[long_ones])
    ppo.train()
    lines = tiny.logged_iterations(ppo)
    assert lines[-1]["objective/scores"] > lines[0]["objective/scores"] + 1
    assert not any(name.startswith("rewards/") for name in lines[0])  # the only source is objective/scores_raw


def test_functions_are_shown_the_prompts_as_they_were_given(tmp_path):
    seen = []

    def spy(prompts, completions):
        seen.extend(prompts)
        return [0.0] * len(completions)

    rows = [{"prompt": "w3 w4"}, {"input_ids": [5, 6]}, {"input_ids": [7], "prompt": "seven"}]
    tiny.make_experience(parts.trainer(tmp_path, reward_funcs=spy, train_prompts=None, train_dataset=rows))
    assert set(seen) == {"w3 w4", "w5 w6", "seven"}


def test_functions_that_ask_get_which_completions_ended(tmp_path):
    def finished(prompts, completions, ended):
        return [float(did_end) for did_end in ended]

    settings = {"missing_eos_penalty": None, "response_length": 12}
    ppo = parts.trainer(tmp_path, settings, reward_model=None, reward_funcs=finished, oracle_reward=finished)
    made = tiny.make_experience(ppo)
    ended = made.sequences.ended.float()
    assert 0 < ended.mean() < 1
    assert made.scores.equal(ended)
    assert ppo.metrics["objective/oracle"] == pytest.approx(ended.mean().item())


def test_an_object_that_is_called_is_a_function_too_and_asks_like_one():
    class Finished:
        def __call__(self, prompts, completions, ended):
            return [float(did_end) for did_end in ended]

    rewards = Rewards.of(None, Finished(), None, None)
    assert rewards.score(torch.zeros(2, 0), ["a", "b"], ["c", "d"], [True, False])[0].tolist() == [1.0, 0.0]
    assert rewards.names() == ["rewards/Finished"]


@pytest.mark.parametrize("kind", ["model", "function"])
def test_the_oracle_is_logged_and_not_trained_on(tmp_path, kind):
    oracle = tiny.random_reward_model(seed=9) if kind == "model" else long_ones
    ppo = parts.trainer(tmp_path / "ppo", oracle_reward=oracle)
    ppo.train()
    plain = parts.trainer(tmp_path / "plain")
    plain.train()
    assert not parts.changed(ppo.model, parts.weights(plain.model))
    made = tiny.make_experience(ppo)
    assert ppo.metrics["objective/oracle"] != pytest.approx(made.scores.mean().item(), abs=1e-3)
    if kind == "function":
        lengths = made.sequences.completion_lengths - made.sequences.ended.long()
        pads = (made.sequences.ids == tiny.PAD).sum().item()  # special, so not part of the text
        assert ppo.metrics["objective/oracle"] == pytest.approx((lengths.sum().item() - pads) / len(made), abs=1e-5)


@pytest.mark.parametrize(
    "returned, message",
    [
        (lambda n: [0.0] * (n - 1), "broken returned 15 numbers for 16 completions"),
        (lambda n: [0.0] * (n - 1) + [math.nan], "broken returned nan for the completion"),
        (lambda n: [math.inf] * n, "broken returned inf"),
        (lambda n: [1e39] * n, r"broken returned 1e\+39"),  # infinity in float32
        (lambda n: [-(10**400)] * n, "broken returned -1000"),
        (lambda n: [None] * n, "broken returned None"),
        (lambda n: ["1"] * n, "broken returned '1'"),
        (lambda n: None, "broken returned NoneType, not a list"),
        (lambda n: 0.5, "broken returned float, not a list"),
        (lambda n: torch.tensor(0.5), "broken returned float, not a list"),
        (lambda n: dict.fromkeys(range(n), 0.0), "broken returned dict, not a list"),
    ],
)
def test_functions_that_do_not_return_a_number_for_each_are_named_before_the_first_step(tmp_path, returned, message):
    def broken(prompts, completions):
        return returned(len(completions))

    ppo = parts.trainer(tmp_path, reward_model=None, reward_funcs=broken)
    before = parts.weights(ppo.model)
    with pytest.raises(UsageError, match=message):
        ppo.train()
    assert ppo.state.global_step == 0
    assert not parts.changed(ppo.model, before)


@pytest.mark.parametrize("kind", [torch.tensor, np.float32, lambda value: torch.tensor(value).unbind()])
def test_functions_may_return_tensors_and_arrays(kind):
    rewards = Rewards.of(None, lambda prompts, completions: kind([0.5, -1.0]), None, None)
    total, _ = rewards.score(torch.zeros(2, 0), ["a", "b"], ["c", "d"], [True, False])
    assert total.tolist() == [0.5, -1.0]


def test_a_reward_model_that_gives_nan_ends_training():
    rewards = Rewards.of(tiny.random_reward_model(), None, None, None)
    with pytest.raises(TrainingError, match="reward model gives NaN"):
        rewards.score(torch.tensor([[1.0], [math.nan]]), ["a", "b"], ["c", "d"], [True, False])


def test_weights_must_fit():
    model = tiny.random_reward_model()
    for weights in ([1.0], [1.0, 2.0, 3.0], [1.0, math.nan]):
        with pytest.raises(UsageError, match="there are 2 rewards"):
            Rewards.of(model, [long_ones], weights)
    with pytest.raises(UsageError, match="no reward to learn from"):
        Rewards.of(None, None, None)
    assert Rewards.of([model, model], [long_ones, long_ones, same_start], None).names() == [
        "rewards/model_0",
        "rewards/model_1",
        "rewards/long_ones_0",
        "rewards/long_ones_1",
        "rewards/same_start",
    ]


def test_functions_are_found_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "my_rewards_of_test.py").write_text(
        "def good(prompts, completions):\n    return [1.0] * len(completions)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_function("my_rewards_of_test:good", "ppo.reward")(["a"], ["b"]) == [1.0]
    for name in ("my_rewards_of_test:bad", "no_such_module_here:good"):
        with pytest.raises(UsageError, match=f"ppo.reward = {name} cannot be imported"):
            load_function(name, "ppo.reward")


def test_rows_of_a_dataset():
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    rows = [{"input_ids": [0, 0, 5, 6], "attention_mask": [0, 0, 1, 1]}, {"prompt": "w3 w4"}]
    assert read_prompts(rows, tokenizer) == [Prompt([5, 6], None), Prompt([3, 4], "w3 w4")]
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] == 'u' and 'w7 ' or 'w8 ' }}{{ m['content'] }} {% endfor %}w9"
    )
    chat = [
        {"role": "user", "content": "w3"},
        {"role": "assistant", "content": "w4"},
        {"role": "user", "content": "w5"},
    ]
    read = read_prompts([{"prompt": chat}, {"prompt": "w3"}], tokenizer)
    assert [prompt.ids for prompt in read] == [[7, 3, 8, 4, 7, 5, 9], [7, 3, 9]]
    assert read[0].shown(tokenizer) == chat


@pytest.mark.parametrize(
    "row, message",
    [
        ({"text": "w3"}, "train_dataset, row 1 has neither input_ids nor a prompt"),
        ("w3", "row 1 has neither"),
        ({"prompt": [{"role": "user", "content": "w3"}]}, "the tokenizer has no chat template"),
        ({"prompt": 3}, "neither a text nor messages"),
        ({"prompt": []}, "neither a text nor messages"),
    ],
)
def test_rows_that_are_no_prompts_are_named(row, message):
    with pytest.raises(UsageError, match=message):
        read_prompts([{"prompt": "w3"}, row], tiny.tokenizer())


@pytest.fixture
def own_function(work, monkeypatch):
    """Writes a module of one function into the working folder and gives what a recipe names loaded."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_rewards_of_test", raising=False)

    def load(body, before=""):
        (work / "own_rewards_of_test.py").write_text(f"{before}\ndef f(prompts, completions, ended):\n    {body}\n")
        return load_function("own_rewards_of_test:f", "ppo.reward.0.function")

    return load


@pytest.mark.parametrize(
    "body, reason",
    [
        ("raise ValueError('no,\\n\\nnever')", "ValueError: no, never"),
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(5)", "SystemExit: 5"),
    ],
)
def test_what_a_function_raises_is_reported_with_the_key_that_names_it(own_function, body, reason):
    function = CheckedFunction(own_function(body))
    with pytest.raises(UsageError) as problem:
        function(["a"], ["b"], [True])
    where = "own_rewards_of_test.py:3: ppo.reward.0.function = own_rewards_of_test:f"
    assert problem.value.message == f"{where} broke off: {reason}."
    assert "CHATPIPE_DEBUG=1" in problem.value.hint


def test_a_module_that_ends_python_cannot_be_imported(own_function):
    with pytest.raises(UsageError, match="own_rewards_of_test:f cannot be imported: SystemExit: 3"):
        own_function("return [1.0]", before="raise SystemExit(3)")


def test_what_a_function_prints_stays_out_of_the_data_for_programs(own_function, capsys):
    function = own_function("print('now'); return [float(end) for end in ended]", before="print('once')")
    assert CheckedFunction(function)(["a"], ["b"], [True]).tolist() == [1.0]
    assert capsys.readouterr() == ("", "once\nnow\n")
    assert name_of(function) == "f"


def test_an_interruption_goes_through_a_function(own_function):
    with pytest.raises(KeyboardInterrupt):
        own_function("raise KeyboardInterrupt")(prompts=["a"], completions=["b"], ended=[True])
