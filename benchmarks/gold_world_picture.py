"""The picture of benchmarks/gold_world.py, as SVG: what two raters promise and what gold says, against sqrt(KL)."""

import math
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, GAP = 400, 300, 60, 50, 60  # of one panel, in pixels
MOST_KL_ROOT, LOWEST, HIGHEST = 3.3, -0.25, 3.5
SCORE, GOLD = "#8a5a00", "#0a6e5a"
TITLES = {"linear": "A reward model fitted to 200 comparisons", "gold": "Control: the gold rater itself"}


def picture(results: dict[str, Any]) -> str:
    """Two panels, one for each rater; lines are exact optima, dashes exact best-of-n, circles PPO runs."""
    width, height = 2 * WIDTH + GAP + LEFT + 20, HEIGHT + TOP + 80
    panels = "".join(
        _panel(LEFT + i * (WIDTH + GAP), title, results[name]) for i, (name, title) in enumerate(TITLES.items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="13"><rect width="{width}" height="{height}" fill="white"/>{panels}{_legend(height)}</svg>\n'
    )


def _panel(left: float, title: str, result: dict[str, Any]) -> str:
    def at(row: dict[str, float], name: str) -> tuple[float, float]:
        x = left + math.sqrt(max(row["kl"], 0)) / MOST_KL_ROOT * WIDTH
        return round(x, 1), round(TOP + (HIGHEST - row[name]) / (HIGHEST - LOWEST) * HEIGHT, 1)

    def line(rows: list[dict[str, float]], name: str, colour: str, dashes: str) -> str:
        points = " ".join(f"{x},{y}" for x, y in (at(row, name) for row in rows))
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" {dashes}/>'

    parts = [f'<text x="{left}" y="{TOP - 18}" font-weight="bold">{title}</text>']
    for score in range(4):
        y = at({"kl": 0, "score": score}, "score")[1]
        parts.append(f'<line x1="{left}" x2="{left + WIDTH}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{score}</text>')
    for root in range(4):
        x = at({"kl": root**2, "score": 0}, "score")[0]
        parts.append(f'<text x="{x}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{root}</text>')
    parts.append(
        f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 36}" text-anchor="middle">square root of KL (nats)</text>'
    )
    for name, colour in (("score", SCORE), ("gold", GOLD)):
        parts.append(line(result["frontier"], name, colour, ""))
        parts.append(line(result["best_of"], name, colour, 'stroke-dasharray="3 5"'))
        for run in result["ppo"]:
            x, y = at(run, name)
            parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}" fill-opacity=".55"/>')
    return "".join(parts)


def _legend(height: float) -> str:
    entries = (
        (f'<line x2="26" stroke="{SCORE}" stroke-width="2"/>', "the rater's score", 150),
        (f'<line x2="26" stroke="{GOLD}" stroke-width="2"/>', "gold", 80),
        ('<line x2="26" stroke="#444" stroke-width="2"/>', "exact optimum, beta 10 to 0.03", 230),
        ('<line x2="26" stroke="#444" stroke-width="2" stroke-dasharray="3 5"/>', "exact best of 1 to 1024", 190),
        ('<circle cx="13" r="4" fill="#444" fill-opacity=".55"/>', "PPO, a run each", 0),
    )
    parts, x = [], LEFT
    for mark, text, room in entries:
        parts.append(f'<g transform="translate({x},{height - 18})">{mark}<text x="32" y="5">{text}</text></g>')
        x += room
    return "".join(parts)
