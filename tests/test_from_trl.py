"""docs/from-trl.md: its code runs unchanged, on tiny models of the names it uses."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

sys.path.append(str(Path(__file__).parent / "exact"))
import tiny

PAGE = Path(__file__).parents[1] / "docs" / "from-trl.md"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A fine-tuned model, a reward model and prompts."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tiny.policy().save_pretrained(tmp_path / "sft")
    tokenizer.save_pretrained(tmp_path / "sft")
    tiny.random_reward_model().save_pretrained(tmp_path / "reward")
    rows = [{"prompt": [{"role": "user", "content": f"w{i % 9 + 2}"}]} for i in range(20)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    return tmp_path


def test_the_scripts_run_and_their_models_open(folder):
    pytest.importorskip("peft")
    scripts = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert len(scripts) == 2
    scope: dict = {}
    for script in scripts:
        exec(compile(script, str(PAGE), "exec"), scope)  # the second continues the first
    history = scope["trainer"].state.log_history
    assert any("rewards/short" in line for line in history)
    ids = torch.tensor([[3, 4, 5]])
    before = tiny.policy().eval()(ids).logits
    for name in ("final", "lora"):
        model = AutoModelForCausalLM.from_pretrained(folder / "ppo" / name)
        assert not model.eval()(ids).logits.equal(before)
        assert (folder / "ppo" / name / "tokenizer.json").exists()


def test_the_table_of_defaults_is_right():
    from chatpipe import PPOConfig

    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| `?([\w.]+)`? \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert rows.keys() >= {"temperature", "missing_eos_penalty", "response_length"}
    assert PPOConfig.__dataclass_fields__["total_episodes"].default is None  # as in TRL
    for name, shown in rows.items():
        assert str(PPOConfig.__dataclass_fields__[name].default) == shown, name
