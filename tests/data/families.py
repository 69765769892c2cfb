"""Tokenizers of other families in small: their control tokens as they name them, and their chat templates in form."""

from dataclasses import dataclass
from pathlib import Path

import trl
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATES = Path(trl.__file__).parent / "chat_templates"

# As Mistral's instruction models have it: roles must alternate, no mark before an answer but the end of the question.
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)


# How Llama 3 and Qwen cut text into words: line breaks stay together, whatever comes behind them.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Family:
    """A family's template, its control tokens, which of them its tokenizer calls EOS, and which ends an answer."""

    template: str
    tokens: tuple[str, ...]
    eos: str
    end_of_turn: str
    bos: str | None = None
    pad: str | None = None
    thinks: bool = False

    def tokenizer(self) -> PreTrainedTokenizerFast:
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=list(self.tokens), initial_alphabet=alphabet, show_progress=False
        )
        bpe.train_from_iterator(
            ["user model\n\nassistant\nMara is a baker. Yes Yes: Yes\n\n\n[/INST] Tomas has a dog."], trainer
        )
        made = PreTrainedTokenizerFast(
            tokenizer_object=bpe,
            eos_token=self.eos,
            bos_token=self.bos,
            pad_token=self.pad,
            clean_up_tokenization_spaces=False,
        )
        made.chat_template = self.template
        return made


def template_of(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FAMILIES = {
    "llama3": Family(template_of("llama3"), LLAMA, "<|end_of_text|>", "<|eot_id|>", bos="<|begin_of_text|>"),
    "qwen2.5": Family(template_of("qwen2_5"), QWEN, "<|endoftext|>", "<|im_end|>", pad="<|endoftext|>"),
    "qwen3": Family(template_of("qwen3"), QWEN, "<|im_end|>", "<|im_end|>", pad="<|endoftext|>", thinks=True),
    "gemma": Family(
        template_of("gemma"),
        ("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        "<end_of_turn>",
        bos="<bos>",
        pad="<pad>",
    ),
    "mistral": Family(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "</s>", bos="<s>"),
    "phi3": Family(
        template_of("phi3"),
        ("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
        "<|endoftext|>",
        "<|end|>",
    ),
}
