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
        """
        error: sft.data: there is no file no.jsonl.
        Give a path, or several with commas between.
        """,
    ),
    Mistake(
        "a pattern that fits nothing",
        f"{SFT} 'data/*.jsonl'",
        """
        error: sft.data: data/*.jsonl holds no file of a kind that can be read: .txt, .csv, .json, .jsonl, .parquet.
        Give text, or rows in one of these kinds, each also .gz.
        """,
        {"data/a.parq": ""},
    ),
    Mistake(
        "an empty file",
        f"{SFT} a.jsonl",
        """
        error: sft.data: a.jsonl is empty.
        Give a file with at least one row.
        """,
        {"a.jsonl": ""},
    ),
    Mistake(
        "blank lines",
        f"{SFT} a.jsonl",
        """
        error: sft.data: a.jsonl holds no rows.
        Give a file with at least one row.
        """,
        {"a.jsonl": "\n\n"},
    ),
    Mistake(
        "a folder without files",
        f"{SFT} data",
        """
        error: sft.data: data holds no file of a kind that can be read: .txt, .csv, .json, .jsonl, .parquet.
        Give text, or rows in one of these kinds, each also .gz.
        """,
        {"data/": ""},
    ),
    Mistake(
        "an unknown ending",
        f"{SFT} table.pdf",
        """
        error: sft.data: table.pdf is not one of the files that can be read: .txt, .csv, .json, .jsonl, .parquet, each also .gz.
        Convert it, or rename it where only the ending is wrong.
        """,
        {"table.pdf": "a,b\n"},
    ),
    Mistake(
        "another way of packing",
        f"{SFT} a.jsonl.zst",
        """
        error: sft.data: a.jsonl.zst is not one of the files that can be read: .txt, .csv, .json, .jsonl, .parquet, each also .gz.
        Convert it, or rename it where only the ending is wrong.
        """,
        {"a.jsonl.zst": "x"},
    ),
    Mistake(
        "the second of two files",
        f"{SFT} a.jsonl,b.jsonl",
        """
        error: sft.data: there is no file b.jsonl.
        Give a path, or several with commas between.
        """,
        {"a.jsonl": jsonl(chats(60))},
    ),
    Mistake(
        "a hub id without its prefix",
        f"{SFT} tatsu-lab/alpaca",
        """
        error: sft.data: there is no file tatsu-lab/alpaca.
        Give a path, or several with commas between. Is it a data set of the hub? Then write hub:tatsu-lab/alpaca.
        """,
    ),
    Mistake(
        "a tokenised text",
        f"{PRETRAIN} train.bin",
        """
        error: pretrain.data: train.bin is not one of the files that can be read: .txt, .csv, .json, .jsonl, .parquet, each also .gz.
        Convert it, or rename it where only the ending is wrong.
        """,
        {"train.bin": b"\x01\x00"},
    ),
]

BYTES = [
    Mistake(
        "text that is not UTF-8",
        f"{SFT} a.jsonl",
        """
        error: a.jsonl is not UTF-8 text: byte 21 cannot be read.
        Convert it, e.g. with iconv; is it a binary file?
        """,
        {"a.jsonl": '{"question": "Wie groß?", "answer": "1"}\n'.encode("latin-1")},
    ),
    Mistake(
        "UTF-16",
        f"{PRETRAIN} a.txt",
        """
        error: a.txt is not UTF-8 text: byte 0 cannot be read.
        Convert it, e.g. with iconv; is it a binary file?
        """,
        {"a.txt": "Some text.".encode("utf-16")},
    ),
    Mistake(
        "a binary file",
        f"{PRETRAIN} a.txt",
        """
        error: a.txt is not text: it holds zero bytes.
        Give text files; is it a binary file?
        """,
        {"a.txt": b"some\0text"},
    ),
    Mistake(
        "gzip that breaks off",
        f"{SFT} a.jsonl.gz",
        """
        error: a.jsonl.gz is not a whole gzip file: Compressed file ended before the end-of-stream marker was reached.
        Fetch or pack it anew.
        """,
        {"a.jsonl.gz": gzip.compress(jsonl(chats(600)).encode(), mtime=0)[:-100]},
    ),
    Mistake(
        "gzip that is none",
        f"{SFT} a.jsonl.gz",
        """
        error: a.jsonl.gz is not a whole gzip file: Not a gzipped file (b'{"').
        Fetch or pack it anew.
        """,
        {"a.jsonl.gz": jsonl(chats(60))},
    ),
    Mistake(
        "parquet that breaks off",
        f"{SFT} a.parquet",
        """
        error: a.parquet is not a whole parquet file: Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file.
        Fetch it anew.
        """,
        {"a.parquet": parquet_file(pairs(60))[:-100]},
    ),
    Mistake(
        "parquet that is none",
        f"{SFT} a.parquet",
        """
        error: a.parquet is not a whole parquet file: Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file.
        Fetch it anew.
        """,
        {"a.parquet": jsonl(chats(60))},
    ),
]

