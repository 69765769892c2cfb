"""Resume points: a run that was cut off and resumed is the run that was never cut off, to the bit."""

import json
import os
import random
import re
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from chatpipe.errors import TrainingError, UsageError
from chatpipe.training.resume import RESUME_POINTS, ResumePoints, newest_resume_point
from forked import processes, run_ranks

ROWS, CONTEXT, VOCABULARY = 24, 16, 64  # batches of 2, two of them a step: 6 steps an epoch
MEASURED = ("step", "loss", "grad_norm", "learning_rate", "eval_loss", "epoch")


class Tokens(Dataset):
    def __init__(self, rows=ROWS, seed=0):
        self.ids = torch.randint(0, VOCABULARY, (rows, CONTEXT), generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """More threads than idle cores make a model of this size a hundred times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Crash(Exception):
    pass


class CrashAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Crash


def tiny_model(dropout=0.1):
    set_seed(1)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=CONTEXT,
        attn_pdrop=dropout,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def arguments(folder, **changes):
    settings = {
        "output_dir": str(folder),
        "max_steps": 15,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "logging_steps": 2,  # not where the resume points lie: a logged loss spans the cut
        "save_steps": 3,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": False,
        "seed": 7,
    }
    return TrainingArguments(**settings | changes)


def tiny_trainer(folder, cls=ResumePoints, model=None, callbacks=(), optimizer=None, **changes):
    model = model or tiny_model()
    trainer = cls(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=Tokens(),
        eval_dataset=Tokens(4, seed=1),
        callbacks=list(callbacks),
        optimizers=(optimizer(model) if optimizer else None, None),
    )
    trainer.callback_handler.callbacks = [
        callback for callback in trainer.callback_handler.callbacks if type(callback).__name__ != "PrinterCallback"
    ]
    return trainer


def trace(trainer):
    """What was measured, without what depends on the clock."""
    rows = [{key: row[key] for key in MEASURED if key in row} for row in trainer.state.log_history]
    return [row for row in rows if "loss" in row or "eval_loss" in row]


def crash_and_resume(folder, at, **how):
    """Trains, crashes before step `at + 1`, and trains to the end in a new trainer; the weights differ at first."""
    with pytest.raises(Crash):
        tiny_trainer(folder, callbacks=[CrashAt(at)], **how).train()
    point = newest_resume_point(folder / RESUME_POINTS)
    torch.manual_seed(123)
    trainer = tiny_trainer(folder, **how)
    trainer.train(resume_from_checkpoint=str(point))
    return point, trainer


def assert_same_weights(one, other):
    for (name, left), right in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(left, right), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    trainer = tiny_trainer(tmp_path_factory.mktemp("uninterrupted"))
    trainer.train()
    return trainer


# ---- exactness ----


@pytest.mark.parametrize("crash, resumed_from", [(7, 6), (10, 9)], ids=["at the end of an epoch", "inside an epoch"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, uninterrupted, crash, resumed_from):
    point, resumed = crash_and_resume(tmp_path, crash)
    assert point.name == f"step-{resumed_from}"
    assert trace(resumed) == trace(uninterrupted)
    assert_same_weights(resumed.model, uninterrupted.model)


def test_saving_changes_nothing(tmp_path, uninterrupted):
    never_saved = tiny_trainer(tmp_path, save_strategy="no")
    never_saved.train()
    assert not (tmp_path / RESUME_POINTS).exists()
    assert trace(never_saved) == trace(uninterrupted)
    assert_same_weights(never_saved.model, uninterrupted.model)


def test_saving_before_the_first_update_leaves_the_optimizer_empty(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.create_optimizer_and_scheduler(15)
    trainer._tr_loss, trainer._globalstep_last_logged = torch.tensor(0.0), 0
    trainer._save_checkpoint(trainer.model)
    assert not trainer.optimizer.state
    assert newest_resume_point(tmp_path / RESUME_POINTS).name == "step-0"


class WithUnused(GPT2LMHeadModel):
    """GPT-2, its embedding tied to its head, its positions frozen, and a head that no loss reaches yet."""

    def __init__(self, config):
        super().__init__(config)
        self.unused = torch.nn.Linear(2, 2)
        self.transformer.wpe.weight.requires_grad = False


def grouped_adamw(model):
    groups = [
        {"params": [model.transformer.wte.weight], "lr": 3e-2, "weight_decay": 0.1},
        {"params": [p for n, p in model.named_parameters() if ".wte." not in n and p.requires_grad], "lr": 1e-3},
    ]
    return torch.optim.AdamW(groups, betas=(0.8, 0.9))


def test_optimizer_with_tied_frozen_unused_parameters_and_groups(tmp_path):
    config = tiny_model().config

    def new(folder):
        set_seed(1)
        return {"folder": folder, "model": WithUnused(config), "optimizer": grouped_adamw}

    whole = tiny_trainer(**new(tmp_path / "whole"))
    whole.train()
    with pytest.raises(Crash):
        tiny_trainer(**new(tmp_path / "cut"), callbacks=[CrashAt(10)]).train()
    resumed = tiny_trainer(**new(tmp_path / "cut"))
    resumed.train(resume_from_checkpoint=str(newest_resume_point(tmp_path / "cut" / RESUME_POINTS)))

    assert trace(resumed) == trace(whole)
    assert_same_weights(resumed.model, whole.model)
    left, right = resumed.optimizer.state_dict(), whole.optimizer.state_dict()
    assert left["param_groups"] == right["param_groups"]
    assert [group["initial_lr"] for group in left["param_groups"]] == [3e-2, 1e-3]
    assert left["state"].keys() == right["state"].keys()
    for index, entries in right["state"].items():
        assert all(torch.equal(left["state"][index][key], value) for key, value in entries.items())


def test_tied_weights_are_stored_once(uninterrupted):
    point = newest_resume_point(Path(uninterrupted.args.output_dir) / RESUME_POINTS)
    with safe_open(point / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names


def test_a_run_resumed_at_its_last_step_takes_no_other(tmp_path):
    finished = tiny_trainer(tmp_path, max_steps=10)  # in the middle of the second epoch
    finished.train()
    resumed = tiny_trainer(tmp_path, max_steps=10)
    resumed.train(resume_from_checkpoint=str(newest_resume_point(tmp_path / RESUME_POINTS)))
    assert resumed.state.global_step == 10
    assert_same_weights(resumed.model, finished.model)


class Stream:
    """Batches without an end, a length or a dataset; what comes next follows from `position` and the generator."""

    batch_size = 2

    def __init__(self):
        self.position = 0

    def __iter__(self):
        while True:
            self.position += 1
            ids = torch.randint(0, VOCABULARY, (2, CONTEXT)) * (self.position % 3)
            yield {"input_ids": ids % VOCABULARY, "labels": ids % VOCABULARY}


class OnStream(ResumePoints):
    """A trainer as PPO's: its loader is a generator, with a cursor of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.stream = Stream()

    def get_train_dataloader(self):
        return self.stream

    def extra_state(self):
        return {"position": self.stream.position}

    def load_extra_state(self, extra):
        self.stream.position = extra["position"]


def test_a_loader_without_a_dataset_continues_from_its_own_cursor(tmp_path):
    how = {"cls": OnStream, "ignore_data_skip": True, "gradient_accumulation_steps": 1, "max_steps": 9}
    whole = tiny_trainer(tmp_path / "whole", **how)
    whole.train()
    point, resumed = crash_and_resume(tmp_path / "cut", 7, **how)
    assert point.name == "step-6"
    # Trainer counts the epoch from the first batch of the call where it may not skip; losses do not depend on it
    assert [row | {"epoch": 0} for row in trace(resumed)] == [row | {"epoch": 0} for row in trace(whole)]
    assert_same_weights(resumed.model, whole.model)
    assert resumed.stream.position == whole.stream.position


# ---- complete or invisible ----


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage, file, reason",
    [
        (truncate, "model.safetensors", "model.safetensors has .* bytes instead of"),
        (flip_a_byte, "optimizer.safetensors", "optimizer.safetensors is damaged"),
        (flip_a_byte, "trainer_state.json", "trainer_state.json is damaged"),
        (Path.unlink, "rank-0.json", "rank-0.json is missing"),
        (Path.unlink, "manifest.json", "manifest.json is missing"),
        (truncate, "manifest.json", "cannot be read"),
    ],
)
def test_a_damaged_newest_point_is_skipped_with_a_reason(tmp_path, uninterrupted, damage, file, reason):
    shutil.copytree(Path(uninterrupted.args.output_dir) / RESUME_POINTS, tmp_path / RESUME_POINTS)
    assert newest_resume_point(tmp_path / RESUME_POINTS).name == "step-15"
    damage(tmp_path / RESUME_POINTS / "step-15" / file)
    reports = []
    assert newest_resume_point(tmp_path / RESUME_POINTS, reports.append).name == "step-12"
    assert len(reports) == 1
    assert "step-15" in reports[0]
    assert re.search(reason, reports[0])


