"""Checks of models: has every token an embedding, do two read the same tokens, does PPO begin with its reference?"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.checks.gate import Finding
from chatpipe.data.sequences import Sequences, pad
from chatpipe.generation import SamplingParams, generate
from chatpipe.models.logprobs import completion_logprobs
from chatpipe.models.pretrained import load_tokenizer

RATIO_TOLERANCE, RATIO_TOLERANCE_BF16 = 1e-4, 2e-2
"""How far the first mean ratio may be from 1; bf16 rounds log-probs by up to .024 nat (transformers #31267)."""
SHALLOW = 8
"""Layers up to which two readings agree within these; the rounding of further layers adds up (30 layers in bf16: .03
nats a token)."""

Context = Callable[[], AbstractContextManager[object]]


def embeddings_too_few(tokenizer: PreTrainedTokenizerBase, models: Mapping[str, PreTrainedModel]) -> Finding | None:
    """A model, by recipe key, has fewer embeddings than the tokenizer has tokens (trl #1674, #1979).

    On a GPU that ends in a device-side assertion, and with rare token ids only late in training.
    """
    for key, model in models.items():
        entries = embedding_count(model)
        if len(tokenizer) > entries:
            return Finding(
                f"{key}: the tokenizer has {len(tokenizer):,} entries, the model's vocabulary {entries:,}.",
                "Use the model's own tokenizer, or resize its embeddings (model.resize_token_embeddings).",
            )
    return None


def other_vocabulary(key: str, folder: str, tokenizer: PreTrainedTokenizerBase) -> Finding | None:
    """The model in `folder`, which `key` names, was trained on other token ids than `tokenizer` gives (trl #1674)."""
    other = load_tokenizer(folder)
    different = other.get_vocab().items() ^ tokenizer.get_vocab().items()
    only_padding = {one.pad_token for one in (other, tokenizer) if one.pad_token not in (one.eos_token, one.bos_token)}
    if {token for token, _ in different} <= only_padding:  # padding is never read
        return None
    return Finding(
        f"{key} = {folder} has another tokenizer than the policy.",
        "All models must share one tokenizer: train it on the policy's own model (chatpipe rm --model POLICY).",
    )


def token_ids_out_of_range(
    rows: Iterable[Sequence[int] | np.ndarray], model: PreTrainedModel, key: str
) -> Finding | None:
    """Token ids that are none of the model's: another tokenizer made them (trl #1979). All rows given, none empty."""
    entries = embedding_count(model)
    for ids in rows:
        foreign = [token for token in (int(np.min(ids)), int(np.max(ids))) if not 0 <= token < entries]
        if foreign:
            return Finding(
                f"{key}: token id {foreign[0]:,} is not one of the model's {entries:,}.",
                "Tokenise the data with the model's own tokenizer.",
            )
    return None


def embedding_count(model: PreTrainedModel) -> int:
    """How many tokens a model has an embedding for."""
    return int(model.get_input_embeddings().num_embeddings)


@torch.no_grad()
def policy_is_not_reference(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    end_tokens: Sequence[int],
    *,
    as_reference: Context = nullcontext,
    autocast: Context = nullcontext,
    bf16: bool = False,
) -> Finding | None:
    """The policy's log-probs of its completions differ from the reference's, or from its own in a second reading.

    trl #1005, #615 (negative KL); the first ratio: "The 37 Implementation Details of PPO". One completion to each of
    the few `prompts` (token ids) is read all together, and again one by one in training mode, as updates read.
    `as_reference` is entered where `reference` reads (LoRA: the policy without its adapter), `autocast` around every
    reading. Mean absolute differences a token are held to the alarms' tolerances: 1e-4 nats, with `bf16` 2e-2, and in
    proportion more for a model of over 8 layers.
    """
    completions = generate(policy, prompts, params, end_tokens, seed=0)
    sequences = Sequences.of(prompts, [done.ids for done in completions], [done.ended for done in completions])
    depth = policy.config.get_text_config().num_hidden_layers
    tolerance = (RATIO_TOLERANCE_BF16 if bf16 else RATIO_TOLERANCE) * max(1.0, depth / SHALLOW)
    was_training = policy.training
    try:
        with autocast():
            policy.eval()
            sampled = _logprobs(policy, sequences, params)
            with as_reference():
                kl = _distance(sampled, _logprobs(reference, sequences, params))
            policy.train()
            singly = [sequences.select(torch.tensor([row])) for row in range(len(sequences))]
            again = torch.cat([_logprobs(policy, one, params) for one in singly])
    finally:
        policy.train(was_training)
    if not kl <= tolerance:
        return Finding(
            f"policy and reference differ by {kl:.2g} nats a token before the first step, but KL must be 0 there.",
            "Both must be the same model in the same precision; an adapter (ppo.lora) must start at zero.",
        )
    ratio = _distance(sampled, again)
    if not ratio <= tolerance:
        return Finding(
            f"two readings of the policy differ by {ratio:.2g} nats a token, but the first ratio must be 1.",
            f"{'Set ppo.bf16=false, or use' if bf16 else 'Use'} a model without noise in its forward pass (dropout, "
            "router jitter).",
        )
    return None


def _logprobs(model: PreTrainedModel, sequences: Sequences, params: SamplingParams) -> Tensor:
    """Log-probs of the completion tokens in nats, [N] on the CPU."""
    return completion_logprobs(model, pad(sequences).to(model.device), params.temperature, params.excluded).cpu()


def _distance(some: Tensor, others: Tensor) -> float:
    """Mean absolute difference; NaN where one is."""
    return (some - others).abs().mean().item()
