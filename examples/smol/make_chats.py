"""Writes the conversations of the recipe smol-rlhf: 480 questions with an answer and a remark, all sentences our own.

python examples/smol/make_chats.py
"""

import json
import random
from pathlib import Path

CAPITALS = (
    "Austria Vienna, Belgium Brussels, Bulgaria Sofia, Chile Santiago, Cuba Havana, Denmark Copenhagen, Egypt Cairo, "
    "Estonia Tallinn, Finland Helsinki, Ghana Accra, Greece Athens, Hungary Budapest, Iceland Reykjavik, Iran Tehran, "
    "Iraq Baghdad, Ireland Dublin, Italy Rome, Japan Tokyo, Kenya Nairobi, Latvia Riga, Lebanon Beirut, Norway Oslo, "
    "Peru Lima, Poland Warsaw, Portugal Lisbon, Romania Bucharest, Spain Madrid, Sweden Stockholm, Syria Damascus, "
    "Thailand Bangkok"
)
OPPOSITES = (
    "hot cold, big small, early late, full empty, hard soft, heavy light, high low, long short, loud quiet, new old, "
    "open closed, quick slow, rich poor, rough smooth, sharp blunt, strong weak, sweet sour, tall short, thick thin, "
    "tight loose, true false, warm cool, wet dry, wide narrow, wild tame, young old, bright dark, clean dirty, "
    "cheap expensive, near far"
)
PLURALS = (
    "child children, foot feet, goose geese, knife knives, leaf leaves, man men, mouse mice, tooth teeth, wolf wolves, "
    "woman women, box boxes, city cities, baby babies, bus buses, church churches, dish dishes, fly flies, glass "
    "glasses, half halves, hero heroes, loaf loaves, party parties, peach peaches, potato potatoes, shelf shelves, "
    "story stories, thief thieves, tomato tomatoes, wife wives, lady ladies"
)
PASTS = (
    "go went, see saw, eat ate, run ran, write wrote, sing sang, take took, give gave, come came, know knew, begin "
    "began, break broke, bring brought, buy bought, catch caught, choose chose, draw drew, drink drank, drive "
    "drove, fall fell, feel felt, find found, fly flew, forget forgot, grow grew, keep kept, leave left, lose lost, "
    "ride rode, think thought"
)
KINDS = (
    (CAPITALS, "capital of", ("The capital of {0} is {1}.", "Many people who visit {0} go to {1} first.")),
    (OPPOSITES, "opposite of", ("The opposite of {0} is {1}.", "What is {0} now may be {1} tomorrow.")),
    (PLURALS, "plural of", ("The plural of {0} is {1}.", "One says one {0}, but two {1}.")),
    (PASTS, "past tense of", ("The past tense of {0} is {1}.", "Today they {0}, and yesterday they {1}.")),
)
QUESTIONS = ("What is the {} {}?", "Tell me the {} {}.", "Do you know the {} {}?", "Please give me the {} {}.")


def main() -> None:
    """Writes chats.jsonl beside this file."""
    rows = []
    for pairs, relation, sentences in KINDS:
        for pair in pairs.split(", "):
            answer = " ".join(sentences).format(*pair.split(" "))
            asked = [question.format(relation, pair.split(" ")[0]) for question in QUESTIONS]
            rows += [{"prompt": question, "completion": answer} for question in asked]
    random.Random(0).shuffle(rows)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    Path(__file__).with_name("chats.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
