"""pretrain on text of a user's own: tokenizers, mixtures, exact order, and what is refused."""

import json
import os
import resource

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    TrainingArguments,
    set_seed,
)

from chatpipe.data.documents import RawText
from chatpipe.data.encoding import Encoder
from chatpipe.data.text_blocks import BlockCollator, TrainingText
from chatpipe.data.token_store import build_token_store
from chatpipe.models.new_model import train_tokenizer
from chatpipe.recipe.schema import DataBlock
from chatpipe.stages.pretrain import PretrainTrainer
from chatpipe.training.progress import read_metrics

TINY = (
    "pretrain.architecture={n_layer: 1, n_head: 2, n_embd: 16, n_positions: 64}",
    "pretrain.tokenizer.vocab_size=300",
    "pretrain.block_size=32",
    "pretrain.batch_size=4",
    "pretrain.max_steps=3",
)
TEXTS = [f"Mara has {i} dogs, and Tomas bakes bread near the mill.\nNobody knows why." for i in range(200)]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture
def pretrain(chatpipe, tmp_path):
    """Runs pretrain on a source with a tiny model, into `out`."""
    return lambda data, *more: chatpipe(
        "pretrain", "--data", data, "--out", tmp_path / "out", *TINY, *more, "--processes", 1, "--json"
    )


def refused(said) -> str:
    assert said.code == 2, said.err
    assert said.out == ""
    assert 1 < len(said.err.splitlines()) <= 8
    return said.err


# ---- tokenizers ----


def test_a_new_tokenizer_is_trained_once_and_reserved_for_chat(pretrain, corpus, tmp_path):
    pretrain(corpus).object
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) == 300
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 320  # a multiple of 64
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.convert_tokens_to_ids(["<|system|>", "<|user|>", "<|assistant|>"]) == [2, 3, 4]


def test_a_context_shorter_than_a_sample_shortens_the_sample(pretrain, corpus, tmp_path):
    short = "pretrain.architecture={n_layer: 1, n_head: 2, n_embd: 16, n_positions: 32}"
    metrics = pretrain(corpus, short, "pretrain.eval_steps=2").object["metrics"]
    assert metrics["example"]["answer"]
    evaluated, *_ = [row for row in read_metrics(tmp_path / "out" / "metrics.jsonl") if "samples" in row]
    assert all(evaluated["samples"])


def test_evaluations_in_bfloat16_write_samples_and_measure_what_float32_does(pretrain, corpus, tmp_path):
    metrics = pretrain(corpus, "pretrain.bf16=true", "pretrain.eval_steps=3").object["metrics"]
    [evaluated] = [row for row in read_metrics(tmp_path / "out" / "metrics.jsonl") if "eval_loss" in row]
    assert (evaluated["step"], len(evaluated["samples"])) == (3, 2)
    assert evaluated["eval_loss"] == pytest.approx(metrics["eval_loss"], abs=0.01)
    assert evaluated["eval_loss"] != metrics["eval_loss"]


def test_a_limit_on_what_the_tokenizer_is_trained_on(pretrain, tmp_path):
    """A word that comes only after the limit is no token."""
    path = tmp_path / "a.jsonl"
    texts = [f"{i} common" for i in range(500)] + [f"{i} rarity" for i in range(500)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert pretrain(path, "pretrain.tokenizer.train_bytes=3000").code == 0
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    assert "Ġcommon" in tokens
    assert "Ġrarity" not in tokens


def test_characters_of_the_whole_corpus_are_tokens(pretrain, corpus, tmp_path):
    assert pretrain(corpus, "pretrain.tokenizer.kind=character").code == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) == len(set("".join(TEXTS))) + 6
    assert tokenizer.decode(tokenizer(TEXTS[7])["input_ids"]) == TEXTS[7]


