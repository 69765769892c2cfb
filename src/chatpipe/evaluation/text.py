"""How well a language model predicts validation text: the evaluation of pretraining."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe import console
from chatpipe.data.text_blocks import IGNORED, Masking, ValidationText, isolating
from chatpipe.generation import SamplingParams, generate
from chatpipe.models.properties import end_token_ids, evaluation_mode, longest_sequence
from chatpipe.training.ranks import over_ranks

MAX_TEXT_BYTES = 500_000
"""Enough validation text for a precise loss; a tenth of a large corpus would take longer than training."""
SAMPLE_TOKENS, SAMPLE_TEMPERATURE = 32, 0.8
PROMPT_WORDS = 4
MAX_ROWS = {"cpu": 32, "cuda": 512}
MAX_LOGITS = {"cpu": 2**22, "cuda": 2**28}
"""Numbers in the logits of one forward pass: 16 MB in float32 on a CPU, 1 GB on a GPU. Training takes more."""


@dataclass(frozen=True)
class TextLoss:
    """Mean loss of a text in nats per token, and in bits per UTF-8 byte, which does not depend on the tokenizer.

    Tokens without text (end of text) count in the former, not in the latter.
    """

    nats_per_token: float
    bits_per_byte: float


@dataclass(frozen=True)
class MaskedLoss:
    """Nats per hidden token, and the share of hidden tokens that is guessed correctly; NaN where none was hidden."""

    nats_per_token: float
    accuracy: float


def evaluate_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: ValidationText, masking: Masking | None = None
) -> dict[str, float]:
    """`eval_loss` in nats a token; of a causal model `perplexity` and `bits_per_byte`, of a masked one `accuracy`.

    `masking` is that of a masked model. All processes share the blocks of the text and return the same numbers.
    """
    if masking is not None:
        masked = masked_loss(model, text, masking)
        return {"eval_loss": masked.nats_per_token, "accuracy": masked.accuracy}
    loss = text_loss(model, text, tokens_without_text(tokenizer))
    nats = loss.nats_per_token
    perplexity = math.inf if nats > 700 else math.exp(nats)  # NaN stays NaN
    return {"eval_loss": nats, "perplexity": perplexity, "bits_per_byte": loss.bits_per_byte}


def text_loss(model: PreTrainedModel, text: ValidationText, special_ids: Sequence[int] = ()) -> TextLoss:
    """The loss of a causal model on all tokens of `text`, in blocks of its block size.

    Each token is predicted once, end-of-text tokens included, from the tokens before it in its block, as in training.
    Bits per byte = nats of tokens not in `special_ids` / ln 2 / bytes of the text.
    """
    tokens, size = text.tokens, text.block_size
    # The text ends with the token that ends a document; the first token is predicted from that.
    inputs = torch.from_numpy(np.concatenate([tokens[-1:], tokens[:-1]])).split(size)
    targets = torch.from_numpy(tokens).split(size)
    special = torch.tensor(list(special_ids), dtype=torch.long, device=model.device)

    def nats_of(numbers: Sequence[int]) -> list[tuple[float, float]]:
        """For each block the nats of all its tokens, and of those with text."""
        found: list[tuple[float, float]] = []
        with console.progress("evaluating", len(numbers)) as bar:
            for some in _equally_long(numbers, inputs, rows_at_once(model, size)):
                ids = torch.stack([inputs[number] for number in some]).to(model.device)
                predicted = torch.stack([targets[number] for number in some]).to(model.device)
                options = {"use_cache": False, **isolating(ids, text.isolate_at)}
                logits = model(input_ids=ids, **options).logits.float()
                losses = F.cross_entropy(logits.flatten(0, 1), predicted.flatten(), reduction="none").double()
                losses = losses.view_as(predicted)
                of_text = losses.masked_fill(torch.isin(predicted, special), 0.0)
                found += zip(losses.sum(1).tolist(), of_text.sum(1).tolist(), strict=True)
                bar.update(len(found))
        return found

    with evaluation_mode(model), torch.no_grad():
        nats, nats_of_text = np.array(over_ranks(range(len(inputs)), nats_of, model=model)).sum(0).tolist()
    return TextLoss(nats / len(tokens), nats_of_text / math.log(2) / text.num_bytes)


def tokens_without_text(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids of special tokens, except the unknown token: it replaces text, which would otherwise look easy.

    Where one token is both, as GPT-2's end of text, it counts as special.
    """
    unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id, tokenizer.bos_token_id}
    return tuple(sorted(set(tokenizer.all_special_ids) - unknown))