def test_what_is_not_sealed_does_not_exist(tmp_path, uninterrupted):
    points = tmp_path / RESUME_POINTS
    assert newest_resume_point(points) is None
    newest = Path(uninterrupted.args.output_dir) / RESUME_POINTS / "step-15"
    shutil.copytree(newest, points / "step-15.partial")
    assert newest_resume_point(points) is None
    shutil.copytree(newest, points / "step-9")
    shutil.copytree(newest, points / "step-15")
    assert newest_resume_point(points).name == "step-15"


def test_two_points_are_kept_and_nothing_else(tmp_path):
    points = tmp_path / RESUME_POINTS
    left_over = points / "step-2.partial"
    given_up = points / "step-99"
    for folder in (left_over, given_up):
        folder.mkdir(parents=True)
    with pytest.raises(Crash):
        tiny_trainer(tmp_path, callbacks=[CrashAt(4)]).train()
    assert [path.name for path in points.iterdir()] == ["step-3"]
    tiny_trainer(tmp_path).train()
    assert sorted(path.name for path in points.iterdir()) == ["step-12", "step-15"]


def test_there_is_no_pickle(uninterrupted):
    point = newest_resume_point(Path(uninterrupted.args.output_dir) / RESUME_POINTS)
    files = {path.name for path in point.iterdir()}
    assert files == {
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "rank-0.json",
        "trainer_state.json",
        "training.json",
    }
    for name in files:
        if name.endswith(".json"):
            json.loads((point / name).read_text())
        else:
            with safe_open(point / name, framework="pt") as file:
                assert list(file.keys())


