"""Talking to a model: through a pipe in this process, and on a real terminal in a process of its own."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from chatpipe.data.chat_template import CHAT_TEMPLATE, encode_prompt
from chatpipe.errors import UsageError
from chatpipe.generation import SamplingParams
from chatpipe.generation.chat_loop import Conversation, chat
from chatpipe.models.manifest import Manifest, write_manifest
from chatpipe.models.new_model import train_tokenizer

GIVEN = {"max_new_tokens": 20, "temperature": 0}
GREEDY = SamplingParams(**GIVEN)
ANSWER = "\x1bYe\u202es\nNo!"  # no byte comes twice; raw, as the model writes it


def save_model(folder: Path, chain: str, ends: bool = True, positions: int = 64, has_template: bool = True) -> str:
    """A model that answers everything with `chain`, in which no byte comes twice; unless it `ends`, over and over."""
    tokenizer = train_tokenizer([], vocab_size=261, model_max_length=positions)
    if has_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    size = len(tokenizer)
    shape = {"vocab_size": size, "n_embd": size, "n_layer": 0, "n_head": 1, "n_positions": positions}
    model = GPT2LMHeadModel(GPT2Config(**shape, tie_word_embeddings=False, bos_token_id=1, eos_token_id=1))
    model.transformer.wte.weight.data = torch.eye(size)
    model.transformer.wpe.weight.data.zero_()
    model.lm_head.weight.data.zero_()
    start = tokenizer.convert_tokens_to_ids("<|assistant|>") if has_template else tokenizer("?")["input_ids"][0]
    ids = tokenizer(chain)["input_ids"]
    for token, successor in zip([start, *ids], [*ids, tokenizer.eos_token_id if ends else ids[0]], strict=True):
        model.lm_head.weight.data[successor, token] = 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), ANSWER)


def conversation(folder: str, params: SamplingParams = GREEDY, system: str | None = None) -> Conversation:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return Conversation(model, AutoTokenizer.from_pretrained(folder), params, seed=0, system=system)


def pipe(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_a_pipe_gets_one_answer_a_line_and_nothing_else(monkeypatch, capsys, folder):
    pipe(monkeypatch, "hello\n\nhow are you?\n/quit\nnever read\n")
    chat(folder, GIVEN, seed=0)
    out, err = capsys.readouterr()
    assert out == "Yes No!\nYes No!\n"
    assert err == ""


@pytest.mark.parametrize(
    "options, answer",
    [
        (("--temperature", 0, "--stop", "N"), "Yes"),
        (("--temperature", 0, "--stop", "never", "--stop", "o!"), "Yes N"),
        (("--temperature", 1, "--min-p", 0.5), "Yes No!"),  # any other token is e times less likely than the next byte
    ],
)
def test_the_options_of_the_command_reach_the_engine(monkeypatch, chatpipe, folder, options, answer):
    pipe(monkeypatch, "hello\n")
    said = chatpipe("chat", folder, *options)
    assert (said.code, said.out, said.err) == (0, answer + "\n", "")


@pytest.mark.parametrize("settings, answer", [(None, "Yes No!"), ({"begin": "Y"}, "es No!"), ({"begin": "N"}, "o!")])
def test_the_chat_template_gets_its_settings_by_an_option_or_from_the_model_s_folder(
    monkeypatch, chatpipe, tmp_path, settings, answer
):
    folder = save_model(tmp_path / "model", ANSWER)
    template = CHAT_TEMPLATE.replace("{{ '<|assistant|>' }}", "{{ '<|assistant|>' }}{{ begin }}")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    pipe(monkeypatch, "hello\n")
    options = () if settings is None else ("--chat-template-kwargs", json.dumps(settings))
    assert chatpipe("chat", folder, "--temperature", 0, *options).out == answer + "\n"
    known = {f"chat_template_kwargs.{name}": value for name, value in (settings or {}).items()}
    write_manifest(Path(folder), Manifest("sft", parents={}, data={}, settings=known, seed=0, processes=1))
    pipe(monkeypatch, "hello\n")
    assert chatpipe("chat", folder, "--temperature", 0).out == answer + "\n"


@pytest.mark.parametrize(
    "options, message",
    [
        (("--stop", ""), "strings that are not empty"),
        (("--min-p", 1.5), "min-p"),
        (("--chat-template-kwargs", "enable_thinking"), "is not a JSON object"),
    ],
)
def test_options_that_cannot_be_are_refused(monkeypatch, chatpipe, folder, options, message):
    pipe(monkeypatch, "hello\n")
    said = chatpipe("chat", folder, *options)
    assert (said.code, said.out) == (2, "")
    assert message in said.err


@pytest.mark.parametrize(
    "settings", [{"do_sample": False}, {"do_sample": True, "temperature": 0.01}, {"temperature": 1, "min_p": 0.5}]
)
def test_a_model_answers_as_its_generation_config_says_unless_told_otherwise(monkeypatch, chatpipe, tmp_path, settings):
    folder = save_model(tmp_path / "model", ANSWER)
    file = tmp_path / "model" / "generation_config.json"
    file.write_text(json.dumps({**settings, "repetition_penalty": 1.05}))
    pipe(monkeypatch, "hello\n")
    said = chatpipe("chat", folder)
    assert said.out == "Yes No!\n"
    assert "repetition_penalty" in said.err
    pipe(monkeypatch, "hello\n")
    assert chatpipe("chat", folder, "--temperature", 9, "--min-p", 0, "--max-new-tokens", 9).out != "Yes No!\n"
    file.write_text('{"temperature": "high"}')
    pipe(monkeypatch, "hello\n")
    refused = chatpipe("chat", folder)
    assert refused.code == 2
    assert f"{file}: temperature is 'high'" in refused.err
    file.write_text('{"top_p": 1.5}')
    pipe(monkeypatch, "hello\n")
    assert f"{file}: top_p is 1.5" in chatpipe("chat", folder).err


def test_reset_forgets(monkeypatch, capsys, folder):
    pipe(monkeypatch, "hello\n/reset\n")
    chat(folder, GIVEN, seed=0)
    out, err = capsys.readouterr()
    assert out == "Yes No!\n"
    assert "forgotten" in err


def test_a_base_model_completes_text_and_reports_it_once(monkeypatch, capsys, tmp_path):
    base = save_model(tmp_path, " Tuesday", has_template=False)
    pipe(monkeypatch, "Which day?\nAnd now?\n")
    chat(base, GIVEN, seed=0)
    out, err = capsys.readouterr()
    assert out == " Tuesday\n Tuesday\n"
    assert err.count("no chat template") == 1


def test_input_that_is_not_utf8_is_refused(monkeypatch, folder):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    with pytest.raises(UsageError, match="UTF-8"):
        chat(folder, GIVEN, seed=0)


def test_turns_are_remembered_without_control_characters(folder):
    talk = conversation(folder, system="Be brief.")
    assert "".join(talk.answer("one")) == "Yes\nNo!"
    "".join(talk.answer("two"))
    assert [turn["content"] for turn in talk.turns] == ["one", "Yes\nNo!", "two", "Yes\nNo!"]
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"] * 2
    messages = [*talk.system, *talk.turns, {"role": "user", "content": "three"}]
    assert talk._encode([*talk.turns, messages[-1]]) == encode_prompt(talk.tokenizer, messages)


def test_an_answer_that_is_broken_off_is_remembered_as_far_as_it_came(folder):
    talk = conversation(folder)
    pieces = talk.answer("one")
    assert [next(pieces), next(pieces)] == ["Y", "e"]
    pieces.close()
    assert [turn["content"] for turn in talk.turns] == ["one", "Ye"]


def test_the_same_question_may_get_another_answer(folder):
    talk = conversation(folder, SamplingParams(max_new_tokens=20))  # the chain is likely, not certain
    talk.model.lm_head.weight.data /= 4
    assert len({"".join(talk.answer("one")) for _ in range(2)}) == 2


def test_the_oldest_turns_go_when_the_context_is_full(capsys, folder):
    talk = conversation(folder, system="Be brief.")  # 64 positions
    for text in ("first message", "2nd message", "third"):
        assert "".join(talk.answer(text)) == "Yes\nNo!"
    # The second prompt would take 50 tokens, more than 64 - 20, so the first turn went; the third takes 42.
    assert [turn["content"] for turn in talk.turns[::2]] == ["2nd message", "third"]
    assert capsys.readouterr().err.count("oldest 1 turn(s) are forgotten") == 1


def test_a_message_longer_than_the_context_is_refused_and_nothing_forgotten(folder):
    talk = conversation(folder)
    "".join(talk.answer("one"))
    with pytest.raises(UsageError, match="takes 83 tokens.*reads 63"):
        "".join(talk.answer("x" * 80))
    assert len(talk.turns) == 2


class Terminal:
    """`chat` in a process of its own, on a pseudo-terminal."""

    def __init__(self, folder: str) -> None:
        code = (
            "import sys; from chatpipe.generation.chat_loop import chat;"
            "chat(sys.argv[1], {'max_new_tokens': 10**6, 'temperature': 0}, seed=0)"
        )
        self.screen, inside = pty.openpty()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, folder], stdin=inside, stdout=inside, stderr=inside, env=environment
        )
        os.close(inside)
        self.shown = ""

    def wait_for(self, text: str, seconds: float = 90) -> None:
        """Read until `text` is shown after what was waited for before."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < deadline, f"{text!r} did not come: {self.shown[-500:]!r}"
            if select.select([self.screen], [], [], 0.2)[0]:
                self.shown += os.read(self.screen, 4096).decode(errors="replace")
        self.shown = self.shown.split(text, 1)[1]

    def type(self, line: str) -> None:
        os.write(self.screen, line.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.screen)


@pytest.fixture
def terminal(tmp_path):
    opened = Terminal(save_model(tmp_path, "abcdefgh", ends=False, positions=30_000))
    yield opened
    opened.close()


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal):
    terminal.wait_for("> ")
    terminal.type("hello\n")
    terminal.wait_for("abcdefghabcdefgh")
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("(stopped)")
    terminal.wait_for("> ")
    terminal.type("again\n")
    terminal.wait_for("abcdefghabcdefgh")
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("(stopped)")
    terminal.wait_for("> ")
    terminal.process.send_signal(signal.SIGINT)
    terminal.type("\n")  # wakes a readline that got the signal before it began to wait for keys
    assert terminal.process.wait(60) == 0
