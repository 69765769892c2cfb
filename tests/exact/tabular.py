"""A world small enough to enumerate: three letters and EOS, completions of at most three tokens, 40 in all.

13 of them end with EOS, 27 are cut off. A tabular policy has one row of logits for each of the 13 prefixes (states).
"""

import itertools

import torch
from torch import Tensor

from chatpipe.ppo.experience import Experience, Sequences, flat_index
from chatpipe.ppo.kl import k1, shape_rewards

VOCABULARY, EOS, LONGEST = 4, 3, 3
PREFIXES = [prefix for length in range(LONGEST) for prefix in itertools.product(range(3), repeat=length)]
COMPLETIONS = [(*prefix, EOS) for prefix in PREFIXES] + list(itertools.product(range(3), repeat=LONGEST))

LENGTHS = torch.tensor([len(completion) for completion in COMPLETIONS])
ENDED = torch.tensor([completion[-1] == EOS for completion in COMPLETIONS])
STATES = torch.tensor([PREFIXES.index(c[:t]) for c in COMPLETIONS for t in range(len(c))])
ACTIONS = torch.tensor([action for completion in COMPLETIONS for action in completion])


def random_world(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of a reference policy [13, 4] and a score for each completion [40], float64."""
    generator = torch.Generator().manual_seed(seed)
    ref_logits = torch.randn(len(PREFIXES), VOCABULARY, generator=generator, dtype=torch.float64)
    return ref_logits, torch.randn(len(COMPLETIONS), generator=generator, dtype=torch.float64)


def sequences_of(completions: Tensor, prompt: tuple[int, ...] = (0,)) -> Sequences:
    """The completions with these numbers [n], each after the same prompt."""
    chosen = [COMPLETIONS[number] for number in completions.tolist()]
    return Sequences.of([prompt] * len(chosen), chosen, ENDED[completions].tolist())


def token_logprobs(logits: Tensor, completions: Tensor) -> Tensor:
    """log pi of each token of the completions with these numbers [n]: [N]."""
    tokens = flat_index(LENGTHS, completions)
    return logits.log_softmax(-1)[STATES[tokens], ACTIONS[tokens]]


def all_logprobs(logits: Tensor) -> Tensor:
    """log pi of each completion: [40]."""
    flat = logits.log_softmax(-1)[STATES, ACTIONS]
    return torch.stack([row.sum() for row in flat.split(LENGTHS.tolist())])


def experience_of(
    completions: Tensor,
    logits: Tensor,
    ref_logits: Tensor,
    state_values: Tensor,
    scores: Tensor,
    kl_coef: float,
    advantages_of,
    missing_eos_penalty: float | None = None,
) -> Experience:
    """What PPO's own reward code makes of these completions; `advantages_of(rewards, values, lengths)` comes after."""
    lengths, tokens = LENGTHS[completions], flat_index(LENGTHS, completions)
    logprobs, ref_logprobs = token_logprobs(logits, completions), token_logprobs(ref_logits, completions)
    values = state_values[STATES[tokens]]
    per_token = k1(logprobs, ref_logprobs)
    rewards = shape_rewards(scores[completions], ENDED[completions], per_token, lengths, kl_coef, missing_eos_penalty)
    advantages = advantages_of(rewards, values, lengths)
    return Experience(
        sequences=sequences_of(completions),
        scores=scores[completions],
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        rewards=rewards,
        advantages=advantages,
        returns=advantages + values,
    )