def gpt2_like() -> PreTrainedTokenizerFast:
    """A tokenizer of GPT-2's shape: 256 bytes, 50,000 merges and end-of-text, which is its only special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(a, b) for a in alphabet for b in alphabet][:50_000]
    entries = [*alphabet, *(a + b for a, b in merges), "<|endoftext|>"]
    backend = Tokenizer(models.BPE({entry: number for number, entry in enumerate(entries)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, unk_token=end)


def test_gpt2_s_tokenizer_is_used_as_it_is(pretrain, corpus, tmp_path):
    gpt2_like().save_pretrained(tmp_path / "gpt2-like")
    pretrain(corpus, f"pretrain.tokenizer.pretrained={tmp_path / 'gpt2-like'}").object
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert len(tokenizer) == 50_257
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 50_304  # a multiple of 64
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, model.config.eos_token_id) == (50_256, None, 50_256)
    assert not (tmp_path / "out" / "tokens" / "tokenizer").exists()


def test_a_tokenizer_that_cannot_be_used_is_refused(pretrain, corpus, tmp_path):
    key = "pretrain.tokenizer.pretrained"
    told = refused(pretrain(corpus, f"{key}={tmp_path}"))
    assert f"{key} = {tmp_path} is not the folder of a tokenizer: it has no tokenizer." in told
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())).save_pretrained(tmp_path / "endless")
    told = refused(pretrain(corpus, f"{key}={tmp_path / 'endless'}"))
    assert "endless has no end-of-text token." in told


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(pretrain, corpus, tmp_path):
    train_tokenizer(TEXTS, 400, 64).save_pretrained(tmp_path / "larger")
    assert pretrain(corpus).code == 0
    (tmp_path / "out").rename(tmp_path / "base")  # 300 tokens, 320 rows
    told = refused(
        pretrain(corpus, "--model", tmp_path / "base", f"pretrain.tokenizer.pretrained={tmp_path / 'larger'}")
    )
    assert "the tokenizer has 400 entries, the model's vocabulary 320." in told


def test_continuing_with_another_tokenizer_a_text_ends_at_that_one_s_token(pretrain, corpus, tmp_path):
    """What ended a text before is an ordinary token now. A model's own further ends stay."""
    own = train_tokenizer(TEXTS, 300, 64)
    config = GPT2Config(
        vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=99, eos_token_id=99
    )
    model = GPT2LMHeadModel(config)
    for ends, kept in ([99, 98], 1), ([1, 4], [1, 4]):
        model.generation_config.eos_token_id = ends
        model.save_pretrained(tmp_path / "base")
        own.save_pretrained(tmp_path / "own")
        words = ("--model", tmp_path / "base", f"pretrain.tokenizer.pretrained={tmp_path / 'own'}", "--fresh")
        assert pretrain(corpus, *words).code == 0
        made = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert (made.config.bos_token_id, made.config.eos_token_id) == (1, 1)
        assert made.generation_config.bos_token_id == 1
        assert made.generation_config.eos_token_id == kept


