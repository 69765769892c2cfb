"""The trainer of pretraining: what each optimizer takes, what weighs how much, and going on after a break."""

import math

import pytest
import torch
from safetensors import safe_open
from tiny_tokens import CONTEXT, Tokens
from tiny_trainer import Crash, CrashAt

from chatpipe.data.text_blocks import IGNORED, Masking
from chatpipe.models.properties import evaluation_mode
from chatpipe.training.resume import RESUME_POINTS, newest_resume_point

MASKING = Masking(mask_id=2, special_ids=(0, 1, 2, 3), tokens=64, probability=0.3)


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("muon", [False, True], ids=["adamw", "muon"])
@pytest.mark.parametrize("family", ["gpt2", "qwen3", "modernbert"])
def test_the_groups_hold_each_parameter_once_and_decay_is_for_matrices(make_trainer, family, muon):
    trainer = make_trainer(family=family, own={"muon": muon}, weight_decay=0.1)
    optimizer = trainer.create_optimizer()
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(trainer.model.parameters())
    for group in optimizer.param_groups:
        decays = group["weight_decay"] > 0
        assert all((parameter.ndim >= 2) == decays for parameter in group["params"])


@pytest.mark.parametrize("muon", [False, True], ids=["adamw", "muon"])
@pytest.mark.parametrize("masking", [None, MASKING], ids=["causal", "masked"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(make_trainer, tmp_path, muon, masking):
    family, own = "modernbert" if masking else "gpt2", {"muon": muon, "masking": masking}
    how = {"family": family, "own": own, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    whole = make_trainer(tmp_path / "whole", **how)
    whole.train()
    cut = make_trainer(tmp_path / "cut", **how)
    cut.add_callback(CrashAt(5))
    with pytest.raises(Crash):
        cut.train()
    torch.manual_seed(99)
    resumed = make_trainer(tmp_path / "cut", **how)
    resumed.train(resume_from_checkpoint=str(newest_resume_point(tmp_path / "cut" / RESUME_POINTS)))
    assert losses(resumed) == losses(whole)
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("masking", [None, MASKING], ids=["causal", "masked"])
def test_every_token_of_a_step_weighs_the_same_however_the_step_is_split(make_trainer, masking):
    """transformers #34191: a mean of means would weigh the tokens of short rows more."""
    family, data = "modernbert" if masking else "gpt2", Tokens(rows=4, ragged=True)
    gradients = []
    for micro, steps in ((4, 1), (1, 4)):
        trainer = make_trainer(
            family=family,
            own={"masking": masking},
            dropout=0,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=steps,
        )
        trainer.create_optimizer_and_scheduler(1)
        rows = [{"input_ids": ids, "labels": labels} for ids, labels in zip(data.ids, data.labels, strict=True)]
        whole = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        batches = [{key: value[i : i + micro] for key, value in whole.items()} for i in range(0, 4, micro)]
        counted = whole["labels"] if masking else whole["labels"][:, 1:]  # causal labels are shifted
        items = (counted != IGNORED).sum()
        if not masking:  # transformers 5.23 counts GPT-2's labels unshifted: its loss is then too low
            assert trainer.get_batch_samples(iter(batches), steps, torch.device("cpu"))[1] == items
        for batch in batches:
            trainer.training_step(trainer.model, batch, items)
        gradients.append([parameter.grad.clone() for parameter in trainer.model.parameters()])
    for split, together in zip(*gradients, strict=True):
        torch.testing.assert_close(split, together, atol=1e-6, rtol=1e-4)


def test_a_step_counts_the_tokens_that_are_hidden_in_it(make_trainer):
    trainer = make_trainer(family="modernbert", own={"masking": MASKING}, gradient_accumulation_steps=2)
    rows = [{"input_ids": Tokens(8).ids[i : i + 4], "labels": Tokens(8).ids[i : i + 4]} for i in (0, 4)]
    batches, items = trainer.get_batch_samples(iter(rows), 2, torch.device("cpu"))
    assert items == sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
    assert 0 < items < 8 * CONTEXT / 2
    hidden = [batch["labels"] != IGNORED for batch in batches]
    assert not torch.equal(*hidden)  # each micro-batch hides its own
    trainer.state.global_step = 1
    later, _ = trainer.get_batch_samples(iter(rows), 2, torch.device("cpu"))
    assert not torch.equal(later[0]["labels"] != IGNORED, hidden[0])  # and each step


@pytest.mark.parametrize("muon", [False, True], ids=["adamw", "muon"])
def test_a_tiny_model_learns_what_follows_what(make_trainer, muon):
    trainer = make_trainer(own={"muon": muon}, max_steps=60, per_device_train_batch_size=24, save_strategy="no")
    trainer.train()
    first, *_, last = losses(trainer)
    assert first == pytest.approx(math.log(64), abs=0.3)
    assert last < 1.5


def test_evaluations_are_measured_logged_and_change_nothing(make_trainer, tmp_path):
    measured = []

    def measure(model):
        measured.append(model.training)
        return {"eval_loss": 1.5, "samples": ["a b"]}

    watched = make_trainer(own={"measure": measure}, eval_strategy="steps", eval_steps=3)
    watched.train()
    plain = make_trainer(tmp_path / "plain")
    plain.train()
    assert losses(watched) == losses(plain)
    rows = [row for row in watched.state.log_history if "eval_loss" in row]
    assert [row["step"] for row in rows] == [3, 6, 8]
    assert rows[0]["samples"] == ["a b"]
    assert len(measured) == 3


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_an_evaluation_computes_in_the_precision_of_training(make_trainer, tmp_path, compiled):
    """Matrix products are in bfloat16 in both, and the logits come back in float32, in which the loss is taken."""
    dtypes = {True: set(), False: set()}
    ids = torch.arange(4, 4 + CONTEXT)[None]
    seen = []

    def measure(model):
        with evaluation_mode(model), torch.no_grad():
            logits = model(input_ids=ids).logits
            with torch.autocast("cpu", enabled=False):
                exact = type(model).forward(model, input_ids=ids).logits
        seen.append((logits, exact))
        return {"eval_loss": 1.5}

    how = {"torch_compile": True, "torch_compile_backend": "eager"} if compiled else {}
    how = {"bf16": True, "max_steps": 3, **how}
    trainer = make_trainer(own={"measure": measure}, eval_strategy="steps", eval_steps=1, **how)
    layer = trainer.model.transformer.h[0].mlp.c_fc
    layer.register_forward_hook(lambda module, _, made: dtypes[module.training].add(made.dtype))
    trainer.train()
    assert dtypes[True] == {torch.bfloat16}
    assert torch.bfloat16 in dtypes[False]
    for logits, exact in seen:
        assert logits.dtype == exact.dtype == torch.float32
        assert not torch.equal(logits, exact)
        torch.testing.assert_close(logits, exact, atol=0.02, rtol=0)
    plain = make_trainer(tmp_path / "plain", **how)
    plain.train()
    assert losses(trainer) == losses(plain)


def test_the_training_loss_is_logged_as_perplexity_too(make_trainer):
    trainer = make_trainer(logging_steps=2, max_steps=4)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 2
    for row in rows:
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))


def test_a_compiled_model_is_saved_under_its_plain_names_and_resumed(make_trainer, tmp_path):
    # The backend that compiles nothing: what is tested is how Trainer wraps the model.
    how = {"torch_compile": True, "torch_compile_backend": "eager"}
    whole = make_trainer(tmp_path / "whole", **how)
    whole.train()
    cut = make_trainer(tmp_path / "cut", **how)
    cut.add_callback(CrashAt(5))
    with pytest.raises(Crash):
        cut.train()
    point = newest_resume_point(tmp_path / "cut" / RESUME_POINTS)
    with safe_open(point / "model.safetensors", framework="pt") as file:
        assert "transformer.wte.weight" in set(file.keys())
    resumed = make_trainer(tmp_path / "cut", **how)
    resumed.train(resume_from_checkpoint=str(point))
    assert losses(resumed) == losses(whole)
