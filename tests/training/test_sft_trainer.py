"""The trainer of fine-tuning: evaluations, adapters, the best weights, and going on after a break."""

import json
import os
from functools import partial

import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from transformers import TrainerCallback, set_seed
from trl import SFTConfig

from chatpipe.data.chat_template import add_chat_template
from chatpipe.models import logprobs
from chatpipe.models.logprobs import gives_label_logits
from chatpipe.models.new_model import new_model, train_tokenizer
from chatpipe.models.unpadded import MULTIPLE
from chatpipe.recipe.architectures import Architecture
from chatpipe.training.resume import RESUME_POINTS, newest_resume_point
from chatpipe.training.sft_trainer import SftTrainer
from forked import run_ranks
from tiny_chats import CONTEXT


class Crash(Exception):
    pass


class CrashAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Crash


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_labels_alone_and_rows_without_padding_give_the_training_of_trl(make_sft_trainer, tmp_path, family):
    """trl computes the output head at every token of padded rows."""

    def history(folder, label_logits):
        trainer = make_sft_trainer(tmp_path / folder, family, gradient_accumulation_steps=2)
        trainer.label_logits = label_logits and partial(label_logits, trainer.model)
        trainer.train()
        return weights(trainer), logged(trainer)

    (ours, our_log), (trl, trl_log) = history("ours", logprobs.label_logits), history("trl", None)
    assert gives_label_logits(make_sft_trainer(tmp_path / "asked", family).model)
    assert len(our_log) == len(trl_log) == 2
    for one, other in zip(our_log, trl_log, strict=True):
        assert one.keys() == other.keys()
        for name in ("loss", "entropy", "mean_token_accuracy", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-3), name
    assert all(torch.allclose(ours[name], trl[name], rtol=0, atol=1e-3) for name in ours)


