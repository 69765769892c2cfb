"""The rankings that a run makes: by whom, from which prompts, and that nothing which people ranked is ever lost."""

import json
import shutil
import sys
from unittest import mock

import pytest
from own_files import asked, write_rows

from chatpipe.data.locking import alone_with
from chatpipe.ranking.items import Item, item_id, read_items
from chatpipe.ranking.session import Session
from chatpipe.ranking.store import Store
from chatpipe.stages import rankings_of_run as ranking


@pytest.fixture
def folder(tiny_run, work):
    """The tiny run before its first reward model, without rankings."""
    shutil.copytree(tiny_run.folder, work / "run")
    for name in ("rm", "ppo", "rankings"):
        shutil.rmtree(work / "run" / name)
    return work / "run"


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


def beside(folder, suffix):
    return folder / "rankings" / f"round-1.{suffix}"


def rows_of(path):
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def manifest(folder):
    return json.loads((folder / "chatpipe.json").read_text())


def by_length(view):
    shortest_first = sorted(view.responses, key=lambda text: (len(text), text))
    return {**view.answer, "ranks": [shortest_first.index(text) + 1 for text in view.responses]}


def rank(folder, annotator="ann", tasks=None, skipped=()):
    """Ranks `tasks` tasks, or all, the shorter answer first; those at the places `skipped` are skipped."""
    items = read_items(beside(folder, "completions.jsonl"))
    with Store.create_or_open(beside(folder, "db"), items, seed=0, overlap=9, repeats=0.05) as store:
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


def test_a_run_waits_for_people_and_goes_on_when_they_have_ranked(folder, chatpipe):
    command = ("run", folder / "recipe.yaml", f"out={folder}", "rank.rater=people", "sample.prompts=40", "--json")
    waiting = chatpipe(*command)
    assert waiting.code == 3
    items = read_items(beside(folder, "completions.jsonl"))
    told = f"Round 1 waits for people: 0 of {len(items)} prompts are ranked."
    assert told in waiting.err
    assert f"chatpipe rank {beside(folder, 'completions.jsonl')} --store {beside(folder, 'db')}" in waiting.err
    said = json.loads(waiting.out)
    assert [stage["stage"] for stage in said["stages"]] == ["pretrain", "sft"]
    assert said["waiting"].startswith(told)

    rank(folder, tasks=7)
    assert f"7 of {len(items)} prompts are ranked" in chatpipe(*command).err
    rank(folder, skipped=(9,))
    done = chatpipe(*command)
    assert [stage["stage"] for stage in done.object["stages"]] == ["pretrain", "sft", "rm", "ppo"]
    rankings = rows_of(beside(folder, "jsonl"))
    assert len(rankings) == len(items) - 1
    assert {row["annotator"] for row in rankings} == {"ann"}
    for row in rankings:
        lengths = [len(text) for text in row["responses"]]
        assert [lengths[i] for i in sorted(range(len(lengths)), key=row["ranks"].__getitem__)] == sorted(lengths)

    # What people rank later is told, and taken in when asked for; nothing else changes by itself.
    rank(folder, "ben")
    outside = ("rm", folder / "recipe.yaml", f"out={folder}", "--out", folder / "another", "rm.num_train_epochs=1")
    assert chatpipe(*outside).code == 0
    assert rows_of(beside(folder, "jsonl")) == rankings
    again = chatpipe(*command)
    assert all(stage["skipped"] for stage in again.object["stages"])
    assert "people have ranked on since round 1 was trained" in again.err
    store = beside(folder, "db").read_bytes()
    beside(folder, "db").write_bytes(b"damaged" * 1000)
    damaged = chatpipe(*command)
    assert all(stage["skipped"] for stage in damaged.object["stages"])
    assert f"rm: {beside(folder, 'db')} is no store" in damaged.err
    beside(folder, "db").write_bytes(store)
    fresh = chatpipe("rm", folder / "recipe.yaml", f"out={folder}", "--fresh", "--json")
    assert fresh.object["metrics"]["train_rankings"] > done.object["stages"][2]["metrics"]["train_rankings"]
    assert {row["annotator"] for row in rows_of(beside(folder, "jsonl"))} == {"ann", "ben"}


def test_one_stage_that_waits_says_so_in_its_json(folder, command, chatpipe):
    said = chatpipe(*command, "--json")
    assert said.code == 3
    told = json.loads(said.out)
    assert (told["stage"], told["out"]) == ("rm", f"{folder}/rm")
    assert told["waiting"].startswith("Round 1 waits for people: 0 of")


def test_people_who_skipped_all_are_told_how_to_go_on(folder, command, chatpipe):
    assert chatpipe(*command).code == 3
    rank(folder, skipped=range(100))
    said = chatpipe(*command, "--json")
    assert (said.code, said.out) == (2, "")
    assert "error: rank: every prompt of round 1 was skipped, which leaves nothing to learn from." in said.err
    assert f"`chatpipe rank {beside(folder, 'completions.jsonl')} --store {beside(folder, 'db')}`" in said.err
    assert not beside(folder, "jsonl").exists()