SYNTAX = [
    Mistake(
        "lines that are not JSON",
        f"{SFT} a.jsonl",
        """
        error: sft.data: a.jsonl: 1 of 61 rows cannot be used.
        1 row: this line is not JSON (first at a.jsonl:61, Expecting value at column 15)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl(chats(60)) + '{"messages": [}\n'},
    ),
    Mistake(
        "jsonl that is one list",
        f"{SFT} a.jsonl",
        """
        error: a.jsonl:1: a JSON list begins here; jsonl has one row on each line.
        Is it JSON? Then name it .json.
        """,
        {"a.jsonl": '[\n{"question": "a", "answer": "b"},\n{"question": "c", "answer": "d"}\n]\n'},
    ),
    Mistake(
        "jsonl that is one list in one line",
        f"{SFT} a.jsonl",
        """
        error: a.jsonl:1: a JSON list begins here; jsonl has one row on each line.
        Is it JSON? Then name it .json.
        """,
        {"a.jsonl": '[{"question": "a", "answer": "b"}]\n'},
    ),
    Mistake(
        "JSON that is jsonl",
        f"{SFT} a.json",
        """
        error: a.json:2: this is not JSON: Extra data at column 1.
        Is it jsonl? Then name it .jsonl.
        """,
        {"a.json": jsonl(chats(60))},
    ),
    Mistake(
        "JSON with a mistake in it",
        f"{SFT} a.json",
        """
        error: a.json:3: this is not JSON: Expecting ':' delimiter at column 13.
        Is it jsonl? Then name it .jsonl.
        """,
        {"a.json": '[\n{"question": "a"},\n{"question" "b"}]'},
    ),
    Mistake(
        "JSON that is one object",
        f"{SFT} a.json",
        """
        error: a.json: a list of rows is expected, not one object.
        Give the list of rows alone, without what stands around it; a single row goes into [ ].
        """,
        {"a.json": '{"data": [{"question": "a", "answer": "b"}]}'},
    ),
    Mistake(
        "csv with more fields than names",
        f"{SFT} a.csv",
        """
        error: sft.data: a.csv: 1 of 2 rows cannot be used.
        1 row: there are more fields than the first line names (first at a.csv:3)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.csv": "question,answer\na,b\nc,d,e\n"},
    ),
    Mistake(
        "csv with fewer fields than names",
        f"{SFT} a.csv",
        """
        error: sft.data: a.csv: 1 of 2 rows cannot be used.
        1 row: answer is not text (first at a.csv:3)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.csv": "question,answer\na,b\nc\n"},
    ),
    Mistake(
        "csv with an open quote",
        f"{SFT} a.csv",
        """
        error: a.csv:3: this is not CSV: unexpected end of data.
        Is a quote left open?
        """,
        {"a.csv": 'question,answer\na,b\n"c,d\n'},
    ),
    Mistake(
        "csv with semicolons",
        f"{SFT} a.csv",
        """
        error: a.csv:2: sft.data does not know what these fields mean: question;answer.
        Known: prompt, responses, ranks | chosen, rejected | messages | conversations | instruction, output | prompt, completion | question, answer | prompt | text.
        Other names: data: [{source: FILE, columns: {question: THEIR NAME, ...}}].
        """,
        {"a.csv": "question;answer\na;b\n"},
    ),
    Mistake(
        "csv of a header alone",
        f"{SFT} a.csv",
        """
        error: sft.data: a.csv holds no rows.
        Give a file with at least one row.
        """,
        {"a.csv": "question,answer\n"},
    ),
    Mistake(
        "a list of texts",
        f"{SFT} a.json",
        """
        error: sft.data: a.json: 2 of 2 rows cannot be used.
        2 rows: a row is an object with named fields, not a str (first at a.json row 1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.json": '["Question?", "Answer."]'},
    ),
]

USE = [
    Mistake(
        "a whole run over one wrong file",
        "chatpipe run pocket sft.data=a.txt out=run",
        """
        error: sft.data: a.txt is running text, which has no rows.
        Give json, jsonl, csv or parquet; txt is for pretrain.data.
        """,
        {"a.txt": "Some text.\n"},
    ),
    Mistake(
        "fields that mean nothing to us",
        f"{SFT} a.jsonl",
        """
        error: a.jsonl:1: sft.data does not know what these fields mean: a, q.
        Known: prompt, responses, ranks | chosen, rejected | messages | conversations | instruction, output | prompt, completion | question, answer | prompt | text.
        Other names: data: [{source: FILE, columns: {question: THEIR NAME, ...}}].
        """,
        {"a.jsonl": '{"q": "x", "a": "y"}\n'},
    ),
    Mistake(
        "columns that are not there",
        "chatpipe sft --model gpt2 --out tuned 'sft.data=[{source: a.jsonl, columns: {question: ask, answer: a}}]'",
        """
        error: sft.data: a.jsonl: 1 of 1 rows cannot be used.
        1 row: there is no field ask (first at a.jsonl:1, its fields are q, a)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": '{"q": "x", "a": "y"}\n'},
    ),
    Mistake(
        "text for sft",
        f"{SFT} a.jsonl",
        """
        error: sft.data: a.jsonl is text, which cannot be read as conversations.
        pretrain.data reads text; sft.data reads messages, sharegpt (conversations), alpaca (instruction, output), prompt_completion (prompt, completion), question_answer (question, answer), pairs (chosen, rejected), rankings (prompt, responses, ranks).
        """,
        {"a.jsonl": '{"text": "x"}\n'},
    ),
    Mistake(
        "running text for sft",
        f"{SFT} a.txt",
        """
        error: sft.data: a.txt is running text, which has no rows.
        Give json, jsonl, csv or parquet; txt is for pretrain.data.
        """,
        {"a.txt": "Some text.\n"},
    ),
    Mistake(
        "prompts for sft",
        f"{SFT} a.jsonl",
        """
        error: sft.data: a.jsonl is prompts, which cannot be read as conversations.
        ppo.data reads prompts; sft.data reads messages, sharegpt (conversations), alpaca (instruction, output), prompt_completion (prompt, completion), question_answer (question, answer), pairs (chosen, rejected), rankings (prompt, responses, ranks).
        """,
        {"a.jsonl": '{"prompt": "Question?"}\n'},
    ),
    Mistake(
        "conversations for rm",
        f"{RM} a.jsonl",
        """
        error: rm.data: a.jsonl is messages, which cannot be read as rankings.
        sft.data or ppo.data reads messages; rm.data reads pairs (chosen, rejected), rankings (prompt, responses, ranks).
        """,
        {"a.jsonl": jsonl(chats(60))},
    ),
    Mistake(
        "text for ppo",
        f"{PPO} a.jsonl",
        """
        error: ppo.data: a.jsonl is text, which cannot be read as prompts.
        pretrain.data reads text; ppo.data reads messages, sharegpt (conversations), alpaca (instruction, output), prompt_completion (prompt, completion), question_answer (question, answer), pairs (chosen, rejected), rankings (prompt, responses, ranks), prompts (prompt).
        """,
        {"a.jsonl": '{"text": "x"}\n'},
    ),
    Mistake(
        "rankings for pretrain",
        f"{PRETRAIN} a.jsonl",
        """
        error: a.jsonl:1: pretrain.data finds no text in it; its fields are prompt, ranks, responses. As rankings it is for sft.data or rm.data or ppo.data.
        Name the field that holds it: data: [{source: FILE, columns: {text: FIELD}}].
        """,
        {"a.jsonl": jsonl([ranking(["a", "b"], [1, 2])])},
    ),
    Mistake(
        "conversations for pretrain",
        f"{PRETRAIN} a.jsonl",
        """
        error: a.jsonl:1: pretrain.data finds no text in it; its fields are messages. As messages it is for sft.data or ppo.data.
        Name the field that holds it: data: [{source: FILE, columns: {text: FIELD}}].
        """,
        {"a.jsonl": jsonl(chats(60))},
    ),
    Mistake(
        "a format that the file has not",
        "chatpipe sft --model gpt2 --out tuned 'sft.data=[{source: a.jsonl, format: alpaca}]'",
        """
        error: sft.data: a.jsonl: 60 of 60 rows cannot be used.
        60 rows: instruction is not text (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl(chats(60))},
    ),
    Mistake(
        "columns of running text",
        "chatpipe pretrain --out base 'pretrain.data=[{source: a.txt, columns: {text: content}}]'",
        """
        error: pretrain.data: a.txt is running text, which has no columns.
        Leave columns out.
        """,
        {"a.txt": "Some text.\n"},
    ),
]

CONVERSATIONS = [
    Mistake(
        "lists in lists without an end",
        f"{SFT} a.jsonl",
        """
        error: sft.data: a.jsonl: 1 of 1 rows cannot be used.
        1 row: this line has numbers or lists that are too long or too deep to read (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": '{"messages": ' + "[" * 100_000 + "\n"},
    ),
    Mistake(
        "a number of five thousand digits",
        f"{SFT} a.jsonl",
        """
        error: sft.data: a.jsonl: 1 of 1 rows cannot be used.
        1 row: this line has numbers or lists that are too long or too deep to read (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": '{"question": ' + "1" * 5000 + "}\n"},
    ),
    Mistake(
        "an unknown role",
        f"{SFT} a.jsonl",
        """
        error: sft.data: a.jsonl: 1 of 1 rows cannot be used.
        1 row: a message is not {role: system|user|assistant, content: text} (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([turns("user", "bot")])},
    ),
    Mistake(
        "roles in a wrong order",
        f"{SFT} a.jsonl",
        """
        error: sft.data: a.jsonl: 2 of 62 rows cannot be used.
        2 rows: user and assistant do not take turns (first at a.jsonl:61)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([*chats(60), turns("assistant", "user"), turns("user", "user", "assistant")])},
    ),
    Mistake(
        "an empty conversation",
        f"{SFT} a.jsonl",
        """
        error: sft.data: a.jsonl: 1 of 61 rows cannot be used.
        1 row: there are no messages (first at a.jsonl:61)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([*chats(60), {"messages": []}])},
    ),
    Mistake(
        "no assistant at the end",
        f"{SFT} a.jsonl",
        """
        error: sft.data: a.jsonl: 1 of 61 rows cannot be used.
        1 row: the conversation does not end with the assistant (first at a.jsonl:61)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([*chats(60), turns("user", "assistant", "user")])},
    ),
    Mistake(
        "an empty answer",
        f"{SFT} a.jsonl",
        """
        error: sft.data: a.jsonl: 1 of 61 rows cannot be used.
        1 row: a message is empty (first at a.jsonl:61)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([*chats(60), chat("Question?", " ")])},
    ),
    Mistake(
        "a sharegpt turn with other fields",
        f"{SFT} a.jsonl",
        """
        error: sft.data: a.jsonl: 1 of 1 rows cannot be used.
        1 row: a turn is not {from: human|gpt|system, value: text} (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([{"conversations": [{"from": "human", "text": "Hi?"}]}])},
    ),
    Mistake(
        "calls of tools",
        f"{SFT} a.jsonl",
        """
        error: sft.data: a.jsonl: 1 of 1 rows cannot be used.
        1 row: the conversation has messages of tools (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([turns("user", "tool", "assistant")])},
    ),
    Mistake(
        "half a character",
        f"{SFT} a.jsonl",
        """
        error: sft.data: a.jsonl: 1 of 1 rows cannot be used.
        1 row: a text holds half a character, a lone surrogate (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([chat("\ud800", "Yes.")])},
    ),
    Mistake(
        "more than 1 % that cannot be used",
        f"{SFT} a.jsonl",
        """
        error: sft.data: a.jsonl: 10 of 300 rows cannot be used.
        6 rows: a message is empty (first at a.jsonl:291)
        4 rows: the conversation does not end with the assistant (first at a.jsonl:297)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([*chats(290), *(chat("Q?", "") for _ in range(6)), *(turns("user") for _ in range(4))])},
    ),
    Mistake(
        "too few rows",
        f"{SFT} a.jsonl",
        """
        error: sft.data = a.jsonl holds too little: 3 rows to train on, 0 held out.
        A tenth is held out by its text; give at least some dozens of different rows.
        """,
        {"a.jsonl": jsonl(chats(3))},
    ),
    Mistake(
        "one row many times",
        f"{SFT} a.jsonl",
        """
        error: sft.data = a.jsonl holds too little: 200 rows to train on, 0 held out.
        A tenth is held out by its text; give at least some dozens of different rows.
        """,
        {"a.jsonl": jsonl(chats(1) * 200)},
    ),
]

RANKINGS = [
    Mistake(
        "ranks that are missing",
        f"{RM} a.jsonl",
        """
        error: rm.data: a.jsonl is prompts, which cannot be read as rankings.
        ppo.data reads prompts; rm.data reads pairs (chosen, rejected), rankings (prompt, responses, ranks).
        """,
        {"a.jsonl": jsonl([{"prompt": "Q?", "responses": ["a", "b"]}])},
    ),
    Mistake(
        "fewer ranks than responses",
        f"{RM} a.jsonl",
        """
        error: rm.data: a.jsonl: 1 of 1 rows cannot be used.
        1 row: ranks are not one whole number for each response (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([ranking(["a", "b", "c"], [1, 2])])},
    ),
    Mistake(
        "ranks that are no numbers",
        f"{RM} a.jsonl",
        """
        error: rm.data: a.jsonl: 1 of 1 rows cannot be used.
        1 row: ranks are not one whole number for each response (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([ranking(["a", "b"], ["best", "worst"])])},
    ),
    Mistake(
        "more ranks than responses",
        f"{RM} a.jsonl",
        """
        error: rm.data: a.jsonl: 1 of 1 rows cannot be used.
        1 row: ranks are not one whole number for each response (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([ranking(["a", "b"], [1, 2, 3])])},
    ),
    Mistake(
        "a rank twice where the next one is not left out either",
        f"{RM} a.jsonl",
        """
        error: rm.data: a.jsonl: 1 of 1 rows cannot be used.
        1 row: ranks are no order: 1 is best, and the next one follows (1, 2, 3; with ties 1, 1, 2 or 1, 1, 3) (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([ranking(["a", "b", "c"], [1, 1, 4])])},
    ),
    Mistake(
        "ranks that begin at 0",
        f"{RM} a.jsonl",
        """
        error: rm.data: a.jsonl: 1 of 1 rows cannot be used.
        1 row: ranks are no order: 1 is best, and the next one follows (1, 2, 3; with ties 1, 1, 2 or 1, 1, 3) (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([ranking(["a", "b"], [0, 1])])},
    ),
    Mistake(
        "a ranking that counts nothing",
        f"{RM} a.jsonl",
        """
        error: rm.data: a.jsonl: 1 of 1 rows cannot be used.
        1 row: weight is not a number above 0 (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([{**ranking(["a", "b"], [1, 2]), "weight": 0}])},
    ),
    Mistake(
        "a pair whose margin is a text",
        f"{RM} a.jsonl",
        """
        error: rm.data: a.jsonl: 1 of 1 rows cannot be used.
        1 row: margin is not a number (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([{**pairs(1)[0], "margin": "much"}])},
    ),
    Mistake(
        "one response",
        f"{RM} a.jsonl",
        """
        error: rm.data: a.jsonl: 1 of 1 rows cannot be used.
        1 row: responses are not two or more texts (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([ranking(["a"], [1])])},
    ),
    Mistake(
        "an empty response",
        f"{RM} a.jsonl",
        """
        error: rm.data: a.jsonl: 1 of 1 rows cannot be used.
        1 row: a response is empty (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([ranking(["a", ""], [1, 2])])},
    ),
    Mistake(
        "annotators and rounds that are none",
        f"{RM} a.jsonl",
        """
        error: rm.data: a.jsonl: 3 of 62 rows cannot be used.
        2 rows: annotator is not text (first at a.jsonl:60)
        1 row: round is not a whole number from 0 to 1,000,000 (first at a.jsonl:62)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
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
        """
        error: rm.data: a.jsonl: 1 of 1 rows cannot be used.
        1 row: chosen and rejected have different prompts (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {
            "a.jsonl": jsonl(
                [{"chosen": "\n\nHuman: A?\n\nAssistant: Yes.", "rejected": "\n\nHuman: B?\n\nAssistant: No."}]
            )
        },
    ),
    Mistake(
        "pairs without their prompt",
        f"{RM} a.jsonl",
        """
        error: rm.data: a.jsonl: 1 of 1 rows cannot be used.
        1 row: there is no prompt: the text does not begin with a Human turn (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([{"chosen": "Yes.", "rejected": "No."}])},
    ),
    Mistake(
        "a prompt that the assistant ends",
        f"{PPO} a.jsonl",
        """
        error: ppo.data: a.jsonl: 1 of 1 rows cannot be used.
        1 row: the prompt does not end with the user (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl([{"prompt": turns("user", "assistant")["messages"]}])},
    ),
    Mistake(
        "too few pairs",
        f"{RM} a.jsonl",
        """
        error: rm.data = a.jsonl holds too little: 3 rows to train on, 0 held out.
        A tenth is held out by its text; give at least some dozens of different rows.
        """,
        {"a.jsonl": jsonl(pairs(3))},
    ),
    Mistake(
        "one prompt for ppo",
        f"{PPO} a.jsonl",
        """
        error: ppo.data = a.jsonl holds too little: 200 rows to train on, 0 held out.
        A tenth is held out by its text; give at least some dozens of different rows.
        """,
        {"a.jsonl": jsonl([{"prompt": "Question?"}] * 200)},
    ),
]