def test_another_model_or_a_foreign_checkpoint_is_refused(tmp_path, uninterrupted):
    point = newest_resume_point(Path(uninterrupted.args.output_dir) / RESUME_POINTS)
    other = GPT2LMHeadModel(GPT2Config(**tiny_model().config.to_dict() | {"n_layer": 2}))
    with pytest.raises(UsageError, match=r"another model: 12 tensors differ, the first is transformer\.h\.1"):
        tiny_trainer(tmp_path, model=other).train(resume_from_checkpoint=str(point))
    foreign = tiny_trainer(tmp_path / "foreign", cls=Trainer, max_steps=3)
    foreign.train()
    with pytest.raises(UsageError, match="not a resume point"):
        tiny_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "foreign" / "checkpoint-3"))


# ---- whole processes ----


class WriteTrace(TrainerCallback):
    """Appends what is logged to a file, and sends each step that is done to the parent."""

    def __init__(self, path, steps_done=None):
        self.path, self.steps_done = path, steps_done

    def on_log(self, args, state, control, logs, **kwargs):
        with self.path.open("a") as file:
            file.write(
                json.dumps({key: logs[key] for key in MEASURED if key in logs} | {"step": state.global_step}) + "\n"
            )

    def on_step_end(self, args, state, control, **kwargs):
        if self.steps_done:
            self.steps_done.send(state.global_step)


