"""The rankings that a run makes: by whom, from which prompts, and that nothing which people ranked is ever lost."""

import json
import shutil
import sys
from unittest import mock

import pytest
from own_files import asked, write_rows

from chatpipe.data.durable import file_lock
from chatpipe.ranking.items import Item, item_id, read_items
from chatpipe.ranking.session import Session
from chatpipe.ranking.store import Store
from chatpipe.run import folder as folders
from chatpipe.stages import rank as rank_stage
from chatpipe.stages import sample as sample_stage


def copy_without_rankings(run, folder):
    """Copies a run as it is before its first reward model."""
    shutil.copytree(run, folder, ignore=lambda path, names: {"sample", "rank", "rm", "ppo"} if path == str(run) else ())
    return folder


@pytest.fixture
def folder(tiny_run, work):
    """The tiny run before its first reward model, without rankings."""
    return copy_without_rankings(tiny_run.folder, work / "run")


@pytest.fixture
def command(folder):
    """What runs rm of that run, as people rank it."""
    return ("rm", folder / "recipe.yaml", f"out={folder}", "rank.rater=people", "sample.prompts=40")


@pytest.fixture
def rater(work, monkeypatch):
    """A module of the user's own whose `score` likes short answers."""
    monkeypatch.syspath_prepend(work)
    monkeypatch.delitem(sys.modules, "liking_short", raising=False)  # that of another test
    file = work / "liking_short.py"
    file.write_text("def score(prompts, completions):\n    return [-len(text) for text in completions]\n")
    return file


def completions_of(folder):
    return folder / "sample" / "completions.jsonl"


def rankings_of(folder):
    return folder / "rank" / "rankings.jsonl"


def store_of(folder):
    return folder / "rank" / "rankings.db"


def rows_of(path):
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def manifest(folder):
    return json.loads((folder / "chatpipe.json").read_text())


def by_length(view):
    shortest_first = sorted(view.responses, key=lambda text: (len(text), text))
    return {**view.answer, "ranks": [shortest_first.index(text) + 1 for text in view.responses]}


def rank(folder, annotator="ann", tasks=None, skipped=()):
    """Ranks `tasks` tasks, or all, the shorter answer first; those at the places `skipped` are skipped."""
    items = read_items(completions_of(folder))
    with Store.create_or_open(store_of(folder), items, seed=0, overlap=9, repeats=0.05) as store:
        store.add_annotator(annotator, "person")
        session = Session(store, annotator)
        view = session.view()
        while view.task is not None and view.done != tasks:
            key = f"key {view.done}"
            if view.done in skipped:
                view = session.act(key, "skip", view.task, None, "both are nonsense")
            else:
                view = session.act(key, "submit", view.task, by_length(view))
    return items


def test_a_run_waits_for_people_and_continues_when_they_have_ranked(folder, chatpipe):
    command = ("run", folder / "recipe.yaml", f"out={folder}", "rank.rater=people", "sample.prompts=40", "--json")
    waiting = chatpipe(*command)
    assert waiting.code == 3
    items = read_items(completions_of(folder))
    told = f"Round 1 waits for people: 0 of {len(items)} prompts are ranked."
    assert told in waiting.err
    assert f"chatpipe rank {completions_of(folder)} --store {store_of(folder)}" in waiting.err
    said = json.loads(waiting.out)
    assert [stage["stage"] for stage in said["stages"]] == ["pretrain", "sft", "sample"]
    assert said["waiting"].startswith(told)

    rank(folder, tasks=7)
    assert f"7 of {len(items)} prompts are ranked" in chatpipe(*command).err
    rank(folder, skipped=(9,))
    done = chatpipe(*command)
    assert [stage["stage"] for stage in done.object["stages"]] == ["pretrain", "sft", "sample", "rank", "rm", "ppo"]
    rankings = rows_of(rankings_of(folder))
    assert len(rankings) == len(items) - 1
    assert {row["annotator"] for row in rankings} == {"ann"}
    for row in rankings:
        lengths = [len(text) for text in row["responses"]]
        assert [lengths[i] for i in sorted(range(len(lengths)), key=row["ranks"].__getitem__)] == sorted(lengths)

    # Later rankings are reported, and read when asked for; nothing else changes.
    rank(folder, "ben")
    outside = ("rm", folder / "recipe.yaml", f"out={folder}", "--out", folder / "another", "rm.num_train_epochs=1")
    assert chatpipe(*outside).code == 0
    assert rows_of(rankings_of(folder)) == rankings
    again = chatpipe(*command)
    assert all(stage["skipped"] for stage in again.object["stages"])
    assert "people have ranked on since round 1 was trained" in again.err
    store = store_of(folder).read_bytes()
    store_of(folder).write_bytes(b"damaged" * 1000)
    damaged = chatpipe(*command)
    assert all(stage["skipped"] for stage in damaged.object["stages"])
    assert f"rank: {store_of(folder)} is no store" in damaged.err
    store_of(folder).write_bytes(store)
    fresh = chatpipe("rm", folder / "recipe.yaml", f"out={folder}", "--fresh", "--json")
    assert fresh.object["metrics"]["train_rankings"] > done.object["stages"][4]["metrics"]["train_rankings"]
    assert {row["annotator"] for row in rows_of(rankings_of(folder))} == {"ann", "ben"}


