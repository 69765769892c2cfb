"""T1: the gradient of PPO's loss is that of J = E[r(x, y) - beta log(pi(y|x) / pi_ref(y|x))], to rounding.

Convergence to the right fixed point would not show a bug that only weighs tokens wrongly (EOS masked, a mean per
sequence), since at the optimum all advantages vanish. This does. The batches are the exact distribution of what the
policy samples, two thirds of the completions cut off at the length limit, so there is no sampling error.
"""

import functools
from dataclasses import replace

import pytest
import tabular
import tiny
import torch
from tabular import COMPLETIONS, ENDED, EOS, LENGTHS, PAIRS, PROMPTS, VOCABULARY
from tiny import tokenizer
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from chatpipe.data.sequences import flat_index, length_sorted
from chatpipe.generation import Completion, generate
from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.maths import ppo_loss
from chatpipe.ppo.trainer import PPOTrainer
from mutation import replaced

BETA, PENALTY = 0.5, 0.7


# ---- a tabular policy, through reward, GAE and loss ----


def check_tabular_gradient(lam, micro_batch_size):
    """lambda = 1 is unbiased whatever the value model says; a smaller one is where the value model is exact."""
    # A uniform policy gives a completion of k tokens the probability 4^-k: of 64 completions 64 * 4^-k.
    on_policy = torch.arange(len(PAIRS)).repeat_interleave(4 ** (3 - LENGTHS))
    ref_logits, scores = tabular.random_world()
    logits = torch.zeros_like(ref_logits, requires_grad=True)
    if lam == 1:
        values = torch.randn(len(ref_logits), dtype=torch.float64)
    else:
        values = exact_values(logits.detach(), ref_logits, scores)

    args = tabular.settings(kl_coef=BETA, missing_eos_penalty=PENALTY, lam=lam)
    experience = tabular.experience_of(on_policy, logits.detach(), ref_logits, values, scores, args)
    experience = replace(experience, advantages=experience.returns - experience.values)  # not whitened
    for rows in length_sorted(experience.sequences.lengths, micro_batch_size):
        part = experience.select(rows)
        logprobs = tabular.token_logprobs(logits, on_policy[rows])
        loss, _ = ppo_loss(logprobs, part.values, part, args.cliprange, args.cliprange_value, vf_coef=0.0)
        (loss / len(on_policy)).backward()

    log_pi = tabular.all_logprobs(logits)
    objective = expected_reward(log_pi, tabular.all_logprobs(ref_logits), scores)
    assert_equal(-logits.grad, torch.autograd.grad(objective, logits)[0], 1e-14)


def exact_values(logits, ref_logits, scores):
    """V(s): what is still to come after a prompt and a prefix, score and KL penalty, in expectation: [39]."""
    pi, log_pi, log_ref = logits.softmax(-1), logits.log_softmax(-1), ref_logits.log_softmax(-1)
    number = {pair: i for i, pair in enumerate(PAIRS)}

    def value(prompt, prefix):
        if (prompt, prefix) in number:
            return scores[number[prompt, prefix]] - PENALTY * (prefix[-1] != EOS)
        state = prompt * len(tabular.PREFIXES) + tabular.PREFIXES.index(prefix)
        to_go = torch.stack([value(prompt, (*prefix, action)) for action in range(VOCABULARY)])
        return (pi[state] * (to_go - BETA * (log_pi[state] - log_ref[state]))).sum()

    return torch.stack([value(p, prefix) for p in range(len(PROMPTS)) for prefix in tabular.PREFIXES])


def expected_reward(log_pi, log_ref, scores):
    """J, from the log-probs and scores of all pairs [120]."""
    reward = scores - PENALTY * (~ENDED).double()
    return (log_pi.exp() * (reward - BETA * (log_pi - log_ref.detach()))).sum() / len(PROMPTS)


def assert_equal(one, other, tolerance):
    assert (one - other).abs().max().item() < tolerance


@pytest.mark.parametrize("lam", [1.0, 0.95])
@pytest.mark.parametrize("micro_batch_size", [192, 7])
def test_tabular_policy(lam, micro_batch_size):
    check_tabular_gradient(lam, micro_batch_size)


# ---- GPT-2, through the whole of PPOTrainer ----

# Dyadic, so that a batch can hold each completion exactly as often as its probability says: of 512, 512 * pi(y).
TOKEN_PROBABILITIES, PER_PROMPT = torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 8], dtype=torch.float64), 512


