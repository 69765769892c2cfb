import hashlib
import json

import pytest

from chatpipe import __version__
from chatpipe.errors import UsageError
from chatpipe.models.manifest import Manifest, checkpoint_id, read_manifest, write_manifest


def manifest(**changes: object) -> Manifest:
    values = {
        "stage": "sft",
        "parents": {"sft.model": "a" * 64},
        "data": {"sft.data": {"chats.jsonl": "b" * 64 + " auto None"}},
        "settings": {"seed": 0, "sft.learning_rate": 1e-5, "sft.model": None},
        "seed": 0,
        "processes": 1,
    }
    return Manifest(**{**values, **changes})


@pytest.fixture
def folder(tmp_path):
    """A model folder with weights, a configuration, a card, metrics and a log."""
    for name in ("config.json", "model.safetensors", "README.md", "metrics.jsonl", "launch.log"):
        (tmp_path / name).write_text(f"content of {name}")
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def test_a_manifest_is_read_as_it_was_written_with_the_hash_of_each_file(folder):
    written = manifest(metrics={"eval_loss": 1.5}, verdict={"status": "pass", "reasons": ["größer"]}, seconds=2.5)
    write_manifest(folder, written)
    assert read_manifest(folder) == written
    assert written.files == {
        name: hashlib.sha256(f"content of {name}".encode()).hexdigest()
        for name in ("README.md", "config.json", "model.safetensors")
    }
    assert written.versions["chatpipe"] == __version__
    assert {"python", "torch", "transformers"} <= set(written.versions)
    assert sorted(path.name for path in folder.iterdir() if "chatpipe" in path.name) == ["chatpipe.json"]


def test_a_folder_without_a_manifest_is_not_finished(folder):
    assert read_manifest(folder) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stage": "sft"}', '{"colour": "red"}'])
def test_a_damaged_manifest_is_a_user_error(folder, text):
    (folder / "chatpipe.json").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_manifest(folder)
    assert str(folder / "chatpipe.json") in caught.value.message
    assert "--fresh" in caught.value.hint


def test_how_a_result_was_measured_makes_no_other_checkpoint_but_is_known():
    before = manifest(evaluation={"evaluation.prompts": 200, "evaluation.temperature": 0.0})
    now = {"evaluation.prompts": 50, "evaluation.temperature": 0.0}
    assert before.differences(manifest(evaluation=now)) == []
    assert before.measured_otherwise(now) == ["evaluation.prompts was 200, is 50 now"]
    assert before.measured_otherwise(before.evaluation) == []


def test_differences_name_what_changed_and_nothing_else():
    before = manifest(metrics={"eval_loss": 1.0}, seconds=3.0)
    assert before.differences(manifest(processes=2)) == []
    settings = {"seed": 1, "sft.max_length": 64, "sft.learning_rate": 1e-5, "sft.model": None}
    assert before.differences(manifest(settings=settings)) == [
        "seed was 0, is 1 now",
        "sft.max_length was not set, is 64 now",
    ]
    other = manifest(parents={"sft.model": "c" * 64}, data={"sft.data": {"more.jsonl": "d" * 64}})
    assert before.differences(other) == [
        f"the model given as sft.model was {'a' * 21}..., is {'c' * 21}... now",
        f"sft.data (chats.jsonl) was {'b' * 21}..., is not set now",
        f"sft.data (more.jsonl) was not set, is {'d' * 21}... now",
    ]


def test_the_fingerprint_is_that_of_what_decides_what_comes_out():
    same = manifest(metrics={"eval_loss": 1.0}, seconds=3.0, processes=2, evaluation={"evaluation.prompts": 9})
    assert manifest().fingerprint == same.fingerprint
    others = [
        manifest(parents={"sft.model": "a" * 63 + "b"}),
        manifest(data={"sft.data": {"chats.jsonl": "b" * 64 + " auto 3"}}),
        manifest(settings={"seed": 1}),
    ]
    assert len({manifest().fingerprint, *(other.fingerprint for other in others)}) == 4


def test_models_of_the_hub_whose_names_have_the_same_beginning_are_distinguished():
    before, now = (manifest(parents={"sft.model": f"Qwen/Qwen3-0.6B{end}"}) for end in ("", "-Base"))
    assert before.differences(now) == ["the model given as sft.model was Qwen/Qwen3-0.6B, is Qwen/Qwen3-0.6B-Base now"]


@pytest.mark.parametrize(
    "how, told",
    [
        ("auto None weight=2.0", "was not set, is weight=2.0 now"),
        ("auto 30", "was limit None, is limit 30 now"),
        ("text 30", "was format auto, limit None, is format text, limit 30 now"),
        ("auto None columns={'text': ['a', 'b']}", "was not set, is columns={'text': ['a', 'b']} now"),
    ],
)
def test_files_that_are_read_otherwise_are_named_with_what_differs(how, told):
    data = {"sft.data": {"chats.jsonl": "b" * 64 + f" {how}"}}
    assert manifest().differences(manifest(data=data)) == [f"sft.data (chats.jsonl) {told}"]


def test_settings_with_the_same_beginning_are_shown_from_where_they_differ():
    before, now = manifest(settings={"x": "y" * 40}), manifest(settings={"x": "y" * 41})
    assert before.differences(now) == ["x was ... yyyyyyyy, is ... yyyyyyyyy now"]


def test_differences_survive_being_written_down(folder):
    mine = manifest(settings={"seed": 0, "sft.learning_rate": 3e-3, "sft.beta": (0.9, 0.95), "sft.bf16": True})
    mine.settings["sft.beta"] = list(mine.settings["sft.beta"])
    write_manifest(folder, mine)
    again = read_manifest(folder)
    assert again is not None
    assert again.differences(mine) == []


def test_the_id_of_a_checkpoint_is_its_content_in_any_place(folder, tmp_path_factory):
    write_manifest(folder, manifest())
    before = checkpoint_id(str(folder))
    copy = tmp_path_factory.mktemp("copy")
    for path in folder.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    assert checkpoint_id(str(copy)) == before

    (folder / "recipe.yaml").write_text("out: elsewhere")  # which the processes of the step read
    (folder / "README.md").write_text("a better card")
    write_manifest(folder, manifest(seconds=9.0))
    assert checkpoint_id(str(folder)) == before
    (folder / "model.safetensors").write_text("other weights")
    write_manifest(folder, manifest())
    assert checkpoint_id(str(folder)) != before


def test_a_folder_that_chatpipe_did_not_make_has_an_id_too(folder):
    before = checkpoint_id(str(folder))
    (folder / "notes.txt").write_text("nothing to do with the model")
    assert checkpoint_id(str(folder)) == before
    (folder / "model.safetensors").write_text("other weights")
    assert checkpoint_id(str(folder)) != before


def test_a_hub_id_is_its_own_id():
    assert checkpoint_id("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


def test_a_manifest_is_plain_json(folder):
    write_manifest(folder, manifest())
    assert json.loads((folder / "chatpipe.json").read_text(encoding="utf-8"))["stage"] == "sft"
