"""Small models as other people make them: their own tokenizer, template, special tokens, dtype and files."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = [
    *("red", "blue", "green", "house", "river", "stone", "bread", "milk", "cat"),
    *("dog", "runs", "sleeps", "big", "small", "old", "new", "tall"),
]
TEXTS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GENERATION = {"do_sample": True, "eos_token_id": [2, 0], "pad_token_id": 2, "temperature": 0.6, "top_p": 0.9}
KEPT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def foreign_tokenizer(
    template: str | None = CHATML, texts: Sequence[str] = TEXTS, vocab_size: int = 300, **special: str
) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose ids 0, 1, 2 are `<|endoftext|>`, `<|im_start|>` and `<|im_end|>`, the EOS."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, **{"eos_token": "<|im_end|>", **special})
    made.chat_template = template
    return made


def write_foreign_model(folder: Path, kind: str) -> Path:
    """Writes a model of some `kind` with random weights into `folder`, which is returned.

    `smollm`: as SmolLM2: Llama, bf16, tied, pad == EOS, no row to spare, two ends of generation; `smollm_untied` has an
    output head of its own. `llama`: fp16, neither pad nor BOS, rows beyond the tokenizer. `gpt2`: pad == EOS, float32.
    `base`: GPT-2 without a chat template.
    """
    torch.manual_seed(0)
    special = (
        {"pad_token": "<|im_end|>", "bos_token": "<|im_start|>"} if kind in ("smollm", "smollm_untied", "gpt2") else {}
    )
    if kind == "base":
        special = {"eos_token": "<|endoftext|>"}
    tokenizer = foreign_tokenizer(None if kind == "base" else CHATML, **special)
    rows = len(tokenizer)
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    if kind in ("smollm", "smollm_untied", "llama"):
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        more = {"num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": kind == "smollm"}
        pad = None if kind == "llama" else tokenizer.eos_token_id
        rows += 40 if kind == "llama" else 0
        model = LlamaForCausalLM(LlamaConfig(vocab_size=rows, pad_token_id=pad, **sizes, **more, **ids))
        model.to(torch.float16 if kind == "llama" else torch.bfloat16)
    else:
        shape = {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=rows, **shape, **ids))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if kind == "base":
        (folder / "generation_config.json").unlink()
    else:
        (folder / "generation_config.json").write_text(json.dumps(GENERATION, indent=1))
    return folder


def write_rows(folder: Path) -> None:
    """Writes chats.jsonl and pairs.jsonl, short enough for these models."""
    words = [" ".join(WORDS[i % 17 : i % 17 + 3]) for i in range(60)]
    chats = [
        [{"role": "user", "content": f"{i} {text}"}, {"role": "assistant", "content": text}]
        for i, text in enumerate(words)
    ]
    pairs = [{"prompt": f"{i} {text}", "chosen": text, "rejected": f"cat {i % 7}"} for i, text in enumerate(words)]
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in chats))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