def masked_loss(model: PreTrainedModel, text: ValidationText, masking: Masking) -> MaskedLoss:
    """The loss of a masked model on tokens of `text`, hidden in the same places at each call and for each model."""
    blocks = text.blocks()

    def guessed(numbers: Sequence[int]) -> list[tuple[float, int, int]]:
        """For each block the nats of its hidden tokens, how many are guessed correctly, and how many there are."""
        found: list[tuple[float, int, int]] = []
        with console.progress("evaluating", len(numbers)) as bar:
            for some in _equally_long(numbers, blocks, rows_at_once(model, text.block_size)):
                masked = [masking(blocks[number][None], seed=number) for number in some]
                inputs, labels = (torch.cat(parts).to(model.device) for parts in zip(*masked, strict=True))
                logits = model(input_ids=inputs).logits.float()
                losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED)
                nats = losses.view_as(labels).double().sum(1)
                right, hidden = (logits.argmax(-1) == labels).sum(1), (labels != IGNORED).sum(1)
                found += zip(nats.tolist(), right.tolist(), hidden.tolist(), strict=True)
                bar.update(len(found))
        return found

    with evaluation_mode(model), torch.no_grad():
        nats, right, hidden = np.array(over_ranks(range(len(blocks)), guessed, model=model)).sum(0).tolist()
    return MaskedLoss(nats / hidden, right / hidden) if hidden else MaskedLoss(math.nan, math.nan)


def rows_at_once(model: PreTrainedModel, length: int) -> int:
    """The number of rows of `length` tokens whose logits `model` computes in one forward pass."""
    kind = "cuda" if model.device.type == "cuda" else "cpu"
    logits = length * model.config.get_text_config().vocab_size
    return max(1, min(MAX_ROWS[kind], MAX_LOGITS[kind] // logits))


def first_words(documents: Sequence[str]) -> list[str]:
    """The beginnings of the first two documents, as prompts for `continuations`."""
    return [" ".join(document[:200].split()[:PROMPT_WORDS]) for document in documents[:2]]


def continuations(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    """Each prompt with the text that a causal model writes behind it; the same weights write the same text."""
    context = longest_sequence(model)
    params = SamplingParams(max_new_tokens=min(SAMPLE_TOKENS, context // 2), temperature=SAMPLE_TEMPERATURE)
    room = context - params.max_new_tokens
    eos = tokenizer.eos_token_id
    encoded = [tokenizer(prompt, add_special_tokens=False)["input_ids"][:room] or [eos] for prompt in prompts]
    completions = generate(model, encoded, params, end_token_ids(model, tokenizer), seed=0, tokenizer=tokenizer)
    return [
        tokenizer.decode([*ids, *completion.ids], skip_special_tokens=True)
        for ids, completion in zip(encoded, completions, strict=True)
    ]


def _equally_long(numbers: Sequence[int], blocks: Sequence[torch.Tensor], most: int) -> list[list[int]]:
    """`numbers` in order, up to `most` together and only blocks of the same length; the last block may be shorter."""
    whole = [number for number in numbers if len(blocks[number]) == len(blocks[0])]
    rest = list(numbers[len(whole) :])
    groups = [whole[start : start + most] for start in range(0, len(whole), most)]
    return [*groups, rest] if rest else groups
