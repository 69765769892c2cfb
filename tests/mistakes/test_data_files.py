"""Wrong data files: answered with file and line, before torch is imported where reading the file shows it."""

import gzip
import io

import pyarrow
import pytest
from pyarrow import parquet

from mistakes import Mistake, chat, chats, jsonl, pairs, ranking, turns

SFT = "chatpipe sft --model gpt2 --out tuned --data"
RM = "chatpipe rm --model gpt2 --out reward --data"
PPO = "chatpipe ppo --model gpt2 --reward gpt2 --out tuned --data"
PRETRAIN = "chatpipe pretrain --out base --data"


def parquet_file(rows: list[dict]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


SOURCES = [
    Mistake(
        "a file that there is not",
        f"{SFT} no.jsonl",
        "no.jsonl, sft.data",
    ),
    Mistake(
        "a pattern that fits nothing",
        f"{SFT} 'data/*.jsonl'",
        "data/*.jsonl, sft.data",
        {"data/a.parq": ""},
    ),
    Mistake(
        "an empty file",
        f"{SFT} a.jsonl",
        "a.jsonl, sft.data",
        {"a.jsonl": ""},
    ),
    Mistake(
        "blank lines",
        f"{SFT} a.jsonl",
        "a.jsonl, sft.data",
        {"a.jsonl": "\n\n"},
    ),
    Mistake(
        "a folder without files",
        f"{SFT} data",
        "sft.data",
        {"data/": ""},
    ),
    Mistake(
        "an unknown ending",
        f"{SFT} table.pdf",
        "table.pdf, sft.data",
        {"table.pdf": "a,b\n"},
    ),
    Mistake(
        "another way of packing",
        f"{SFT} a.jsonl.7z",
        "a.jsonl.7z, sft.data",
        {"a.jsonl.7z": "x"},
    ),
    Mistake(
        "the second of two files",
        f"{SFT} a.jsonl,b.jsonl",
        "sft.data, b.jsonl",
        {"a.jsonl": jsonl(chats(60))},
    ),
    Mistake(
        "a hub id without its prefix",
        f"{SFT} tatsu-lab/alpaca",
        "tatsu-lab/alpaca, sft.data",
    ),
    Mistake(
        "a tokenised text",
        f"{PRETRAIN} train.bin",
        "train.bin, pretrain.data",
        {"train.bin": b"\x01\x00"},
    ),
]

BYTES = [
    Mistake(
        "text that is not UTF-8",
        f"{SFT} a.jsonl",
        "a.jsonl, UTF-8, 21",
        {"a.jsonl": '{"question": "Wie groß?", "answer": "1"}\n'.encode("latin-1")},
    ),
    Mistake(
        "Latin-1",
        f"{PRETRAIN} a.txt",
        "a.txt, UTF-8, 4",
        {"a.txt": "Straße".encode("latin-1")},
    ),
    Mistake(
        "a binary file",
        f"{PRETRAIN} a.txt",
        "a.txt",
        {"a.txt": b"some\0text"},
    ),
    Mistake(
        "gzip that breaks off",
        f"{SFT} a.jsonl.gz",
        "a.jsonl.gz",
        {"a.jsonl.gz": gzip.compress(jsonl(chats(600)).encode(), mtime=0)[:-100]},
    ),
    Mistake(
        "gzip that is none",
        f"{SFT} a.jsonl.gz",
        "a.jsonl.gz",
        {"a.jsonl.gz": jsonl(chats(60))},
    ),
    Mistake(
        "parquet that breaks off",
        f"{SFT} a.parquet",
        "a.parquet",
        {"a.parquet": parquet_file(pairs(60))[:-100]},
    ),
    Mistake(
        "parquet that is none",
        f"{SFT} a.parquet",
        "a.parquet",
        {"a.parquet": jsonl(chats(60))},
    ),
]

SYNTAX = [
    Mistake(
        "lines that are not JSON",
        f"{SFT} a.jsonl",
        "sft.data, 1, a.jsonl:61, 15 -> max_skipped",
        {"a.jsonl": jsonl(chats(60)) + '{"messages": [}\n'},
    ),
    Mistake(
        "jsonl that is one list with a mistake in it",
        f"{SFT} a.jsonl",
        "a.jsonl:3, 13",
        {"a.jsonl": '[\n{"question": "a", "answer": "b"},\n{"question" "c", "answer": "d"}\n]\n'},
    ),
    Mistake(
        "a field that is there twice",
        f"{SFT} a.jsonl",
        "a.jsonl:61, answer",
        {"a.jsonl": jsonl(chats(60)) + '{"question": "a", "answer": "b", "answer": "c"}\n'},
    ),
    Mistake(
        "JSON with something behind it",
        f"{SFT} a.json",
        "a.json:2, 4",
        {"a.json": '[{"question": "a", "answer": "b"},\n{}] and'},
    ),
    Mistake(
        "JSON with a mistake in it",
        f"{SFT} a.json",
        "a.json:3, 13",
        {"a.json": '[\n{"question": "a"},\n{"question" "b"}]'},
    ),
    Mistake(
        "JSON that is one object",
        f"{SFT} a.json",
        "a.json",
        {"a.json": '{"data": [{"question": "a", "answer": "b"}]}'},
    ),
    Mistake(
        "csv with more fields than names",
        f"{SFT} a.csv",
        "sft.data, 1, 2, a.csv:3 -> max_skipped",
        {"a.csv": "question,answer\na,b\nc,d,e\n"},
    ),
    Mistake(
        "csv with fewer fields than names",
        f"{SFT} a.csv",
        "sft.data, 1, 2, a.csv:3 -> max_skipped",
        {"a.csv": "question,answer\na,b\nc\n"},
    ),
    Mistake(
        "csv with an open quote",
        f"{SFT} a.csv",
        "a.csv:3",
        {"a.csv": 'question,answer\na,b\n"c,d\n'},
    ),
    Mistake(
        "csv with another delimiter",
        f"{SFT} a.csv",
        "a.csv:2, sft.data",
        {"a.csv": "question:answer\na:b\n"},
    ),
    Mistake(
        "csv with a column twice",
        f"{SFT} a.csv",
        "a.csv:1, answer",
        {"a.csv": "question,answer,answer\na,b,c\n"},
    ),
    Mistake(
        "csv of a header alone",
        f"{SFT} a.csv",
        "a.csv, sft.data",
        {"a.csv": "question,answer\n"},
    ),
    Mistake(
        "a list of texts",
        f"{SFT} a.json",
        "a.json, sft.data, 2, 1 -> max_skipped",
        {"a.json": '["Question?", "Answer."]'},
    ),
]

USE = [
    Mistake(
        "a whole run over one wrong file",
        "chatpipe run pocket sft.data=a.txt out=run",
        "a.txt, sft.data -> pretrain.data",
        {"a.txt": "Some text.\n"},
    ),
    Mistake(
        "fields that mean nothing to us",
        f"{SFT} a.jsonl",
        "a.jsonl:1, sft.data",
        {"a.jsonl": '{"q": "x", "a": "y"}\n'},
    ),
    Mistake(
        "columns that are not there",
        "chatpipe sft --model gpt2 --out tuned 'sft.data=[{source: a.jsonl, columns: {question: ask, answer: a}}]'",
        "sft.data, a.jsonl:1 -> max_skipped",
        {"a.jsonl": '{"q": "x", "a": "y"}\n'},
    ),
    Mistake(
        "text for sft",
        f"{SFT} a.jsonl",
        "a.jsonl, sft.data -> pretrain.data, prompt_completion, question_answer",
        {"a.jsonl": '{"text": "x"}\n'},
    ),
    Mistake(
        "running text for sft",
        f"{SFT} a.txt",
        "a.txt, sft.data -> pretrain.data",
        {"a.txt": "Some text.\n"},
    ),
    Mistake(
        "prompts for sft",
        f"{SFT} a.jsonl",
        "a.jsonl, sft.data -> ppo.data, prompt_completion, question_answer",
        {"a.jsonl": '{"prompt": "Question?"}\n'},
    ),
    Mistake(
        "conversations for rm",
        f"{RM} a.jsonl",
        "a.jsonl, rm.data -> sft.data, ppo.data",
        {"a.jsonl": jsonl(chats(60))},
    ),
    Mistake(
        "text for ppo",
        f"{PPO} a.jsonl",
        "a.jsonl, ppo.data -> pretrain.data, prompt_completion, question_answer",
        {"a.jsonl": '{"text": "x"}\n'},
    ),
    Mistake(
        "rankings for pretrain",
        f"{PRETRAIN} a.jsonl",
        "a.jsonl:1, pretrain.data, sft.data, rm.data, ppo.data",
        {"a.jsonl": jsonl([ranking(["a", "b"], [1, 2])])},
    ),
    Mistake(
        "conversations for pretrain",
        f"{PRETRAIN} a.jsonl",
        "a.jsonl:1, pretrain.data, sft.data, ppo.data",
        {"a.jsonl": jsonl(chats(60))},
    ),
    Mistake(
        "a format that the file has not",
        "chatpipe sft --model gpt2 --out tuned 'sft.data=[{source: a.jsonl, format: alpaca}]'",
        "sft.data, 60, a.jsonl:1 -> max_skipped",
        {"a.jsonl": jsonl(chats(60))},
    ),
    Mistake(
        "columns of running text",
        "chatpipe pretrain --out base 'pretrain.data=[{source: a.txt, columns: {text: content}}]'",
        "a.txt, pretrain.data",
        {"a.txt": "Some text.\n"},
    ),
]

CONVERSATIONS = [
    Mistake(
        "lists in lists without an end",
        f"{SFT} a.jsonl",
        "sft.data, a.jsonl:1 -> max_skipped",
        {"a.jsonl": '{"messages": ' + "[" * 100_000 + "\n"},
    ),
    Mistake(
        "a number of five thousand digits",
        f"{SFT} a.jsonl",
        "sft.data, a.jsonl:1 -> max_skipped",
        {"a.jsonl": '{"question": ' + "1" * 5000 + "}\n"},
    ),
    Mistake(
        "an unknown role",
        f"{SFT} a.jsonl",
        "sft.data, 'narrator', a.jsonl:1 -> max_skipped",
        {"a.jsonl": jsonl([turns("user", "narrator")])},
    ),
    Mistake(
        "roles in a wrong order",
        f"{SFT} a.jsonl",
        "sft.data, 2, 62, a.jsonl:61 -> max_skipped",
        {"a.jsonl": jsonl([*chats(60), turns("assistant", "user"), turns("user", "user", "assistant")])},
    ),
    Mistake(
        "an empty conversation",
        f"{SFT} a.jsonl",
        "sft.data, 1, a.jsonl:61 -> max_skipped",
        {"a.jsonl": jsonl([*chats(60), {"messages": []}])},
    ),
    Mistake(
        "no assistant at the end",
        f"{SFT} a.jsonl",
        "sft.data, 1, a.jsonl:61 -> max_skipped",
        {"a.jsonl": jsonl([*chats(60), turns("user", "assistant", "user")])},
    ),
    Mistake(
        "an empty answer",
        f"{SFT} a.jsonl",
        "sft.data, 1, a.jsonl:61 -> max_skipped",
        {"a.jsonl": jsonl([*chats(60), chat("Question?", " ")])},
    ),
    Mistake(
        "a sharegpt turn with other fields",
        f"{SFT} a.jsonl",
        "sft.data, value}, a.jsonl:1 -> max_skipped",
        {"a.jsonl": jsonl([{"conversations": [{"from": "human", "text": "Hi?"}]}])},
    ),
    Mistake(
        "calls of tools",
        f"{SFT} a.jsonl",
        "sft.data, a.jsonl:1 -> max_skipped",
        {"a.jsonl": jsonl([turns("user", "tool", "assistant")])},
    ),
    Mistake(
        "half a character",
        f"{SFT} a.jsonl",
        "sft.data, a.jsonl:1 -> max_skipped",
        {"a.jsonl": jsonl([chat("\ud800", "Yes.")])},
    ),
    Mistake(
        "more than 1 % that cannot be used",
        f"{SFT} a.jsonl",
        "sft.data, 10, 300, 6, a.jsonl:291, 4, a.jsonl:297 -> max_skipped",
        {"a.jsonl": jsonl([*chats(290), *(chat("Q?", "") for _ in range(6)), *(turns("user") for _ in range(4))])},
    ),
    Mistake(
        "too few rows",
        f"{SFT} a.jsonl",
        "a.jsonl, sft.data, 3, 0",
        {"a.jsonl": jsonl(chats(3))},
    ),
    Mistake(
        "one row many times",
        f"{SFT} a.jsonl",
        "a.jsonl, sft.data, 200, 0",
        {"a.jsonl": jsonl(chats(1) * 200)},
    ),
]

RANKINGS = [
    Mistake(
        "ranks that are missing",
        f"{RM} a.jsonl",
        "a.jsonl, rm.data -> ppo.data",
        {"a.jsonl": jsonl([{"prompt": "Q?", "responses": ["a", "b"]}])},
    ),
    Mistake(
        "fewer ranks than responses",
        f"{RM} a.jsonl",
        "rm.data, a.jsonl:1 -> max_skipped",
        {"a.jsonl": jsonl([ranking(["a", "b", "c"], [1, 2])])},
    ),
    Mistake(
        "ranks that are no numbers",
        f"{RM} a.jsonl",
        "rm.data, a.jsonl:1 -> max_skipped",
        {"a.jsonl": jsonl([ranking(["a", "b"], ["best", "worst"])])},
    ),
    Mistake(
        "more ranks than responses",
        f"{RM} a.jsonl",
        "rm.data, a.jsonl:1 -> max_skipped",
        {"a.jsonl": jsonl([ranking(["a", "b"], [1, 2, 3])])},
    ),
    Mistake(
        "a rank twice where the next one is not left out either",
        f"{RM} a.jsonl",
        "rm.data, 2, 3, a.jsonl:1 -> max_skipped",
        {"a.jsonl": jsonl([ranking(["a", "b", "c"], [1, 1, 4])])},
    ),
    Mistake(
        "ranks that begin at 0",
        f"{RM} a.jsonl",
        "rm.data, 2, 3, a.jsonl:1 -> max_skipped",
        {"a.jsonl": jsonl([ranking(["a", "b"], [0, 1])])},
    ),
    Mistake(
        "a ranking that counts nothing",
        f"{RM} a.jsonl",
        "rm.data, 0, a.jsonl:1 -> max_skipped",
        {"a.jsonl": jsonl([{**ranking(["a", "b"], [1, 2]), "weight": 0}])},
    ),
    Mistake(
        "a pair whose margin is a text",
        f"{RM} a.jsonl",
        "rm.data, a.jsonl:1 -> max_skipped",
        {"a.jsonl": jsonl([{**pairs(1)[0], "margin": "much"}])},
    ),
    Mistake(
        "one response",
        f"{RM} a.jsonl",
        "rm.data, a.jsonl:1 -> max_skipped",
        {"a.jsonl": jsonl([ranking(["a"], [1])])},
    ),
    Mistake(
        "an empty response",
        f"{RM} a.jsonl",
        "rm.data, a.jsonl:1 -> max_skipped",
        {"a.jsonl": jsonl([ranking(["a", ""], [1, 2])])},
    ),
    Mistake(
        "annotators and rounds that are none",
        f"{RM} a.jsonl",
        "rm.data, 3, 2, a.jsonl:60, 1, 0, 1,000,000, a.jsonl:62 -> max_skipped",
        {
            "a.jsonl": jsonl(
                [
                    *(ranking(["a", str(number)], [1, 2]) for number in range(59)),
                    *({**ranking(["a", "b"], [1, 2]), "annotator": odd} for odd in (7, ["ann"])),
                    {**ranking(["a", "b"], [1, 2]), "round": -1},
                ]
            )
        },
    ),
    Mistake(
        "a pair of two prompts",
        f"{RM} a.jsonl",
        "rm.data, a.jsonl:1 -> max_skipped",
        {
            "a.jsonl": jsonl(
                [{"chosen": "\n\nHuman: A?\n\nAssistant: Yes.", "rejected": "\n\nHuman: B?\n\nAssistant: No."}]
            )
        },
    ),
    Mistake(
        "pairs without their prompt",
        f"{RM} a.jsonl",
        "rm.data, a.jsonl:1 -> max_skipped",
        {"a.jsonl": jsonl([{"chosen": "Yes.", "rejected": "No."}])},
    ),
    Mistake(
        "a prompt that the assistant ends",
        f"{PPO} a.jsonl",
        "ppo.data, a.jsonl:1 -> columns",
        {"a.jsonl": jsonl([{"prompt": turns("user", "assistant")["messages"]}])},
    ),
    Mistake(
        "too few pairs",
        f"{RM} a.jsonl",
        "a.jsonl, rm.data, 3, 0",
        {"a.jsonl": jsonl(pairs(3))},
    ),
    Mistake(
        "one prompt for ppo",
        f"{PPO} a.jsonl",
        "a.jsonl, ppo.data, 200, 0",
        {"a.jsonl": jsonl([{"prompt": "Question?"}] * 200)},
    ),
]

TEXT = [
    Mistake(
        "a field of another name",
        f"{PRETRAIN} a.jsonl",
        "a.jsonl:1, pretrain.data",
        {"a.jsonl": '{"content": "x"}\n'},
    ),
    Mistake(
        "a text of nothing but spaces",
        f"{PRETRAIN} a.txt pretrain.tokenizer.vocab_size=300",
        "a.txt, pretrain.data",
        {"a.txt": " \n" * 40},
        begun=True,
    ),
    Mistake(
        "less text than a batch",
        f"{PRETRAIN} a.txt pretrain.tokenizer.vocab_size=300",
        "pretrain.data, 223, 4,096, 32, 128 -> pretrain.batch_size, pretrain.block_size",
        {"a.txt": "A line of text.\n" * 40},
        begun=True,
    ),
    Mistake(
        "more tokens than the vocabulary has room for",
        f"{PRETRAIN} a.txt 'pretrain.architecture={{vocab_size: 100}}'",
        "pretrain.architecture, 271, pretrain.architecture.vocab_size, 100 -> 64",
        {"a.txt": "A line of text.\n" * 40},
        begun=True,
    ),
    Mistake(
        "more characters than the tokenizer may have",
        f"{PRETRAIN} a.txt 'pretrain.tokenizer={{kind: character, vocab_size: 272}}'",
        "pretrain.tokenizer, 384, 390, pretrain.tokenizer.vocab_size, 272",
        {"a.txt": "".join(map(chr, range(0x4E00, 0x4F80)))},
        begun=True,
    ),
    Mistake(
        "documents of one file, parted by a control token",
        f"{PRETRAIN} a.txt pretrain.tokenizer.vocab_size=300 pretrain.batch_size=1 pretrain.block_size=16",
        "checks.special_tokens_in_text, pretrain.data, 1, <|endoftext|> -> checks.special_tokens_in_text=false",
        {"a.txt": "A line of text.<|endoftext|>" * 40},
        begun=True,
    ),
    Mistake(
        "too many documents without text",
        f"{PRETRAIN} a.jsonl pretrain.tokenizer.vocab_size=300",
        "pretrain.data, 20, 200, a.jsonl:1 -> max_skipped",
        {"a.jsonl": jsonl({"text": f"Document {i}." if i % 10 else ""} for i in range(200))},
        begun=True,
    ),
]

CORPUS = [*SOURCES, *BYTES, *SYNTAX, *USE, *CONVERSATIONS, *RANKINGS, *TEXT]


@pytest.mark.parametrize("mistake", CORPUS, ids=lambda mistake: mistake.name)
def test_a_wrong_data_file(mistake, check):
    check(mistake)
