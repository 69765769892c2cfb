"""Writes the conversations of the recipe smol-rlhf: 480 questions with an answer, all sentences our own.

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
    (CAPITALS, "capital of", "Many people who visit {0} go to {1} first."),
    (OPPOSITES, "opposite of", "What is {0} now may be {1} tomorrow."),
    (PLURALS, "plural of", "One says one {0}, but two {1}."),
    (PASTS, "past tense of", "Today they {0}, and yesterday they {1}."),
)
QUESTIONS = ("What is the {} {}?", "Tell me the {} {}.", "Do you know the {} {}?", "Please give me the {} {}.")


def main() -> None:
    """Writes chats.jsonl beside this file."""
    rows, draw = [], random.Random(0)
    for pairs, relation, remark in KINDS:
        for pair in pairs.split(", "):
            asked, answer = pair.split(" ")
            for question in QUESTIONS:
                # Half of the answers come at once, half repeat the question first; half of each go on with a remark.
                text = draw.choice(
                    [f"{answer.capitalize()} is the {relation} {asked}.", f"The {relation} {asked} is {answer}."]
                )
                text += draw.choice(["", " " + remark.format(asked, answer)])
                rows.append({"prompt": question.format(relation, asked), "completion": text})
    draw.shuffle(rows)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    Path(__file__).with_name("chats.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