def test_a_stage_s_own_folder_may_lie_in_the_home_folder(chatpipe, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    said = chatpipe(
        "pretrain", "--data", corpus, "--out=~/own", *TINY, "keep_checkpoints=true", "--processes", 1, "--json"
    )
    assert said.object["out"] == str(tmp_path / "own")
    assert (tmp_path / "own" / "checkpoints" / "step-3").is_dir()
    assert not (tmp_path / "~").exists()


def test_an_encoder_continues_with_another_tokenizer(pretrain, corpus, tmp_path):
    encoder = ("pretrain.architecture={family: modernbert, n_layer: 1, n_head: 2, n_embd: 16, n_positions: 64}",)
    masked = "pretrain.objective=masked"
    assert pretrain(corpus, *encoder, masked).code == 0
    (tmp_path / "out").rename(tmp_path / "base")
    train_tokenizer(["Other words, and a number of them."], 280, 64).save_pretrained(tmp_path / "own")
    words = ("--model", tmp_path / "base", f"pretrain.tokenizer.pretrained={tmp_path / 'own'}", masked)
    assert pretrain(corpus, *words).code == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").mask_token_id == 280


# ---- sources ----


def test_sources_of_all_kinds_are_mixed_by_weight(chatpipe, corpus, tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts" / name).write_text("\n\n".join(TEXTS))
    recipe = tmp_path / "mixed.yaml"
    recipe.write_text(
        "pretrain:\n  data:\n"
        f"  - {{source: {corpus}, weight: 0.5}}\n"
        f"  - {{source: {tmp_path}/texts/*.txt, document: blank_line, weight: 2}}\n"
        "  - {source: pocketworld, limit: 100}\n"
    )
    out = tmp_path / "mixed"
    command = ("pretrain", recipe, "--out", out, *TINY, "--json")
    metrics = chatpipe(*command, "pretrain.documents=isolate").object["metrics"]
    stores = [json.loads((out / "tokens" / f"train.{i}" / "manifest.json").read_text()) for i in range(3)]
    documents = [sum(shard["documents"] for shard in store["files"].values()) for store in stores]
    assert documents[1] == 2 * documents[0]
    assert documents[2] == 90  # a tenth of the limit of 100 validates
    tokens = sum(shard["tokens"] for store in stores for shard in store["files"].values())
    assert metrics["corpus_tokens"] == tokens
    assert chatpipe(*command, "pretrain.documents=isolate").object["skipped"]
    told = refused(chatpipe(*command))
    assert "pretrain.documents was isolate, is concatenate now" in told


def test_rows_that_are_left_out_are_reported(pretrain, corpus):
    with corpus.open("a") as file:
        file.write("oops\n{}\n")
    said = pretrain(corpus)
    assert said.code == 0
    broken, empty = f"first at {corpus}:201, Expecting value at column 1", f"first at {corpus}:202"
    said_of_both = f"{corpus}: 2 left out (1: this line is not JSON, {broken}; 1: there is no field text, {empty})"
    assert said_of_both in said.err
    with corpus.open("a") as file:
        file.write("oops\n" * 9)
    told = refused(pretrain(corpus, "--fresh"))
    assert f"10 rows: this line is not JSON (first at {corpus}:201, " in told


def test_text_that_is_too_little_is_refused_and_leaves_no_tokenizer(pretrain, corpus, tmp_path):
    told = refused(pretrain(corpus, "pretrain.batch_size=200"))
    assert "5,942 tokens to train on, but one batch reads 6,400: 200 sequences of 32." in told
    assert not (tmp_path / "out" / "tokens").exists()
    for texts in (TEXTS[:2], ["."]):
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        told = refused(pretrain(corpus, "pretrain.batch_size=1"))
        assert "holds too little: nothing to train on, or nothing for validation." in told
        assert not (tmp_path / "out" / "tokens").exists()


def test_a_source_with_nothing_to_train_on_is_refused_before_the_others_are_tokenised(pretrain, corpus, tmp_path):
    other = corpus.with_name("other.txt")
    other.write_text(".")
    told = refused(pretrain(f"{corpus},{other}"))
    assert f"pretrain.data = {other} holds too little: nothing to train on, or nothing for validation." in told
    assert not (tmp_path / "out" / "tokens").exists()


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_recipe_and_files_show_is_refused_before_anything_is_written_or_deleted(pretrain, corpus, tmp_path):
    """Also where a finished run would be deleted for the new one."""
    empty, too_long = corpus.with_name("empty.jsonl"), "pretrain.block_size=128"  # of 64 positions
    empty.write_text("{}\n")
    for data, *words in ((corpus, too_long), (empty,)):
        refused(pretrain(data, *words, "--fresh"))
        assert not (tmp_path / "out").exists()
    assert pretrain(corpus).code == 0
    before = contents(tmp_path / "out")
    for data, *words in ((corpus, too_long), (empty,)):
        refused(pretrain(data, *words, "--fresh"))
        assert contents(tmp_path / "out") == before


def test_what_only_a_tokenizer_shows_leaves_it_and_no_model(pretrain, corpus, tmp_path):
    """It is used again by the command that is mended."""
    out = tmp_path / "out"
    told = refused(pretrain(corpus, "pretrain.architecture.vocab_size=290"))
    assert "The tokenizer has 300 tokens, but pretrain.architecture.vocab_size = 290" in told
    made = {name for name in contents(out) if not name.startswith("tokens/tokenizer/")}
    assert made == {"checkpoints/stage.json"}
    tokenizer = out / "tokens" / "tokenizer" / "tokenizer.json"
    before = tokenizer.stat().st_mtime_ns
    assert pretrain(corpus).code == 0
    assert tokenizer.stat().st_mtime_ns == before


def test_a_finished_run_outlives_one_that_is_refused(pretrain, corpus, tmp_path):
    assert pretrain(corpus).code == 0
    before = contents(tmp_path / "out")
    for wrong in ("pretrain.architecture.vocab_size=290", "pretrain.batch_size=200"):
        refused(pretrain(corpus, wrong))
        assert contents(tmp_path / "out") == before


def test_a_full_disk_is_reported_and_the_command_continues_when_there_is_room(pretrain, corpus, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert pretrain(corpus).code == 0
    size = (tmp_path / "out" / "tokens" / "train.0" / "shard-00000.bin").stat().st_size
    words = ("pretrain.max_steps=4", "--fresh")
    train_tokenizer(TEXTS, 300, 64).save_pretrained(tmp_path / "made")
    made = f"pretrain.tokenizer.pretrained={tmp_path / 'made'}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        told = refused(pretrain(corpus, made, *words))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"The token store {tmp_path / 'out' / 'tokens' / 'train.0'} cannot be written: " in told
    assert pretrain(corpus, made, "pretrain.max_steps=4").code == 0


def test_a_changed_store_is_refused(pretrain, corpus, tmp_path):
    assert pretrain(corpus).code == 0
    shard = tmp_path / "out" / "tokens" / "train.0" / "shard-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\7")
    (tmp_path / "out" / "chatpipe.json").unlink()  # as if it had broken off after its last resume point
    told = refused(pretrain(corpus))
    assert "tokens/train.0 was changed after it was built: shard-00000.bin is damaged" in told
    assert os.listdir(tmp_path / "out" / "checkpoints")


# ---- the order, and going on ----


class Recorder(PretrainTrainer):
    """Notes what each step reads and loses."""

    def __init__(self, *args, **more) -> None:
        super().__init__(*args, **more)
        self.read: list[tuple[list[list[int]], float]] = []

    def training_step(self, model, inputs, *args, **more):
        loss = super().training_step(model, inputs, *args, **more)
        self.read.append((inputs["input_ids"].tolist(), loss.item()))
        return loss


@pytest.fixture
def recorder(tmp_path, corpus):
    """Makes a trainer of 10 steps, of `steps` of which it takes, over one text, in a folder."""
    tokenizer = train_tokenizer(TEXTS, 300, 64)
    text = RawText(DataBlock(source=str(corpus)), {}, "k")
    store = build_token_store(tmp_path / "store", text, Encoder.of(tokenizer), workers=1)

    def make(name: str, isolate: bool, batch_size: int = 4) -> Recorder:
        set_seed(0)
        config = GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=32)
        arguments = TrainingArguments(
            output_dir=str(tmp_path / name),
            max_steps=10,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=4 // batch_size,
            save_strategy="steps",
            save_steps=1,
            save_total_limit=None,
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
        )
        data = TrainingText([store], [1.0], 16, seed=5, samples=40)
        collator = BlockCollator(tokenizer.eos_token_id if isolate else None)
        trainer = Recorder(GPT2LMHeadModel(config), arguments, train_dataset=data, data_collator=collator)
        trainer.resume_points_to_keep = 10
        return trainer

    return make


@pytest.mark.parametrize("isolate", [False, True])
def test_a_run_that_stops_at_any_step_reads_and_loses_what_one_that_did_not_does(recorder, tmp_path, isolate):
    whole = recorder("whole", isolate)
    whole.train()
    assert len(whole.read) == 10
    assert [batch for batch, _ in whole.read] == [
        [whole.train_dataset[sample]["input_ids"].tolist() for sample in range(step * 4, step * 4 + 4)]
        for step in range(10)
    ]
    for step in range(1, 10):
        again = recorder("again", isolate)
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoints" / f"step-{step}"))
        assert again.read == whole.read[step:]


def test_micro_batches_are_parts_of_the_same_samples_also_after_a_resume(recorder, tmp_path):
    whole, parts = recorder("whole", False), recorder("parts", False, batch_size=2)
    whole.train()
    parts.train()
    read = [block for batch, _ in whole.read for block in batch]
    assert [block for batch, _ in parts.read for block in batch] == read
    again = recorder("again", False, batch_size=1)
    again.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoints" / "step-3"))
    assert [block for batch, _ in again.read for block in batch] == read[3 * 4 :]
    assert torch.isfinite(torch.tensor([loss for _, loss in again.read])).all()