def test_programs_do_not_count_as_people(folder, command, chatpipe):
    """pocketworld ranks by the world that the answering model knows, which is not that of the packaged recipe."""
    assert chatpipe(*command).code == 3
    completions, store = beside(folder, "completions.jsonl"), beside(folder, "db")
    assert chatpipe("rank", completions, "--rater", "pocketworld", "--store", store).code == 0
    assert "waits for people: 0 of" in chatpipe(*command).err
    rank(folder)
    assert chatpipe(*command).code == 0
    assert {row["annotator"] for row in rows_of(beside(folder, "jsonl"))} == {"ann"}


def test_what_people_ranked_is_neither_sampled_anew_nor_ranked_by_a_program_nor_deleted(folder, command, chatpipe):
    assert chatpipe(*command).code == 3
    assert chatpipe(*command, "sample.prompts=30").code == 3  # nobody has ranked yet
    rank(folder, tasks=3)
    completions, store = beside(folder, "completions.jsonl"), beside(folder, "db")
    before = completions.read_bytes()
    other = chatpipe(*command, "sample.prompts=30", "sample.temperature=0.5")
    assert other.code == 2
    assert "was sampled in another way" in other.err
    assert f"ann ranked it in {store}" in other.err
    assert f"chatpipe rankings export {store} -o FILE" in other.err
    program = chatpipe(*command, "sample.prompts=30", "rank.rater=pocketworld")
    assert program.code == 2
    assert "rank.rater = pocketworld would rank" in program.err
    fresh = chatpipe(*command, "sample.prompts=30", "--fresh")
    assert f"3 of {len(before.splitlines())} prompts are ranked" in fresh.err
    assert completions.read_bytes() == before
    everything = chatpipe("run", *command[1:], "sample.prompts=30", "--fresh")
    assert everything.code == 2
    assert "--fresh makes all models anew, but ann ranked answers of these" in everything.err
    assert (folder / "sft" / "chatpipe.json").exists()
    assert completions.read_bytes() == before

    # Moved aside, they are none of the run's files any more.
    aside = [
        path.rename(path.with_name(path.name.replace("round-1.", "round-1.people."))) for path in (completions, store)
    ]
    kept = [path.read_bytes() for path in aside]
    assert "0 of" in chatpipe(*command, "sample.prompts=30", "sample.temperature=0.5").err
    assert "0 of" in chatpipe(*command, "sample.prompts=30", "sample.temperature=0.6").err
    assert [path.read_bytes() for path in aside] == kept


def test_a_store_in_use_is_not_deleted_nor_any_model(folder, command, chatpipe):
    assert chatpipe(*command).code == 3
    with alone_with(beside(folder, "db")):
        for refused in (chatpipe(*command, "sample.prompts=30"), chatpipe("run", *command[1:], "--fresh")):
            assert refused.code == 2
            assert f"Another chatpipe writes to {beside(folder, 'db')}" in refused.err
    assert (folder / "sft" / "chatpipe.json").exists()


def test_a_store_of_other_answers_is_refused(folder, command, chatpipe):
    assert chatpipe(*command).code == 3
    prompt, responses = [{"role": "user", "content": "Who?"}], ["I.", "You."]
    items = [Item(item_id(prompt, responses), prompt, responses)]
    Store.create_or_open(beside(folder, "db"), items, seed=0, overlap=1, repeats=0).close()
    said = chatpipe(*command)
    assert said.code == 2
    assert f"{beside(folder, 'db')} ranks other answers than {beside(folder, 'completions.jsonl')}" in said.err


def test_prompts_of_a_file_are_ranked_by_the_user_s_own_function(folder, work, rater, chatpipe):
    """Some prompts are held out of training, and what decided the rankings is noted and compared."""
    write_rows(work / "prompts.jsonl", [{"prompt": one.question} for one in asked()[:120]])
    command = ["rm", folder / "recipe.yaml", f"out={folder}", "rank.rater=liking_short:score", "--json"]
    command += ["sample.data=prompts.jsonl", "sample.prompts=120", "rm.num_train_epochs=1"]
    made = chatpipe(*command)
    assert made.object["metrics"]["eval_pairs"] > 0
    noted = manifest(folder / "rm")["data"]
    assert list(noted["sample.data"]) == ["prompts.jsonl"]
    assert list(noted["rank.rater"]) == ["liking_short:score"]
    rankings = beside(folder, "jsonl").read_bytes()

    rater.write_text(rater.read_text().replace("-len", "len"))
    said = chatpipe(*command)
    assert said.code == 2
    assert f"{folder}/rm holds another rm:\nrank.rater (liking_short:score) was" in said.err
    assert beside(folder, "jsonl").read_bytes() == rankings
    rater.write_text(rater.read_text().replace("len", "-len"))
    assert chatpipe(*command).object["skipped"]

    write_rows(work / "prompts.jsonl", [{"prompt": one.question} for one in asked()[100:220]])
    said = chatpipe(*command)
    assert said.code == 2
    assert "sample.data (prompts.jsonl) was" in said.err
    assert beside(folder, "jsonl").read_bytes() == rankings


