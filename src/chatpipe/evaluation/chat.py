"""How well a chat model predicts and gives answers: the evaluation of fine-tuning."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe import console
from chatpipe.data.datasets import Conversation
from chatpipe.data.intervals import bootstrap_interval
from chatpipe.data.sequences import PADDING_ID, length_sorted, pad_right
from chatpipe.data.worlds import Oracle
from chatpipe.errors import UsageError
from chatpipe.evaluation.answers import Answers, answer_prompts, evaluate_answers
from chatpipe.evaluation.text import rows_at_once
from chatpipe.generation import SamplingParams
from chatpipe.models.logprobs import exclude
from chatpipe.models.properties import evaluation_mode, longest_sequence
from chatpipe.training.arguments import multiplies_bf16
from chatpipe.training.machine import is_large
from chatpipe.training.ranks import is_main, over_ranks

EncodedConversation = tuple[list[int], list[int]]
"""Token ids of a conversation, and a mask of the same length: 1 on the assistant's tokens."""

SAMPLE_TOKENS, SAMPLE_TEMPERATURE = 32, 0.8


@dataclass(frozen=True)
class QuestionGain:
    """By how many nats per token answers are likelier under their own question than under another one."""

    gain: float
    low: float
    high: float


def evaluate_chat(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EncodedConversation],
    prompts: Sequence[Conversation],
    params: SamplingParams,
    seed: int,
    oracle: Oracle | None,
) -> tuple[dict[str, Any], Answers]:
    """Metrics of the validation conversations `rows` and of the answers to `prompts`; and those answers.

    `eval_loss`: nats per token of the assistant. `question_gain`, `question_gain_low`: see `question_gain`; left out
    where no two conversations can exchange their answers. Then the metrics of `evaluate_answers`.
    """
    metrics: dict[str, Any] = {"eval_loss": chat_loss(model, rows)}
    try:
        gain = question_gain(model, rows)
        metrics |= {"question_gain": gain.gain, "question_gain_low": gain.low}
    except UsageError as problem:
        if is_main():
            console.warn(f"no question_gain: {problem.message}")
    answers = evaluate_answers(model, tokenizer, prompts, params, seed, oracle)
    return {**metrics, **answers.metrics()}, answers


def chat_loss(model: PreTrainedModel, rows: Sequence[EncodedConversation]) -> float:
    """Mean nats per assistant token (where the mask is 1) over all `rows`. Raises ValueError when there is none."""
    nats, counts = answer_nats(model, rows)
    if counts.sum() == 0:
        raise ValueError("no row has a token of the assistant")
    return float(nats.sum() / counts.sum())


def chat_samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Conversation], max_new_tokens: int
) -> list[str]:
    """`QUESTION -> ANSWER` for each prompt; the same weights give the same answers."""
    params = SamplingParams(max_new_tokens=min(SAMPLE_TOKENS, max_new_tokens), temperature=SAMPLE_TEMPERATURE)
    answers = answer_prompts(model, tokenizer, prompts, params, seed=0)
    return [f"{prompt[-1]['content']} -> {answer.text}" for prompt, answer in zip(prompts, answers, strict=True)]


def question_gain(model: PreTrainedModel, rows: Sequence[EncodedConversation]) -> QuestionGain:
    """How much likelier the last answers are under their own questions than exchanged: 0 for a model that ignores them.

    The mean over conversations of (nats per token under another question - under the own one), with the 95 % interval
    of resampled conversations. Pairs that are longer than the model can read are left out. Raises `UsageError` when
    fewer than two conversations are left.
    """
    limit = longest_sequence(model)
    swapped = swap_answers(rows)
    kept = [i for i, (ids, _) in enumerate(swapped) if len(ids) <= limit]
    if len(kept) < 2:
        raise UsageError(
            f"{len(kept)} validation conversations can exchange their answers; two are needed.",
            "Give more, or shorter, conversations in sft.data.",
        )
    own, exchanged = (
        np.divide(*answer_nats(model, [_only_last_answer(some[i]) for i in kept])) for some in (rows, swapped)
    )
    low, high = bootstrap_interval(exchanged - own, range(len(kept)))
    return QuestionGain(float((exchanged - own).mean()), low, high)


def swap_answers(rows: Sequence[EncodedConversation]) -> list[EncodedConversation]:
    """The last answer of each row behind the question (and all before it) of the row half the list away."""
    starts = [_last_answer(mask) for _, mask in rows]
    others = [(i + len(rows) // 2) % len(rows) for i in range(len(rows))]
    return [
        (rows[j][0][: starts[j]] + ids[starts[i] :], rows[j][1][: starts[j]] + mask[starts[i] :])
        for i, (j, (ids, mask)) in enumerate(zip(others, rows, strict=True))
    ]


def answer_nats(
    model: PreTrainedModel,
    rows: Sequence[EncodedConversation],
    temperature: float = 1.0,
    excluded: Iterable[range] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """For each row the nats of its masked tokens under softmax(logits / temperature), and their number: [rows] both.

    The `excluded` ids are no part of the softmax. A large model on a CPU that multiplies bfloat16 computes in it, as it
    was trained: that takes half the time.
    """

    def nats_of(some: Sequence[EncodedConversation]) -> list[tuple[float, int]]:
        found: list[tuple[float, int]] = [(0.0, 0)] * len(some)
        lengths = torch.tensor([len(ids) for ids, _ in some])
        done, longest = 0, int(max(lengths, default=1))
        with console.progress("evaluating", len(some)) as bar:
            for numbers in length_sorted(lengths, rows_at_once(model, longest)):
                chosen = numbers.tolist()
                of_rows = _nats_of_batch(model, [some[i] for i in chosen], temperature, excluded)
                for i, result in zip(chosen, of_rows, strict=True):
                    found[i] = result
                bar.update(done := done + len(chosen))
        return found

    half = model.device.type == "cpu" and is_large(model) and multiplies_bf16(model.device)
    with evaluation_mode(model), torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        results = over_ranks(rows, nats_of, model=model)
    nats, counts = np.array(results, dtype=np.float64).reshape(-1, 2).T
    return nats, counts


def _nats_of_batch(
    model: PreTrainedModel, rows: Sequence[EncodedConversation], temperature: float, excluded: Iterable[range]
) -> list[tuple[float, int]]:
    ids, attention = (cells.to(model.device) for cells in pad_right([ids for ids, _ in rows], PADDING_ID))
    masks, _ = pad_right([mask for _, mask in rows], 0)
    predicted = masks[:, 1:].bool().to(model.device)
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1][predicted]
    logits = logits.float() / temperature
    exclude(logits, excluded)
    losses = torch.zeros(predicted.shape, device=model.device)
    losses[predicted] = F.cross_entropy(logits, ids[:, 1:][predicted], reduction="none")
    return list(zip(losses.double().sum(1).tolist(), predicted.sum(1).tolist(), strict=True))


def _last_answer(mask: list[int]) -> int:
    """Where the last run of ones in `mask` begins."""
    end = len(mask) - mask[::-1].index(1)
    return end - ([0] + mask[:end])[::-1].index(0)


def _only_last_answer(row: EncodedConversation) -> EncodedConversation:
    ids, mask = row
    start = _last_answer(mask)
    return ids, [0] * start + mask[start:]
