"""The K-wise loss and a step of RewardTrainer against their definitions; each known bug is caught by one of them.

To see every check on every mutant: `python tests/exact/test_kwise_kill_matrix.py`.
"""

import contextlib
import copy
import io
import math
import tempfile

import pytest
import torch
from kwise_mutants import MUTANTS
from transformers import GPT2Config, GPT2ForSequenceClassification, TrainingArguments

from chatpipe.reward import reward_trainer
from chatpipe.reward.training_data import EncodedRanking, Judgement
from mutation import replaced

RATE = 0.5
SIZES = [2, 9, 4, 3, 4]
RANKS = [2, 1, *range(1, 10), 3, 1, 1, 2, 1, 1, 1, 4, 2, 2, 1]  # the fourth prompt is all ties
MARGINS = [0.0, 0.5, 0.0, 1.0, 2.0]


def losses_by_definition(scores, margins):
    """InstructGPT's equation 1 with loops, and Llama 2's margin: per prompt the mean over pairs that are not tied."""
    losses, start = [], 0
    for size, margin in zip(SIZES, margins, strict=True):
        own = range(start, start + size)
        pairs = [
            math.log1p(math.exp(scores[worse] - scores[better] + margin))
            for better in own
            for worse in own
            if RANKS[better] < RANKS[worse]
        ]
        losses.append(sum(pairs) / len(pairs) if pairs else 0.0)
        start += size
    return losses


def check_loss(folder, margins=None):
    """All pairs of prompts with different K, ties, and one that is all ties."""
    scores = 2 * torch.randn(sum(SIZES), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given = None if margins is None else torch.tensor(margins, dtype=torch.float64)
    table = (torch.nn.utils.rnn.pad_sequence(flat.split(SIZES), True) for flat in (scores, torch.tensor(RANKS)))
    found = reward_trainer.ranking_loss(*table, given)
    expected = losses_by_definition(scores.tolist(), margins or [0.0] * len(SIZES))
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def check_margins(folder):
    check_loss(folder, MARGINS)


def rankings():
    """Answers of different length; two annotators of one prompt, weights, margins, and a ranking that is all ties."""
    generator = torch.Generator().manual_seed(1)

    def answers(count):
        lengths = torch.randint(2, 15, (count,), generator=generator).tolist()
        return [[*torch.randint(2, 40, (length,), generator=generator).tolist(), 1] for length in lengths]

    return [
        EncodedRanking(answers(2), [Judgement([1, 2], 0.5, 1.0)]),
        EncodedRanking(answers(5), [Judgement([3, 1, 2, 2, 4], 0.25), Judgement([1, 2, 3, 4, 5], 0.75)]),
        EncodedRanking(answers(3), [Judgement([1, 1, 1], 2.0)]),
        EncodedRanking(answers(4), [Judgement([2, 1, 1, 3], 1.0, 0.5)]),
    ]


def reward_model():
    torch.manual_seed(2)
    config = GPT2Config(vocab_size=40, n_positions=16, n_embd=8, n_layer=1, n_head=2, num_labels=1, pad_token_id=0)
    config.initializer_range = config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    model = GPT2ForSequenceClassification(config).double()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def mean_loss(model):
    """The loss of a step by its definition: each answer read alone, each pair by its logarithm."""
    total, weights = torch.zeros((), dtype=torch.float64), 0.0
    for ranking in rankings():
        states = [model.transformer(torch.tensor([ids])).last_hidden_state[0, -1] for ids in ranking.sequences]
        scores = [model.score(state)[0] for state in states]
        for judgement in ranking.judgements:
            ranks = judgement.ranks
            pairs = [
                torch.log1p(torch.exp(scores[worse] - scores[better] + judgement.margin))
                for better in range(len(ranks))
                for worse in range(len(ranks))
                if ranks[better] < ranks[worse]
            ]
            if pairs:
                total = total + judgement.weight * sum(pairs) / len(pairs)
                weights += judgement.weight
    return total / weights


def check_step(folder):
    """One step of plain gradient descent over two micro-batches: every weight moves by RATE times its gradient."""
    model = reward_model()
    before = copy.deepcopy(model)
    gradients = torch.autograd.grad(mean_loss(before), list(before.parameters()), allow_unused=True)
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        optim="sgd",
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        remove_unused_columns=False,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    reward_trainer.RewardTrainer(model, args, rankings()).train()
    moved = 0
    for old, new, gradient in zip(before.parameters(), model.parameters(), gradients, strict=True):
        expected = torch.zeros_like(old) if gradient is None else RATE * gradient
        assert torch.allclose(old - new, expected, rtol=0, atol=1e-10)
        moved += bool(expected.any())
    assert moved > 10


CHECKS = {"loss": check_loss, "margins": check_margins, "step": check_step}


def caught(check, folder):
    """Whether an assertion fails; a crash shows nothing."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Trainer's log lines
            CHECKS[check](folder)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant, tmp_path):
    with replaced(mutant.function, mutant.make(mutant.function)):
        assert caught(mutant.killed_by, tmp_path)


@pytest.mark.parametrize("check", CHECKS)
def test_true_code_passes(check, tmp_path):
    assert not caught(check, tmp_path)


def main():
    """Prints a Markdown table: a row for each mutant, a column for each check, x where it catches it."""
    print("| | " + " | ".join(CHECKS) + " |\n|---" + "|:-:" * len(CHECKS) + "|")
    for mutant in MUTANTS:
        with replaced(mutant.function, mutant.make(mutant.function)), tempfile.TemporaryDirectory() as folder:
            cells = ["x" if caught(check, folder) else "" for check in CHECKS]
        print(f"| {mutant.name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
