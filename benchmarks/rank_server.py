"""Whether the ranking server loses what it acknowledged: many annotators at once, and kill -9 again and again.

    python benchmarks/rank_server.py [--submissions 10000] [--annotators 16] [--kills 100] [--seed 0]

The real `chatpipe rank` runs as a process of its own. Each annotator posts rankings as the page does, and sends a step
again under the same key until there is an answer. Meanwhile the server is killed at random moments and started again by
the same command, so at the same addresses. At the end the store is compared with what was acknowledged.

Exits with an error if a ranking was lost, changed or doubled, or if not all were acknowledged, for example because an
annotator's thread failed or got no answer for a minute. The time is printed with its goal, and decides nothing here: it
depends on the other work on the machine.
"""

import argparse
import http.client
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from chatpipe.ranking.history import History
from chatpipe.ranking.store import Store

K = 4
RETRY_SECONDS = 0.05
PATIENCE_SECONDS = 60
"""How long an annotator waits for an answer, and a killing for the next submission."""
GOAL_P99_MS = 250


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser()
    for name, default in (("submissions", 10_000), ("annotators", 16), ("kills", 100), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    names = [f"person{i:02}" for i in range(options.annotators)]
    each = -(-options.submissions // len(names))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "completions.jsonl"
        file.write_text("".join(json.dumps(completions(i)) + "\n" for i in range(each)))
        server = Server(file, names)
        people = [Person(name, server, each, random.Random(f"{options.seed} {name}")) for name in names]
        start = time.perf_counter()
        for person in people:
            person.start()
        kills = kill_at_random(server, people, options.kills, each * len(names), random.Random(options.seed))
        for person in people:
            person.join()
        seconds = time.perf_counter() - start
        server.process.kill()
        server.process.wait()
        with Store.read(file.with_suffix(".rankings.db")) as store:
            wrong = report(people, kills, store, server, seconds)
    if wrong:
        sys.exit("FAILED: " + "; ".join(wrong))


def completions(i: int) -> dict[str, object]:
    """A row to rank, of the length of a short chat."""
    responses = [f"Answer {j} to question {i}. " + "It goes on for a while. " * 20 for j in range(K)]
    return {"prompt": [{"role": "user", "content": f"Question {i}?"}], "responses": responses}


class Server:
    """The process that serves; killed and started again at the same port.

    `starts` are seconds to a first answer, `away` the times from each kill to the first answer after it.
    """

    def __init__(self, file: Path, names: list[str]) -> None:
        overlap = str(len(names))
        words = ["rank", str(file), "--annotators", ",".join(names), "--overlap", overlap, "--repeats", "0"]
        self.command = [sys.executable, "-m", "chatpipe", *words]
        self.starts: list[float] = []
        self.away: list[tuple[float, float]] = []
        self.port = 0
        self.tokens: dict[str, str] = {}
        self.start()

    def start(self) -> None:
        """Returns when it has answered. The addresses must be those of the first start."""
        began = time.perf_counter()
        self.process = subprocess.Popen([*self.command, "--port", str(self.port)], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        tokens = {}
        for line in self.process.stderr:
            if line_parts := re.fullmatch(r"(\S+) ranks at http://127\.0\.0\.1:(\d+)/\?token=(\S+)\n", line):
                tokens[line_parts[1]], self.port = line_parts[3], int(line_parts[2])
            if line.startswith("Ctrl-C ends"):
                break
        assert not self.tokens or tokens == self.tokens, "a start gave other addresses"
        self.tokens = tokens
        first = connect(self.port)
        first.request("GET", "/api/view", headers=self.headers(next(iter(tokens))))
        assert first.getresponse().status == 200
        first.close()
        self.starts.append(time.perf_counter() - began)

    def headers(self, name: str) -> dict[str, str]:
        """What the page of an annotator sends."""
        return {
            "Cookie": f"chatpipe-rank-{self.port}={self.tokens[name]}",
            "Origin": f"http://127.0.0.1:{self.port}",
            "Content-Type": "application/json",
        }

    def restart(self) -> None:
        """kill -9, and the same command again."""
        killed = time.perf_counter()
        self.process.kill()
        self.process.wait()
        self.start()
        self.away.append((killed, time.perf_counter()))

    def was_away(self, moment: float) -> bool:
        """Whether it was killed then, or had not answered since."""
        return any(killed <= moment <= back for killed, back in self.away)


def connect(port: int) -> http.client.HTTPConnection:
    """A connection that is open."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.connect()
    return connection


class Person(threading.Thread):
    """One annotator: ranks until `count` submissions are acknowledged."""

    def __init__(self, name: str, server: Server, count: int, chance: random.Random) -> None:
        super().__init__(name=name, daemon=True)
        self.server, self.count, self.random = server, count, chance
        self.acknowledged: dict[str, list[int]] = {}
        """The ranks that each key was acknowledged for."""
        self.answered: list[tuple[float, float]] = []
        """When each submission was sent and answered, at the try that was answered."""
        self.waited = 0.0
        """The longest from first sending to the answer, a kill and the start after it in between."""
        self.retried = 0
        self.problem: Exception | None = None
        """Why it broke off."""
        self.connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        try:
            self.rank()
        except Exception as problem:
            self.problem = problem

    def rank(self) -> None:
        view = self.ask("GET", "/api/view")
        while len(self.acknowledged) < self.count:
            ranks = self.a_ranking()
            if self.random.random() < 0.2:  # a half-done ranking first
                self.act("edit", view["task"], [ranks[0], *[None] * (K - 1)])
            key, view = self.act("submit", view["task"], ranks)
            self.acknowledged[key] = ranks

    def a_ranking(self) -> list[int]:
        """Dense ranks with ties."""
        draws = [self.random.randrange(K) for _ in range(K)]
        places = sorted(set(draws))
        return [places.index(draw) + 1 for draw in draws]

    def act(self, action: str, task: str, ranks: list[int | None]) -> tuple[str, dict]:
        key = f"{self.random.getrandbits(128):032x}"
        answer = {"ranks": ranks, "all_bad": False, "flag": False, "note": ""}
        step = {"annotator": self.name, "key": key, "action": action, "task": task, "answer": answer, "reason": None}
        return key, self.ask("POST", "/api/act", json.dumps(step), is_submission=action == "submit")

    def ask(self, method: str, path: str, body: str | None = None, is_submission: bool = False) -> dict:
        """Asks until there is an answer, as the page does, but not for ever."""
        first = time.perf_counter()
        while time.perf_counter() - first < PATIENCE_SECONDS:
            try:
                began = time.perf_counter()
                if self.connection is None:
                    self.connection = connect(self.server.port)
                self.connection.request(method, path, body, self.server.headers(self.name))
                response = self.connection.getresponse()
                reply = json.loads(response.read())
            except (OSError, http.client.HTTPException, ValueError):
                self.connection = None
                self.retried += 1
                time.sleep(RETRY_SECONDS)
                continue
            assert response.status == 200, (response.status, reply)
            if is_submission:
                self.answered.append((began, time.perf_counter()))
                self.waited = max(self.waited, time.perf_counter() - first)
            return reply
        raise TimeoutError(f"{self.name} got no answer for {PATIENCE_SECONDS} s")


def kill_at_random(server: Server, people: list[Person], kills: int, total: int, chance: random.Random) -> int:
    """Kills at moments drawn over the whole of the submissions; returns how often."""
    done = 0
    for moment in sorted(chance.randrange(total * 98 // 100) for _ in range(kills)):
        if not wait_for(people, moment):
            break
        time.sleep(chance.random() * 0.02)  # anywhere within a request
        server.restart()
        done += 1
    return done


def wait_for(people: list[Person], count: int) -> bool:
    """Until so many submissions are acknowledged; False where that will not be any more."""
    since, before = time.perf_counter(), -1
    while (now := sum(len(person.acknowledged) for person in people)) < count:
        if now > before:
            since, before = time.perf_counter(), now
        if any(person.problem for person in people) or time.perf_counter() - since > PATIENCE_SECONDS:
            return False
        time.sleep(0.002)
    return True


def report(people: list[Person], kills: int, store: Store, server: Server, seconds: float) -> list[str]:
    """Compares the store with what was acknowledged, prints what came of it, and gives what is wrong."""
    lost = doubled = other = 0
    for person in people:
        history = History(store, person.name)
        steps = [step for step in history.steps() if step.action == "submit"]
        stored = {step.key: [step.answer.ranks[i] for i in history.shown_order(step.task)] for step in steps}
        lost += len(person.acknowledged.keys() - stored.keys())
        other += sum(stored.get(key, ranks) != ranks for key, ranks in person.acknowledged.items())
        doubled += sum(count - 1 for count in Counter(step.task for step in steps).values())
        doubled += len(stored.keys() - person.acknowledged.keys())
    tries = [times for person in people for times in person.answered]
    times = sorted(end - sent for sent, end in tries if not server.was_away(sent)) or [float("nan")]
    p99 = 1000 * times[len(times) * 99 // 100]
    acknowledged = sum(len(person.acknowledged) for person in people)
    rows = [
        ("annotators at once", len(people)),
        ("submissions acknowledged", acknowledged),
        ("times the server was killed", kills),
        ("requests that got no answer and were sent again", sum(person.retried for person in people)),
        ("acknowledged rankings lost", lost),
        ("acknowledged rankings that have other ranks", other),
        ("rankings doubled", doubled),
        ("submissions sent while it was away, which waited for it", len(tries) - len(times)),
        ("another submission, median (ms)", f"{1000 * statistics.median(times):.1f}"),
        (
            "another submission, p99 (ms)",
            f"{p99:.1f} (goal {GOAL_P99_MS}: {'met' if p99 <= GOAL_P99_MS else 'missed'})",
        ),
        ("another submission, longest (ms)", f"{1000 * times[-1]:.1f}"),
        (
            "the longest wait of all, a kill and the start after it in between (s)",
            f"{max(person.waited for person in people):.2f}",
        ),
        ("from start to the first answer, median (s)", f"{statistics.median(server.starts):.2f}"),
        ("in all (s)", f"{seconds:.0f}"),
    ]
    print("| what | value |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")
    wanted = sum(person.count for person in people)
    wrong = [f"{person.name} broke off: {person.problem!r}" for person in people if person.problem]
    wrong += [f"{acknowledged} of {wanted} submissions were acknowledged"] if acknowledged != wanted else []
    wrong += [f"{lost} lost, {other} changed, {doubled} doubled"] if lost or other or doubled else []
    return wrong


if __name__ == "__main__":
    main()