def test_the_output_head_sees_the_tokens_that_predict_labels_alone(make_sft_trainer, tmp_path):
    trainer, seen = make_sft_trainer(tmp_path, max_steps=1), []
    trainer.label_logits = partial(logprobs.label_logits, trainer.model)
    trainer.model.lm_head.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[:2]))
    batches = []
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: (batches.append(collate(rows)), batches[-1])[1]
    trainer.train()
    labels = int((batches[0]["labels"] >= 0).sum())
    assert 0 < labels < batches[0]["labels"].numel()
    assert seen == [(1, -(-labels // MULTIPLE) * MULTIPLE)]


class Told:
    """A measure that returns given losses, one after the other, and remembers the weights it saw."""

    def __init__(self, losses):
        self.losses, self.seen = list(losses), []

    def __call__(self, model):
        self.seen.append({name: weight.detach().clone() for name, weight in model.named_parameters()})
        return {"eval_loss": self.losses.pop(0)}


def weights(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def logged(trainer):
    """All but how long it took, and but the closing summary of the process."""
    timed = ("train_runtime", "train_tokens_per_second")
    history = [row for row in trainer.state.log_history if "train_loss" not in row]
    return [{key: value for key, value in row.items() if key not in timed} for row in history]


EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}


@pytest.mark.parametrize("packed", [False, True], ids=["apart", "packed"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(make_sft_trainer, tmp_path, packed, lora):
    def make(folder, losses):
        own = {"measure": Told(losses), "keep_best": True}
        return make_sft_trainer(tmp_path / folder, packed=packed, lora=lora, own=own, **EVALUATED)

    whole = make("whole", [5, 3, 4, 4])
    whole.train()
    cut = make("cut", [5, 3, 4])
    cut.add_callback(CrashAt(6))  # an evaluation after the last resume point
    with pytest.raises(Crash):
        cut.train()
    torch.manual_seed(99)
    point = newest_resume_point(tmp_path / "cut" / RESUME_POINTS)
    assert point.name == "step-4"
    with safe_open(point / f"{'adapter' if lora else 'model'}.safetensors", "pt") as kept:
        assert all(("lora_" in name) == lora for name in kept.keys())  # noqa: SIM118
    resumed = make("cut", [4, 4])
    resumed.train(resume_from_checkpoint=str(point))
    assert same(weights(resumed), weights(whole))
    assert logged(resumed) == logged(whole)
    for trainer in (resumed, whole):
        assert (trainer.best_step, trainer.best_loss) == (4, 3)
        trainer.load_best()
    assert same(weights(resumed), weights(whole))
    assert same(weights(whole), whole.measure.seen[1])


def test_the_best_weights_outlive_a_better_evaluation_that_a_kill_undoes(make_sft_trainer, tmp_path):
    """The point at step 4 names the weights of step 2; step 6 was better, and the run was killed after it."""
    cut = make_sft_trainer(own={"measure": Told([3, 4, 2]), "keep_best": True}, **EVALUATED)
    cut.add_callback(CrashAt(6))
    with pytest.raises(Crash):
        cut.train()
    folder = tmp_path / RESUME_POINTS
    assert {path.name for path in folder.glob("best-*")} == {"best-2", "best-6"}
    resumed = make_sft_trainer(own={"measure": Told([5, 5]), "keep_best": True}, **EVALUATED)
    resumed.train(resume_from_checkpoint=str(folder / "step-4"))
    resumed.load_best()
    assert resumed.best_step == 2
    assert same(weights(resumed), cut.measure.seen[0])
    assert {path.name for path in folder.glob("best-*")} == {"best-2"}


def test_the_last_weights_are_evaluated_too(make_sft_trainer):
    own = {"measure": Told([5, 4, 1]), "keep_best": True}
    trainer = make_sft_trainer(own=own, max_steps=7, eval_strategy="steps", eval_steps=3)
    trainer.train()
    last = weights(trainer)
    trainer.load_best()
    assert trainer.best_step == 7
    assert same(weights(trainer), last)


def test_an_evaluation_leaves_the_running_means_of_training_alone(make_sft_trainer, tmp_path):
    plain, evaluated = (
        make_sft_trainer(tmp_path / "a"),
        make_sft_trainer(tmp_path / "b", own={"measure": Told([1.0] * 4)}, **EVALUATED),
    )
    for trainer in (plain, evaluated):
        trainer.train()
    training = [row for row in logged(evaluated) if "eval_loss" not in row]
    assert training == logged(plain)
    assert [row["eval_loss"] for row in logged(evaluated) if "eval_loss" in row] == [1.0] * 4
    assert "mean_token_accuracy" in training[0]
    assert "num_tokens" not in training[0]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_with_an_adapter_the_base_stays_and_what_comes_out_is_a_plain_model(make_sft_trainer, tmp_path, family):
    from transformers import AutoModelForCausalLM

    trainer = make_sft_trainer(family=family, lora=True)
    before = weights(trainer)
    trainer.train()
    learned = {name for name, weight in weights(trainer).items() if not weight.equal(before[name])}
    assert learned
    assert all("lora_" in name for name in learned)
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    with torch.no_grad():
        expected = trainer.model.eval()(ids).logits
        trainer.trained_model().save_pretrained(tmp_path / "saved")
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
        torch.testing.assert_close(saved(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert not any("lora" in name for name, _ in saved.named_parameters())
    assert "lora" not in json.dumps(saved.config.to_dict())


def test_an_adapter_learns_with_gradient_checkpointing_too(make_sft_trainer, tmp_path):
    plain, thrifty = (
        make_sft_trainer(tmp_path / name, "llama", lora=True, max_steps=3, gradient_checkpointing=on)
        for name, on in (("plain", False), ("thrifty", True))
    )
    for trainer in (plain, thrifty):
        trainer.train()
    learned = weights(thrifty)
    for name, weight in weights(plain).items():
        torch.testing.assert_close(weight, learned[name], atol=1e-5, rtol=0)
    assert any(weight.abs().sum() > 0 for name, weight in learned.items() if "lora_B" in name)


def train_on_rows(folder, count, per_device):
    """Two steps of plain gradient descent in double precision on `count` sequences, the second one an epoch's last."""
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(3, 40, (3 + number % 5,), generator=generator).tolist() for number in range(count)]
    data = {"input_ids": rows, "labels": [[-100, *row[1:]] for row in rows], "seq_lengths": [[len(r)] for r in rows]}
    tokenizer = train_tokenizer(["Mara is a baker."], 300, CONTEXT)
    add_chat_template(tokenizer)
    set_seed(0)
    shape = Architecture(family="llama", n_layer=1, n_head=2, n_embd=16, n_positions=CONTEXT)
    model = new_model(shape, tokenizer).double()
    settings = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=per_device,
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        ddp_find_unused_parameters=False,
    )
    trainer = SftTrainer(model, settings, Dataset.from_dict(data), tokenizer, packed=True)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return losses, {name: weight.detach() for name, weight in model.named_parameters()}


def train_as_one_of_two(folder, counts):
    trained = {count: train_on_rows(folder, count, 4) for count in counts}
    torch.save(trained, folder / f"rank-{os.environ['RANK']}.pt")


def test_two_processes_read_an_epoch_as_one_does(tmp_path):
    """Also where its last rows do not fill both of them: accelerate then repeats some, which count once."""
    counts = (16, 14, 11)
    run_ranks(train_as_one_of_two, tmp_path, counts)
    for count in counts:
        losses, weights = train_on_rows(tmp_path, count, 8)
        assert len(losses) == 2
        for rank in range(2):
            theirs = torch.load(tmp_path / f"rank-{rank}.pt")[count]
            assert theirs[0] == pytest.approx(losses, rel=1e-6)
            for name, weight in weights.items():
                torch.testing.assert_close(theirs[1][name], weight, rtol=0, atol=1e-6)  # trl: float32
