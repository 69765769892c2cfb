"""A world small enough to enumerate: three letters and EOS, completions of at most three tokens, 40 to each prompt.

13 of the 40 end with EOS, 27 are cut off. A tabular policy has one row of logits for each prefix (state): 13 for each
of three prompts, which have different lengths; one has an EOS in it.
"""

import functools
import itertools

import torch
from torch import Tensor

from chatpipe.data.sequences import Sequences, flat_index
from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.experience import Experience, Rollout
from chatpipe.ppo.maths import on_one_rank
from chatpipe.ppo.rollout import advantages

VOCABULARY, EOS, LONGEST = 4, 3, 3
PROMPTS = [(0,), (2, 0, 1), (1, EOS, 2)]
PREFIXES = [prefix for length in range(LONGEST) for prefix in itertools.product(range(3), repeat=length)]
COMPLETIONS = [(*prefix, EOS) for prefix in PREFIXES] + list(itertools.product(range(3), repeat=LONGEST))

# All pairs of a prompt and a completion, 120, prompt by prompt. STATES and ACTIONS lie flat, token after token.
PAIRS = list(itertools.product(range(len(PROMPTS)), COMPLETIONS))
PROMPT_OF = torch.tensor([prompt for prompt, _ in PAIRS])
LENGTHS = torch.tensor([len(completion) for _, completion in PAIRS])
ENDED = torch.tensor([completion[-1] == EOS for _, completion in PAIRS])
STATES = torch.tensor([p * len(PREFIXES) + PREFIXES.index(c[:t]) for p, c in PAIRS for t in range(len(c))])
ACTIONS = torch.tensor([action for _, completion in PAIRS for action in completion])


def random_world(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of a reference policy [39, 4] and a score for each pair [120], float64, with standard deviation 1/2.

    With larger ones the best completion is, at beta = .1, often one so rare that sampling never meets it.
    """
    generator = torch.Generator().manual_seed(seed)
    ref_logits = torch.randn(len(PROMPTS) * len(PREFIXES), VOCABULARY, generator=generator, dtype=torch.float64)
    return ref_logits / 2, torch.randn(len(PAIRS), generator=generator, dtype=torch.float64) / 2


def token_logprobs(logits: Tensor, pairs: Tensor) -> Tensor:
    """log pi of each completion token of the pairs with these numbers [n]: [N]."""
    tokens = flat_index(LENGTHS, pairs)
    return logits.log_softmax(-1)[STATES[tokens], ACTIONS[tokens]]


def all_logprobs(logits: Tensor) -> Tensor:
    """log pi(completion | prompt) of each pair: [120]."""
    flat = logits.log_softmax(-1)[STATES, ACTIONS]
    return torch.stack([row.sum() for row in flat.split(LENGTHS.tolist())])


def probabilities(logits: Tensor) -> Tensor:
    """pi(completion | prompt), one row for each prompt: [3, 40]."""
    return all_logprobs(logits).exp().view(len(PROMPTS), -1)


@functools.cache
def settings(**values: float) -> PPOConfig:
    """PPO's settings, for the functions that take them."""
    return PPOConfig(output_dir="unused", use_cpu=True, report_to=[], **values)


def experience_of(
    pairs: Tensor, logits: Tensor, ref_logits: Tensor, state_values: Tensor, scores: Tensor, args: PPOConfig
) -> Experience:
    """What PPO's own code makes of these pairs."""
    prompts, completions = zip(*(PAIRS[number] for number in pairs.tolist()), strict=True)
    rollout = Rollout(
        sequences=Sequences.of([PROMPTS[prompt] for prompt in prompts], completions, ENDED[pairs].tolist()),
        scores=scores[pairs],
        logprobs=token_logprobs(logits, pairs),
        ref_logprobs=token_logprobs(ref_logits, pairs),
        values=state_values[STATES[flat_index(LENGTHS, pairs)]],
    )
    return advantages(rollout, args.kl_coef, args, on_one_rank)
