import gc
import io
import json
import math
import weakref

import pytest
import torch
from rich.console import Console
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import integration_utils

from chatpipe import console
from chatpipe.recipe.architectures import flops_per_token
from chatpipe.training import callbacks
from chatpipe.training.callbacks import MetricsFile, Speedometer, closing_log, watch
from chatpipe.training.progress import follow, progress_words, read_metrics


@pytest.fixture
def args(tmp_path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")


def state(step: int, tokens: int = 0) -> TrainerState:
    return TrainerState(global_step=step, max_steps=10, num_input_tokens_seen=tokens)


def log(callback, args, step: int, tokens: int = 0, **logs: object) -> dict[str, object]:
    callback.on_log(args, state(step, tokens), TrainerControl(), logs=logs)
    return logs


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves on."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_each_logged_step_is_a_line_as_soon_as_it_is_logged(args, tmp_path):
    file = MetricsFile(tmp_path / "run" / "metrics.jsonl")
    file.on_train_begin(args, state(0), TrainerControl())
    log(file, args, 1, loss=2.5)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "max_steps": 10, "loss": 2.5}]
    log(file, args, 2, loss=2.0)
    log(file, args, 2, train_loss=2.2, train_runtime=3.0)  # Trainer's closing summary
    assert [line["step"] for line in read_metrics(file.path)] == [1, 2]


def test_a_resumed_run_drops_the_lines_that_it_writes_again(args, tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.on_train_begin(args, state(0), TrainerControl())
    for step in range(1, 6):
        log(file, args, step, loss=float(step))
    with file.path.open("a") as cut_off:
        cut_off.write('{"step": 6, "lo')  # killed while writing
    again = MetricsFile(file.path)
    again.on_train_begin(args, state(3), TrainerControl())
    assert [line["step"] for line in read_metrics(file.path)] == [1, 2, 3]
    for step in range(4, 7):
        log(again, args, step, loss=float(step))
    assert [(line["step"], line["loss"]) for line in read_metrics(file.path)] == [(i, float(i)) for i in range(1, 7)]


def test_a_run_from_the_start_begins_a_new_file(args, tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.path.write_text('{"step": 1, "max_steps": 3, "loss": 1.0}\n')
    file.on_train_begin(args, state(0), TrainerControl())
    assert file.path.read_text() == ""


def test_speed_is_tokens_over_seconds_since_the_last_log(args, clock):
    speed = Speedometer(flops_per_token=100.0, peak=1e5)
    speed.on_train_begin(args, state(0), TrainerControl())
    clock.now += 2.0
    assert log(speed, args, 1, tokens=1000)["tokens_per_second"] == 500.0
    clock.now += 1.0
    logs = log(speed, args, 2, tokens=1250)
    assert logs == {"tokens_per_second": 250.0, "mfu": 0.25}
    assert speed.averages(world_size=1) == {"tokens_per_second": round(1250 / 3, 1), "mfu": round(1250 / 3 / 1000, 4)}
    assert speed.averages(world_size=2)["mfu"] == round(1250 / 3 / 2000, 4)


def test_a_resumed_run_does_not_count_tokens_of_before(args, clock):
    speed = Speedometer(flops_per_token=100.0, peak=1e5)
    speed.on_train_begin(args, state(5, tokens=1_000_000), TrainerControl())
    clock.now += 1.0
    assert log(speed, args, 6, tokens=1_000_200)["tokens_per_second"] == 200.0


def test_where_the_peak_is_not_known_so_is_the_share_of_it(args, clock):
    speed = Speedometer(flops_per_token=100.0, peak=None)
    assert speed.averages(world_size=1) == {}
    speed.on_train_begin(args, state(0), TrainerControl())
    clock.now += 1.0
    assert log(speed, args, 1, tokens=10) == {"tokens_per_second": 10.0, "mfu": "unknown"}
    assert log(speed, args, 1, tokens=10) == {}  # nothing trained since


def test_flops_are_six_a_parameter_and_twelve_a_layer_width_and_position():
    # PaLM's appendix B; GPT-2 small at 1024 tokens is nanoGPT's example.
    assert flops_per_token(124_439_808, 12, 768, 1024) == 6 * 124_439_808 + 12 * 12 * 768 * 1024


def test_a_metrics_file_is_read_up_to_where_it_was_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_the_words_next_to_the_bar():
    assert progress_words({"loss": 2.34567, "tokens_per_second": 12345.6}) == "loss 2.346  12,346 tokens/s"
    assert progress_words({"objective/scores": 1.5, "objective/kl": 3.25, "loss": 1.0}) == "score 1.50  kl 3.2"
    assert progress_words({"objective/scores": 1.5, "objective/kl": -0.01}) == "score 1.50  kl 0.0"
    assert progress_words({"learning_rate": 1.0}) == ""


def test_a_log_file_gets_a_line_at_each_log(args, monkeypatch):
    """Seconds a step follow from the lines before: 8 of 10 steps are left after 2 that took 30 s."""
    now = iter([100.0, 130.0])
    monkeypatch.setattr("chatpipe.training.progress.time.monotonic", lambda: next(now))
    monkeypatch.setattr(console, "_console", Console(file=io.StringIO(), width=120))
    shown = callbacks.Progress("sft")
    log(shown, args, 0, loss=2.0)
    log(shown, args, 2, loss=1.5, tokens_per_second=1200.0)
    log(shown, args, 2, learning_rate=1.0)
    assert console._console.file.getvalue().splitlines() == [
        "sft: step 0 of 10  loss 2.000",
        "sft: step 2 of 10  loss 1.500  1,200 tokens/s  2.0 min left",
    ]


def test_a_log_file_of_a_stage_in_other_processes_gets_the_same_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "_console", Console(file=io.StringIO(), width=120))
    lines = [json.dumps({"step": step, "max_steps": 200, "loss": 1.5}) + "\n" for step in (10, 20, 30)]
    (tmp_path / "metrics.jsonl").write_text(lines[0])  # of before it was resumed
    with follow("sft", tmp_path) as show:
        (tmp_path / "metrics.jsonl").write_text("".join(lines))
        show()
        show()
    said = console._console.file.getvalue().splitlines()
    assert [line.split("  ")[0] for line in said] == ["sft: step 20 of 200", "sft: step 30 of 200"]


def test_following_a_stage_shows_its_step_of_all_steps(tmp_path, monkeypatch):
    shown = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(console, "_console", shown)
    with follow("sft", tmp_path) as show:
        (tmp_path / "metrics.jsonl").write_text('{"step": 30, "max_steps": 200, "loss": 1.5}\n')
        show()
    assert "30/200" in shown.file.getvalue()
    assert "loss 1.500" in shown.file.getvalue()


def test_following_a_stage_that_has_written_nothing_yet_is_no_error(tmp_path, capsys):
    with follow("sft", tmp_path) as show:
        show()
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "max_steps": 2, "loss": 1.0}\n')
        show()
    assert capsys.readouterr() == ("", "sft: step 1 of 2  loss 1.000\n")


