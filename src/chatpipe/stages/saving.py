"""What the stages share in saving: the model folder and its card."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.stages.step import Step

CARD = """---
library_name: transformers
tags: [chatpipe, {stage}]
---

# {title}

Made by `chatpipe {stage}`. `chatpipe.json` has the models, the data and the settings it was made from, and its metrics.

```python
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```
"""
TITLES = {
    "pretrain": "A base model",
    "sft": "A chat model, fine-tuned on conversations",
    "rm": "A reward model",
    "ppo": "A chat model, tuned with PPO",
}


def save_checkpoint(step: Step, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes model, tokenizer and card into the stage's folder; the manifest comes later and last."""
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.eos_token_id = _ends(generation.eos_token_id, tokenizer.eos_token_id)
        generation.pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(step.folder)
    tokenizer.save_pretrained(step.folder)
    card = CARD.format(stage=step.stage, title=TITLES[step.stage], auto=_auto_class(model), folder=step.folder.name)
    (step.folder / "README.md").write_text(card, encoding="utf-8")


def _ends(before: int | list[int] | None, eos_token_id: int) -> int | list[int]:
    """What generation stops at: the end of a turn, and what else it stopped at before, such as the end of a text."""
    others = [token for token in ([before] if isinstance(before, int) else before or []) if token != eos_token_id]
    return [eos_token_id, *others] if others else eos_token_id


def _auto_class(model: PreTrainedModel) -> str:
    """The class of transformers that opens the folder again."""
    kinds = ("ForSequenceClassification", "ForMaskedLM")
    return f"AutoModel{next((kind for kind in kinds if type(model).__name__.endswith(kind)), 'ForCausalLM')}"