TEXT = [
    Mistake(
        "a field of another name",
        f"{PRETRAIN} a.jsonl",
        """
        error: a.jsonl:1: pretrain.data finds no text in it; its fields are content.
        Name the field that holds it: data: [{source: FILE, columns: {text: FIELD}}].
        """,
        {"a.jsonl": '{"content": "x"}\n'},
    ),
    Mistake(
        "a text of nothing but spaces",
        f"{PRETRAIN} a.txt pretrain.tokenizer.vocab_size=300",
        """
        error: pretrain.data: a.txt is empty.
        Give a file with text in it.
        """,
        {"a.txt": " \n" * 40},
        begun=True,
    ),
    Mistake(
        "less text than a batch",
        f"{PRETRAIN} a.txt pretrain.tokenizer.vocab_size=300",
        """
        error: pretrain.data has 223 tokens to train on, but one batch reads 4,096: 32 sequences of 128.
        Give more text, or lower pretrain.batch_size or pretrain.block_size.
        """,
        {"a.txt": "A line of text.\n" * 40},
        begun=True,
    ),
    Mistake(
        "more tokens than the vocabulary has room for",
        f"{PRETRAIN} a.txt 'pretrain.architecture={{vocab_size: 100}}'",
        """
        error: The tokenizer has 271 tokens, but pretrain.architecture.vocab_size = 100: the model could not read the last of them.
        Raise it (a multiple of 64 is quick on GPUs), leave it out, or take a smaller tokenizer.
        """,
        {"a.txt": "A line of text.\n" * 40},
        begun=True,
    ),
    Mistake(
        "more characters than the tokenizer may have",
        f"{PRETRAIN} a.txt 'pretrain.tokenizer={{kind: character, vocab_size: 272}}'",
        """
        error: The text has 384 different characters, with the special tokens 390 entries; pretrain.tokenizer.vocab_size is 272.
        Raise it, or use kind: bpe.
        """,
        {"a.txt": "".join(map(chr, range(0x4E00, 0x4F80)))},
        begun=True,
    ),
    Mistake(
        "documents of one file, parted by a control token",
        f"{PRETRAIN} a.txt pretrain.tokenizer.vocab_size=300 pretrain.batch_size=1 pretrain.block_size=16",
        """
        error: pretrain could only fail silently; it is stopped before its first step.
        checks.special_tokens_in_text: pretrain.data: 1 of 1 texts looked at have '<|endoftext|>' spelt out in them.
          Take it out; documents are parted by standing in a row or a file each.
        If it is meant: checks.special_tokens_in_text=false turns this check off.
        """,
        {"a.txt": "A line of text.<|endoftext|>" * 40},
        begun=True,
    ),
    Mistake(
        "too many documents without text",
        f"{PRETRAIN} a.jsonl pretrain.tokenizer.vocab_size=300",
        """
        error: pretrain.data: a.jsonl: 20 of 200 rows cannot be used.
        20 rows: text is empty (first at a.jsonl:1)
        Mend the file, say what it holds (data: [{source: FILE, format: ..., columns: ...}]), or allow more (max_skipped: SHARE).
        """,
        {"a.jsonl": jsonl({"text": f"Document {i}." if i % 10 else ""} for i in range(200))},
        begun=True,
    ),
]

CORPUS = [*SOURCES, *BYTES, *SYNTAX, *USE, *CONVERSATIONS, *RANKINGS, *TEXT]


@pytest.mark.parametrize("mistake", CORPUS, ids=lambda mistake: mistake.name)
def test_a_wrong_data_file(mistake, check):
    check(mistake)
