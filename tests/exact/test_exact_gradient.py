"""T1: the gradient of PPO's loss is that of J = sum_y pi(y) [r(y) - beta log(pi(y) / pi_ref(y))], to rounding.

Convergence to the right fixed point would not show a bug that only weighs tokens wrongly (EOS masked, a mean per
sequence), since at the optimum all advantages vanish. This does.
"""

import pytest
import tabular
import torch
from tabular import COMPLETIONS, EOS, LENGTHS, VOCABULARY
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from chatpipe.ppo.advantages import gae
from chatpipe.ppo.experience import Experience, flat_index
from chatpipe.ppo.kl import k1, shape_rewards
from chatpipe.ppo.loss import ppo_loss
from chatpipe.ppo.microbatch import length_sorted, pad
from chatpipe.ppo.model import PolicyAndCritic
from chatpipe.ppo.rollout import score

BETA, PENALTY = 0.5, 0.7
CLIP = {"cliprange": 0.2, "cliprange_value": 0.2}

# A uniform policy gives a completion of k tokens the probability 4^-k, so that a batch of 64 in which completion y
# stands 64 * 4^-k times is the exact distribution of what it samples.
ON_POLICY = torch.arange(len(COMPLETIONS)).repeat_interleave(4 ** (3 - LENGTHS))


@pytest.mark.parametrize("lam, value_kind", [(1.0, "random"), (0.95, "exact")])
@pytest.mark.parametrize("micro_batch_size", [64, 7])
def test_tabular_policy(lam, value_kind, micro_batch_size):
    ref_logits, scores = tabular.random_world()
    logits = torch.zeros_like(ref_logits, requires_grad=True)
    values = torch.randn(len(ref_logits), dtype=torch.float64) if value_kind == "random" else None
    if values is None:
        values = exact_values(logits.detach(), ref_logits, scores)

    experience = tabular.experience_of(
        ON_POLICY,
        logits.detach(),
        ref_logits,
        values,
        scores,
        BETA,
        lambda rewards, values, lengths: gae(rewards, values, lengths, gamma=1.0, lam=lam),
        PENALTY,
    )
    for rows in length_sorted(experience.sequences.lengths, micro_batch_size):
        logprobs = tabular.token_logprobs(logits, ON_POLICY[rows])
        part = experience.select(rows)
        loss, _ = ppo_loss(logprobs, part.values, part, vf_coef=0.0, **CLIP)
        (loss / len(ON_POLICY)).backward()

    assert torch.allclose(-logits.grad, objective_gradient(logits, ref_logits, scores), rtol=0, atol=1e-14)


def objective_gradient(logits, ref_logits, scores):
    log_pi = tabular.all_logprobs(logits)
    reward = scores - PENALTY * (~tabular.ENDED).double()
    objective = (log_pi.exp() * (reward - BETA * (log_pi - tabular.all_logprobs(ref_logits)))).sum()
    return torch.autograd.grad(objective, logits)[0]


def exact_values(logits, ref_logits, scores):
    """V(s): what is still to come after prefix s, score and KL penalty, in expectation under the policy."""
    pi, log_pi, log_ref = logits.softmax(-1), logits.log_softmax(-1), ref_logits.log_softmax(-1)
    number = {completion: i for i, completion in enumerate(COMPLETIONS)}

    def value(prefix):
        if prefix in number:
            return scores[number[prefix]] - PENALTY * (prefix[-1] != EOS)
        state = tabular.PREFIXES.index(prefix)
        to_go = torch.stack([value((*prefix, action)) for action in range(VOCABULARY)])
        return (pi[state] * (to_go - BETA * (log_pi[state] - log_ref[state]))).sum()

    return torch.stack([value(prefix) for prefix in tabular.PREFIXES])


@pytest.mark.parametrize("micro_batch_size", [40, 9])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gpt2_through_the_models_and_the_padding(temperature, micro_batch_size):
    torch.manual_seed(1)
    config = dict(vocab_size=VOCABULARY, n_positions=8, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4)
    config |= dict(eos_token_id=EOS, pad_token_id=EOS, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0)
    policy, ref_model = (GPT2LMHeadModel(GPT2Config(**config)).double() for _ in range(2))
    critic, reward_model = (
        GPT2ForSequenceClassification(GPT2Config(**config, num_labels=1)).double() for _ in range(2)
    )
    trained = PolicyAndCritic(policy, critic, temperature)

    # prompts of different length, one with an EOS in it; the completions of each are weighted by their probability
    for prompt in [(0,), (2, 0, 1), (1, EOS, 2)]:
        sequences = tabular.sequences_of(torch.arange(len(COMPLETIONS)), prompt)
        scores = score(sequences, trained, ref_model, reward_model, micro_batch_size, torch.device("cpu"))
        lengths = sequences.completion_lengths
        per_token = k1(scores.logprobs, scores.ref_logprobs)
        rewards = shape_rewards(scores.scores, sequences.ended, per_token, lengths, BETA, PENALTY)
        advantages = gae(rewards, scores.values, lengths, gamma=1.0, lam=1.0)
        probabilities = sequence_logprobs(policy, prompt, temperature).exp().detach()
        assert probabilities.sum().item() == pytest.approx(1)
        weights = probabilities.repeat_interleave(lengths)
        experience = Experience(
            sequences, scores.scores, scores.logprobs, scores.ref_logprobs, scores.values, rewards,
            advantages * weights, advantages + scores.values,
        )  # fmt: skip

        policy.zero_grad()
        for rows in length_sorted(sequences.lengths, micro_batch_size):
            outputs = trained(*pad(sequences.select(rows)))
            loss, _ = ppo_loss(outputs.logprobs, outputs.values, experience.select(rows), vf_coef=0.0, **CLIP)
            loss.backward()
        ours = {name: -parameter.grad for name, parameter in policy.named_parameters()}

        policy.zero_grad()
        log_pi, log_ref = (sequence_logprobs(model, prompt, temperature) for model in (policy, ref_model))
        reward = sequence_scores(reward_model, prompt) - PENALTY * (~tabular.ENDED).double()
        (log_pi.exp() * (reward - BETA * (log_pi - log_ref.detach()))).sum().backward()
        for name, parameter in policy.named_parameters():
            assert torch.allclose(ours[name], parameter.grad, rtol=0, atol=1e-12), name


def sequence_logprobs(model, prompt, temperature):
    """log pi of each completion, one unpadded forward pass each, from the model's own logits: [40]."""
    rows = []
    for completion in COMPLETIONS:
        ids = torch.tensor([[*prompt, *completion]])
        logprobs = (model(ids).logits[0] / temperature).log_softmax(-1)
        rows.append(sum(logprobs[len(prompt) + t - 1, token] for t, token in enumerate(completion)))
    return torch.stack(rows)


def sequence_scores(reward_model, prompt):
    with torch.no_grad():
        hidden = [reward_model.transformer(torch.tensor([[*prompt, *c]])).last_hidden_state[0, -1] for c in COMPLETIONS]
        return torch.stack([reward_model.score(state)[0] for state in hidden])


def test_the_flat_order_is_that_of_the_completions():
    numbers = torch.tensor([39, 0, 5])
    tokens = flat_index(LENGTHS, numbers)
    assert tabular.ACTIONS[tokens].tolist() == [t for n in numbers.tolist() for t in COMPLETIONS[n]]