def test_a_stage_outside_of_the_run_learns_from_its_rankings_and_replaces_none(folder, work, chatpipe):
    outside = ("rm", folder / "recipe.yaml", f"out={folder}", "--out", work / "elsewhere", "rm.num_train_epochs=1")
    assert chatpipe(*outside).code == 0
    rankings = beside(folder, "jsonl").read_bytes()
    said = chatpipe(*outside, "rank.temperature=2", "--fresh")
    assert said.code == 2
    assert f"{beside(folder, 'jsonl')} was made in another way" in said.err
    assert beside(folder, "jsonl").read_bytes() == rankings

    # A note that a disk has damaged is no bug of ours: the rankings are made anew, to the same.
    beside(folder, "json").write_text('{"mod')
    assert chatpipe("rm", folder / "recipe.yaml", f"out={folder}", "rm.num_train_epochs=1").code == 0
    assert beside(folder, "jsonl").read_bytes() == rankings


def test_rankings_that_a_kill_left_without_their_note_are_not_taken_for_others(folder, work, chatpipe, monkeypatch):
    command = ("rm", folder / "recipe.yaml", f"out={folder}", "sample.prompts=40", "rm.num_train_epochs=1")
    assert chatpipe(*command).code == 0
    rankings = beside(folder, "jsonl").read_bytes()
    shutil.rmtree(folder / "rm")
    written = ranking.replace_text

    def killed_after_the_rankings(path, text):
        written(path, text)
        if path == beside(folder, "jsonl"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ranking, "replace_text", killed_after_the_rankings)
        assert chatpipe(*command, "rank.temperature=5").code == 130
    assert beside(folder, "jsonl").read_bytes() != rankings
    assert chatpipe(*command).code == 0
    assert beside(folder, "jsonl").read_bytes() == rankings


@pytest.mark.parametrize("function", ["_clear_store", "_sample"])
def test_two_raters_are_never_mixed(folder, rater, chatpipe, monkeypatch, function):
    """A command for another rater that breaks off before or behind the deletion of the first one's store."""
    command = ("rm", folder / "recipe.yaml", f"out={folder}", "sample.prompts=40", "rm.num_train_epochs=1")
    assert chatpipe(*command).code == 0
    shutil.rmtree(folder / "rm")
    other = (*command, "rank.rater=liking_short:score")
    with monkeypatch.context() as patch:
        patch.setattr(ranking, function, mock.Mock(side_effect=KeyboardInterrupt))
        assert chatpipe(*other).code == 130
    assert chatpipe(*other).code == 0
    assert {row["annotator"] for row in rows_of(beside(folder, "jsonl"))} == {"liking_short:score"}


def test_a_killed_rater_goes_on_where_it_was(folder, rater, chatpipe):
    """Also where other answers had been ranked before, whose files are gone then."""
    before = ("rm", folder / "recipe.yaml", f"out={folder}", "sample.prompts=30", "rm.num_train_epochs=1")
    assert chatpipe(*before).code == 0
    shutil.rmtree(folder / "rm")
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
    answers = sum(len(row["responses"]) for row in rows_of(beside(folder, "jsonl")))
    stored = sum(len(row["responses"]) for row in rows_of(beside(folder, "jsonl"))[:64])
    assert len(calls.read_text()) - asked == answers - stored


def test_people_may_rank_prompts_of_the_built_in_world_and_others(folder, work, command, chatpipe):
    write_rows(work / "prompts.jsonl", [{"prompt": one.question} for one in asked()[:60]])
    mixed = (*command, "sample.data=prompts.jsonl,pocketworld", "sample.prompts=80", "rm.num_train_epochs=1")
    assert chatpipe(*mixed).code == 3
    rank(folder)
    assert "annotator_agreement" not in chatpipe(*mixed, "--json").object["metrics"]


def test_the_files_that_a_run_writes_are_not_what_it_reads(folder, chatpipe):
    beside(folder, "jsonl").parent.mkdir()
    rows = [{"prompt": one.question, "chosen": one.right, "rejected": one.wrong} for one in asked()]
    write_rows(beside(folder, "jsonl"), rows)
    for source in (beside(folder, "jsonl"), folder / "rankings", folder / "rankings" / "*.jsonl"):
        said = chatpipe("run", folder / "recipe.yaml", f"out={folder}", f"rm.data={source}", "rounds=2")
        assert said.code == 2
        assert f"rm.data = {source} is, or holds, {beside(folder, 'jsonl')}, into which this run writes" in said.err
