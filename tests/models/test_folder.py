import pytest

from chatpipe.errors import UsageError
from chatpipe.models.model_folder import check_model, looks_like_path, model_kind
from stub_models import write_stub_model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Makes a model folder whose configuration names `architecture`; the path is relative, as people type it."""
    monkeypatch.chdir(tmp_path)

    def folder(architecture: str | None, name: str = "out/model") -> str:
        write_stub_model(name, architecture or "")
        if architecture is None:
            (tmp_path / name / "config.json").write_text("{}")
        return name

    return folder


def problem_of(check, *arguments: str) -> str:
    with pytest.raises(UsageError) as caught:
        check(*arguments)
    return f"{caught.value.message}\n{caught.value.hint}"


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("GPT2LMHeadModel", "causal"),
        ("Qwen3ForCausalLM", "causal"),
        ("Gemma3ForConditionalGeneration", "causal"),
        ("GPT2ForSequenceClassification", "reward"),
        ("ModernBertForMaskedLM", "masked"),
    ],
)
def test_the_kind_of_a_model_is_read_from_its_config(folder, architecture, kind):
    model = folder(architecture)
    assert model_kind(model, "sft.model") == kind
    check_model(model, kind, "sft.model")
    other = "reward" if kind == "causal" else "causal"
    assert f"sft.model = {model} is a" in problem_of(check_model, model, other, "sft.model")


def test_a_wrong_kind_is_named_with_what_is_needed_and_who_makes_it(folder):
    told = problem_of(check_model, folder("GPT2ForSequenceClassification"), "causal", "ppo.model")
    assert "ppo.model = out/model is a reward model, but a causal language model is needed there." in told
    assert "chatpipe sft" in told
    told = problem_of(check_model, folder("GPT2LMHeadModel"), "reward", "ppo.reward_model")
    assert "ppo.reward_model = out/model is a causal language model, but a reward model is needed there." in told
    assert "chatpipe rm" in told


@pytest.mark.parametrize("architecture", ["BertModel", None])
def test_a_model_of_no_known_kind_is_refused(folder, architecture):
    told = problem_of(model_kind, folder(architecture), "sft.model")
    assert f"sft.model = out/model holds a {architecture or 'none'}" in told


def test_a_folder_that_is_no_model_is_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "sft.model = empty is not a model folder: it has no config.json." in problem_of(
        check_model, "empty", "causal", "sft.model"
    )
    model = folder("GPT2LMHeadModel")
    (tmp_path / model / "model.safetensors").unlink()
    assert "sft.model = out/model is not a complete model folder: it has no weights." in problem_of(
        check_model, model, "causal", "sft.model"
    )
    (tmp_path / model / "config.json").write_text("{")
    assert "out/model/config.json is not JSON" in problem_of(check_model, model, "causal", "sft.model")


@pytest.mark.parametrize("missing", ["./no", "/no/where", "~/no-such-model", "a/b/c", "out/sfd"])
def test_a_missing_folder_is_not_taken_for_a_hub_id(folder, missing):
    folder("GPT2LMHeadModel", "out/sft")
    assert f"rm.model = {missing}: there is no such folder." in problem_of(check_model, missing, "causal", "rm.model")


def test_a_hub_id_is_taken_on_trust(folder):
    for name in ("gpt2", "Qwen/Qwen3-0.6B"):
        assert not looks_like_path(name)
        check_model(name, "causal", "sft.model")
    folder("GPT2ForSequenceClassification", "gpt2")
    assert looks_like_path("gpt2")  # a folder of that name wins
    assert "reward model" in problem_of(check_model, "gpt2", "causal", "sft.model")