def tiny_trainer(tmp_path, report_to="none"):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    ids = torch.randint(0, 16, (8, 8))
    args = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=report_to,
        max_steps=4,
        per_device_train_batch_size=2,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        include_num_input_tokens_seen="all",
    )
    return Trainer(model=model, args=args, train_dataset=[{"input_ids": row, "labels": row} for row in ids])


def test_metrics_of_the_trained_model_reach_file_and_trackers_without_the_trainer(tmp_path, monkeypatch):
    tracked = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs, **_):
            tracked.append((state.global_step, logs))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "own", Tracker)
    trainer = tiny_trainer(tmp_path, report_to="own")
    watch(trainer, "rm", tmp_path, 1.0, 1e12).progress.close()
    trainer.train()
    log, model = closing_log(trainer), weakref.ref(trainer.model)
    del trainer
    gc.collect()
    assert model() is None
    log({"eval_accuracy": 0.75})
    assert tracked[-1] == (4, {"eval_accuracy": 0.75})
    assert read_metrics(tmp_path / "metrics.jsonl")[-1] == {"step": 4, "max_steps": 4, "eval_accuracy": 0.75}


def test_a_trainer_writes_metrics_and_prints_a_line_of_each(tmp_path, capsys):
    trainer = tiny_trainer(tmp_path)
    parameters = trainer.model.num_parameters()
    watching = watch(trainer, "pretrain", tmp_path, flops_per_token(parameters, 1, 8, 8), 1e12)
    trainer.train()
    watching.progress.close()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["max_steps"]) for line in lines] == [(step, 4) for step in range(1, 5)]
    for line in lines:
        assert math.isfinite(line["loss"])
        assert line["tokens_per_second"] > 0
        assert 0 <= line["mfu"] < 1
    assert watching.speed.train_tokens == 4 * 2 * 8
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split("  ")[0] for line in err.splitlines()] == [f"pretrain: step {step} of 4" for step in range(1, 5)]