def train_in_child(folder, steps_done=None, crash_at=None, **how):
    """Trains from the newest resume point on; leaves the trace and the final weights of each rank in `folder`."""
    rank = os.environ.get("RANK", "0")
    callbacks = [WriteTrace(folder / f"trace-{rank}.jsonl", steps_done)]
    if crash_at is not None:
        callbacks.append(CrashAt(crash_at))
    trainer = tiny_trainer(folder, callbacks=callbacks, **how)
    assert trainer.args.world_size == int(os.environ.get("WORLD_SIZE", "1"))
    point = newest_resume_point(folder / RESUME_POINTS)
    try:
        trainer.train(resume_from_checkpoint=str(point) if point else None)
    except Crash:
        return
    save_file({name: p.detach() for name, p in trainer.model.named_parameters()}, folder / f"final-{rank}.safetensors")


def run_alone(target, *arguments, **how):
    process = processes.Process(target=target, args=arguments, kwargs=how)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def steps_of(path):
    """Rows by (step, kind); a row that was written twice must be the same. A last line cut off by a kill is no row."""
    rows = {}
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            row = json.loads(line)
            key = (row["step"], "eval_loss" in row, "loss" in row)
            assert rows.setdefault(key, row) == row
    return rows


def test_killed_at_random_moments_it_ends_with_the_same_trace(tmp_path):
    run_alone(train_in_child, tmp_path / "whole", max_steps=90, logging_steps=1)
    chance = random.Random(0)
    for _ in range(5):
        steps_done, sender = processes.Pipe(duplex=False)
        process = processes.Process(
            target=train_in_child, args=(tmp_path / "killed", sender), kwargs={"max_steps": 90, "logging_steps": 1}
        )
        process.start()
        for _ in range(chance.randint(2, 10)):
            assert steps_done.poll(60)
            steps_done.recv()
        time.sleep(chance.uniform(0, 0.04))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    run_alone(train_in_child, tmp_path / "killed", max_steps=90, logging_steps=1)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert steps_of(killed / "trace-0.jsonl") == steps_of(whole / "trace-0.jsonl")
    assert (killed / "final-0.safetensors").read_bytes() == (whole / "final-0.safetensors").read_bytes()


def test_two_processes_resume_exactly_and_one_continues_from_their_point(tmp_path):
    whole, cut, alone = tmp_path / "whole", tmp_path / "cut", tmp_path / "alone"
    run_ranks(train_in_child, whole, max_steps=8)
    run_ranks(train_in_child, cut, max_steps=8, crash_at=5)
    shutil.copytree(cut, alone)
    point = newest_resume_point(cut / RESUME_POINTS)
    assert point.name == "step-3"
    assert {"rank-0.json", "rank-1.json"} < {path.name for path in point.iterdir()}

    run_ranks(train_in_child, cut, max_steps=8)
    for rank in range(2):
        assert steps_of(cut / f"trace-{rank}.jsonl") == steps_of(whole / f"trace-{rank}.jsonl")
        final = f"final-{rank}.safetensors"
        assert (
            (cut / final).read_bytes() == (whole / final).read_bytes() == (whole / "final-0.safetensors").read_bytes()
        )

    run_alone(train_in_child, alone, max_steps=8)
    assert json.loads((alone / RESUME_POINTS / "step-8" / "rank-0.json").read_text())["world_size"] == 1


def train_on_a_full_disk(folder):
    torch.set_num_threads(1)

    class FullAfterStep4(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    with pytest.raises(TrainingError, match="step-6 could not be written.*File too large"):
        tiny_trainer(folder, callbacks=[FullAfterStep4()]).train()
    assert [path.name for path in (folder / RESUME_POINTS).iterdir()] == ["step-3"]


def test_no_room_for_a_point_leaves_the_one_before(tmp_path):
    run_alone(train_on_a_full_disk, tmp_path)
    assert newest_resume_point(tmp_path / RESUME_POINTS).name == "step-3"


def test_tokens_seen_are_counted_exactly_also_over_a_break(tmp_path):
    """Trainer's number, which it gathers in every micro-batch: 15 steps of two micro-batches of two rows."""
    _, resumed = crash_and_resume(tmp_path, at=7, include_num_input_tokens_seen="all")
    assert resumed.state.num_input_tokens_seen == 15 * 2 * 2 * CONTEXT
    logged = {row["step"]: row["num_input_tokens_seen"] for row in resumed.state.log_history if "loss" in row}
    assert logged == {step: step * 2 * 2 * CONTEXT for step in logged}