def test_one_stage_that_waits_has_it_in_its_json(folder, command, chatpipe):
    said = chatpipe(*command, "--json")
    assert said.code == 3
    told = json.loads(said.out)
    assert (told["stage"], told["out"]) == ("rm", f"{folder}/rm")
    assert told["waiting"].startswith("Round 1 waits for people: 0 of")


def test_people_who_skipped_all_read_how_to_continue(folder, command, chatpipe):
    assert chatpipe(*command).code == 3
    rank(folder, skipped=range(100))
    said = chatpipe(*command, "--json")
    assert (said.code, said.out) == (2, "")
    assert "error: rank: every prompt of round 1 was skipped, which leaves nothing to learn from." in said.err
    assert f"`chatpipe rank {completions_of(folder)} --store {store_of(folder)}`" in said.err
    assert not rankings_of(folder).exists()


def test_programs_do_not_count_as_people(folder, command, chatpipe):
    """pocketworld ranks by the world that the answering model knows, which is not that of the packaged recipe."""
    assert chatpipe(*command).code == 3
    completions, store = completions_of(folder), store_of(folder)
    assert chatpipe("rank", completions, "--rater", "pocketworld", "--store", store).code == 0
    assert "waits for people: 0 of" in chatpipe(*command).err
    rank(folder)
    assert chatpipe(*command).code == 0
    assert {row["annotator"] for row in rows_of(rankings_of(folder))} == {"ann"}


def test_what_people_ranked_is_neither_sampled_again_nor_ranked_by_a_program_nor_deleted(folder, command, chatpipe):
    assert chatpipe(*command).code == 3
    other = chatpipe(*command, "sample.prompts=30")
    assert other.code == 2
    assert "sample.prompts was 40, is 30 now" in other.err
    assert chatpipe(*command, "sample.prompts=30", "--fresh").code == 3  # nobody has ranked yet
    rank(folder, tasks=3)
    completions, store = completions_of(folder), store_of(folder)
    before = completions.read_bytes()
    other = ("sample.prompts=30", "sample.temperature=0.5")
    for more in ((), ("--fresh",)):
        said = chatpipe(*command, *other, *more)
        assert said.code == 2
        assert "sample.temperature was 1.0, is 0.5 now" in said.err
        program = chatpipe(*command, "sample.prompts=30", "rank.rater=pocketworld", *more)
        assert program.code == 2
        assert ("rank.rater = pocketworld would replace" if more else "rank.rater was people, is pocketworld now") in (
            program.err
        )
    assert f"ann ranked in {store}" in program.err
    assert f"chatpipe rankings export {store} -o FILE" in program.err
    fresh = chatpipe(*command, "sample.prompts=30", "--fresh")
    assert f"3 of {len(before.splitlines())} prompts are ranked" in fresh.err
    assert completions.read_bytes() == before
    everything = chatpipe("run", *command[1:], "sample.prompts=30", "--fresh")
    assert everything.code == 2
    assert "--fresh trains all models again, but ann ranked answers of these" in everything.err
    assert (folder / "sft" / "chatpipe.json").exists()
    assert completions.read_bytes() == before

    # Moved aside, they are none of the run's files any more.
    kept = store.rename(folder / "people.db").read_bytes()
    assert "0 of" in chatpipe(*command, *other, "--fresh").err
    assert completions.read_bytes() != before
    assert (folder / "people.db").read_bytes() == kept