def check_trainer_gradient(folder, temperature, micro_batch_size):
    """The gradient of `backward` on a rollout whose completions are the exact distribution.

    Whitening divides advantages by their standard deviation and the loss is a mean over tokens: both only scale it.
    The mean that whitening subtracts changes nothing, since E[grad log pi] = 0 after every prefix.
    """
    policy, ref_model, reward_model, value_model = models(temperature)
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(folder), use_cpu=True, report_to=[], kl_coef=BETA, missing_eos_penalty=PENALTY,
            temperature=temperature, lam=1.0, response_length=tabular.LONGEST, total_episodes=1,
            batch_size=PER_PROMPT * len(PROMPTS), per_device_train_batch_size=micro_batch_size,
        ),
        processing_class=letters(), model=policy, ref_model=ref_model, reward_model=reward_model,
        value_model=value_model,
        train_prompts=[prompt for prompt in PROMPTS for _ in range(PER_PROMPT)],
    )  # fmt: skip
    with replaced(generate, every_completion):
        experience = tiny.make_experience(trainer)
    tiny.backward(trainer, experience)

    raw_advantages = experience.returns - experience.values
    deviation = (raw_advantages.var(correction=0) + 1e-8).sqrt()
    scale = experience.num_tokens / len(experience) * deviation
    for parameter, expected in zip(policy.lm_head.parameters(), objective_gradient(temperature), strict=True):
        assert expected.abs().max() > 1e-2
        assert_equal(-scale * parameter.grad, expected, 1e-12)


def models(temperature):
    """Policy, reference, reward model and value model in float64; the policy draws tokens from TOKEN_PROBABILITIES.

    Its head ignores what it reads, but the gradient of its weight is one of the hidden states, which differ by prefix.
    """
    torch.manual_seed(1)
    shape = dict(vocab_size=VOCABULARY, n_positions=8, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4)
    shape |= dict(bos_token_id=EOS, eos_token_id=EOS, pad_token_id=EOS)
    policy, ref_model = (GPT2LMHeadModel(GPT2Config(**shape, tie_word_embeddings=False)).double() for _ in range(2))
    value_model, reward_model = (
        GPT2ForSequenceClassification(GPT2Config(**shape, num_labels=1)).double() for _ in range(2)
    )
    reward_model.config.pad_token_id = None  # else transformers, and so we, would read its score before EOS
    policy.lm_head = nn.Linear(16, VOCABULARY, dtype=torch.float64)
    with torch.no_grad():
        policy.lm_head.weight.zero_()
        policy.lm_head.bias.copy_(temperature * TOKEN_PROBABILITIES.log())
    return policy, ref_model, reward_model, value_model


def letters():
    made = tokenizer()
    made.eos_token = f"w{EOS}"
    return made


def every_completion(policy, prompts, *_, **__):
    """In place of `generate`: each prompt stands here as often as there are completions to it, and gets them all."""
    counts = [round(TOKEN_PROBABILITIES[list(c)].prod().item() * PER_PROMPT) for c in COMPLETIONS]
    drawn = [completion for completion, count in zip(COMPLETIONS, counts, strict=True) for _ in range(count)]
    left = {prompt: iter(drawn) for prompt in PROMPTS}
    completions = [next(left[prompt]) for prompt in prompts]
    return [Completion(list(c), c[-1] == EOS) for c in completions]


@functools.cache
def objective_gradient(temperature):
    """The gradient of J in the weight and the bias of the policy's head, from one unpadded pass for each pair."""
    policy, ref_model, reward_model, _ = (model.eval() for model in models(temperature))
    log_pi, log_ref = (sequence_logprobs(model, temperature) for model in (policy, ref_model))
    objective = expected_reward(log_pi, log_ref, sequence_scores(reward_model))
    return torch.autograd.grad(objective, list(policy.lm_head.parameters()))


def sequence_logprobs(model, temperature):
    """log pi(completion | prompt) of each pair, from the model's own logits: [120]."""
    rows = []
    for prompt, completion in ((PROMPTS[number], completion) for number, completion in PAIRS):
        logprobs = (model(torch.tensor([[*prompt, *completion]])).logits[0] / temperature).log_softmax(-1)
        rows.append(sum(logprobs[len(prompt) + t - 1, token] for t, token in enumerate(completion)))
    return torch.stack(rows)


@torch.no_grad()
def sequence_scores(reward_model):
    ids = [torch.tensor([[*PROMPTS[number], *completion]]) for number, completion in PAIRS]
    return torch.stack([reward_model.score(reward_model.transformer(row).last_hidden_state[0, -1])[0] for row in ids])


@pytest.mark.parametrize("micro_batch_size", [1536, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gpt2_through_the_trainer(tmp_path, temperature, micro_batch_size):
    check_trainer_gradient(tmp_path, temperature, micro_batch_size)


def test_the_flat_order_is_that_of_the_completions():
    numbers = torch.tensor([119, 0, 45])
    tokens = flat_index(LENGTHS, numbers)
    assert tabular.ACTIONS[tokens].tolist() == [t for n in numbers.tolist() for t in PAIRS[n][1]]