def test_a_store_in_use_is_not_deleted_nor_any_model(folder, command, chatpipe):
    assert chatpipe(*command).code == 3
    with file_lock(store_of(folder)):
        for refused in (chatpipe(*command, "--fresh"), chatpipe("run", *command[1:], "--fresh")):
            assert refused.code == 2
            assert f"Another chatpipe writes to {store_of(folder)}" in refused.err
    assert (folder / "sft" / "chatpipe.json").exists()


def test_a_store_of_other_answers_is_refused(folder, command, chatpipe):
    assert chatpipe(*command).code == 3
    prompt, responses = [{"role": "user", "content": "Who?"}], ["I.", "You."]
    items = [Item(item_id(prompt, responses), prompt, responses)]
    Store.create_or_open(store_of(folder), items, seed=0, overlap=1, repeats=0).close()
    said = chatpipe(*command)
    assert said.code == 2
    assert f"{store_of(folder)} ranks other answers than {completions_of(folder)}" in said.err


def test_prompts_of_a_file_are_ranked_by_the_user_s_own_function(folder, work, rater, chatpipe):
    """Some prompts are for validation, and what decided the rankings is noted and compared."""
    write_rows(work / "prompts.jsonl", [{"prompt": one.question} for one in asked()[:120]])
    command = ["rm", folder / "recipe.yaml", f"out={folder}", "rank.rater=liking_short:score", "--json"]
    command += ["sample.data=prompts.jsonl", "sample.prompts=120", "rm.num_train_epochs=1"]
    made = chatpipe(*command)
    assert made.object["metrics"]["eval_pairs"] > 0
    assert list(manifest(folder / "sample")["data"]["sample.data"]) == ["prompts.jsonl"]
    assert list(manifest(folder / "rank")["data"]["rank.rater"]) == ["liking_short:score"]
    rankings = rankings_of(folder).read_bytes()

    rater.write_text(rater.read_text().replace("-len", "len"))
    said = chatpipe(*command)
    assert said.code == 2
    assert f"{folder}/rank holds another rank:\nrank.rater (liking_short:score) was" in said.err
    assert rankings_of(folder).read_bytes() == rankings
    rater.write_text(rater.read_text().replace("len", "-len"))
    assert chatpipe(*command).object["skipped"]

    write_rows(work / "prompts.jsonl", [{"prompt": one.question} for one in asked()[100:220]])
    said = chatpipe(*command)
    assert said.code == 2
    assert "sample.data (prompts.jsonl) was" in said.err
    assert rankings_of(folder).read_bytes() == rankings


def test_a_stage_outside_of_the_run_learns_from_its_rankings_and_replaces_none(folder, work, chatpipe):
    outside = ("rm", folder / "recipe.yaml", f"out={folder}", "--out", work / "elsewhere", "rm.num_train_epochs=1")
    assert chatpipe(*outside).code == 0
    rankings = rankings_of(folder).read_bytes()
    said = chatpipe(*outside, "rank.temperature=2", "--fresh")
    assert said.code == 2
    assert f"{folder}/rank holds another rank:\nrank.temperature was" in said.err
    assert rankings_of(folder).read_bytes() == rankings
    assert chatpipe(*outside, "--fresh").code == 0
    assert rankings_of(folder).read_bytes() == rankings


def killed_at(monkeypatch, module, name):
    """Has a function of chatpipe break off as Ctrl-C does."""
    monkeypatch.setattr(module, name, mock.Mock(side_effect=KeyboardInterrupt))


def rm_of_few_prompts(folder):
    return ("rm", folder / "recipe.yaml", f"out={folder}", "sample.prompts=40", "rm.num_train_epochs=1")


@pytest.fixture(scope="module")
def ranked_by_the_world(tiny_run, tmp_path_factory, chatpipe):
    """A run whose few answers its built-in world has ranked."""
    folder = copy_without_rankings(tiny_run.folder, tmp_path_factory.mktemp("ranked") / "run")
    assert chatpipe(*rm_of_few_prompts(folder)).code == 0
    return folder


@pytest.mark.parametrize(
    "module, function", [(folders, "delete_folder"), (sample_stage, "sample_share"), (rank_stage, "rank_with_program")]
)
def test_two_raters_are_never_mixed(ranked_by_the_world, work, rater, chatpipe, monkeypatch, module, function):
    """A command for another rater that breaks off before or behind the deletion of the first one's store."""
    folder = work / "run"
    shutil.copytree(ranked_by_the_world, folder)
    other = (*rm_of_few_prompts(folder), "rank.rater=liking_short:score")
    assert "rank.rater was pocketworld, is liking_short:score now" in chatpipe(*other).err
    with monkeypatch.context() as patch:
        killed_at(patch, module, function)
        assert chatpipe(*other, "--fresh").code == 130
    assert chatpipe(*other, "--fresh").code == 0
    assert {row["annotator"] for row in rows_of(rankings_of(folder))} == {"liking_short:score"}


@pytest.mark.parametrize(
    "module, function", [(sample_stage, "join_shares"), (rank_stage, "rank_with_program"), (rank_stage, "replace_text")]
)
def test_rankings_that_were_interrupted_end_the_same(folder, tiny_run, chatpipe, monkeypatch, module, function):
    command = ("rm", folder / "recipe.yaml", f"out={folder}", "rm.num_train_epochs=1")
    with monkeypatch.context() as patch:
        killed_at(patch, module, function)
        assert chatpipe(*command).code == 130
    assert chatpipe(*command).code == 0
    assert rankings_of(folder).read_bytes() == rankings_of(tiny_run.folder).read_bytes()
    assert completions_of(folder).read_bytes() == completions_of(tiny_run.folder).read_bytes()


def test_a_killed_rater_continues_where_it_was(folder, rater, chatpipe):
    command = ("rm", folder / "recipe.yaml", f"out={folder}", "rank.rater=liking_short:score", "sample.prompts=100")
    calls = rater.with_name("calls.txt")
    counted = f"    open({str(calls)!r}, 'a').write('x' * len(prompts))\n    return"
    rater.write_text(rater.read_text().replace("    return", counted))
    store_batch = Store.together

    def killed_behind_the_second_batch(self):
        if calls.exists() and len(calls.read_text()) > 2 * 32 * 4:
            raise KeyboardInterrupt
        return store_batch(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "together", killed_behind_the_second_batch)
        assert chatpipe(*command).code == 130
    asked = len(calls.read_text())
    assert chatpipe(*command).code == 0
    answers = sum(len(row["responses"]) for row in rows_of(rankings_of(folder)))
    stored = sum(len(row["responses"]) for row in rows_of(rankings_of(folder))[:64])
    assert len(calls.read_text()) - asked == answers - stored


def test_people_may_rank_prompts_of_the_built_in_world_and_others(folder, work, command, chatpipe):
    write_rows(work / "prompts.jsonl", [{"prompt": one.question} for one in asked()[:60]])
    mixed = (*command, "sample.data=prompts.jsonl,pocketworld", "sample.prompts=80", "rm.num_train_epochs=1")
    assert chatpipe(*mixed).code == 3
    rank(folder)
    assert "annotator_agreement" not in chatpipe(*mixed, "--json").object["metrics"]


def test_the_files_that_a_run_writes_are_not_what_it_reads(folder, chatpipe):
    rankings_of(folder).parent.mkdir()
    rows = [{"prompt": one.question, "chosen": one.right, "rejected": one.wrong} for one in asked()]
    write_rows(rankings_of(folder), rows)
    for source in (rankings_of(folder), folder / "rank", folder / "rank" / "*.jsonl"):
        said = chatpipe("run", folder / "recipe.yaml", f"out={folder}", f"rm.data={source}", "rounds=2")
        assert said.code == 2
        assert f"{folder}/rank" in said.err.splitlines()[0]
        assert "rm.data" in said.err or "which rank reads" in said.err
