"""The page as such: who can use it, what it loads, and that no text of a model ever runs."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from payloads import PAYLOADS
from playwright.sync_api import Page, Route, expect
from rows import row

SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 320, "height": 640}}
ZOOMED = {"width": 1280 // 4, "height": 800 // 4}  # 400 % zoom of a desktop

LONG = {
    "prompt": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": "A_word_that_is_longer_than_the_screen_is_wide_" * 5 + "\n\tdef f(x):\n\t\treturn x\n" * 3,
        },
        {"role": "assistant", "content": "Which one?"},
        {"role": "user", "content": "مرحبا بالعالم"},
    ],
    "responses": ["long " * 800, "x" * 500, "| a | b |\n|---|---|\n" * 10, "short", "🙂 " * 50],
}


def states(page: Page) -> dict[str, Any]:
    """How to bring the page into each state that it has, in an order that works."""
    press = page.keyboard.press
    return {
        "new task": lambda: None,
        "half ranked": lambda: (press("Digit2"), press("Shift+Digit1"), press("Digit3")),
        "refused": lambda: press("Enter"),
        "help": lambda: press("?"),
        "skip": lambda: (press("Escape"), press("s")),
        "note": lambda: (press("Escape"), press("n")),
        "all bad, flagged, noted": lambda: (page.keyboard.type("Odd."), press("Control+Enter"), press("b"), press("f")),
        "trouble": lambda: page.evaluate(
            "document.getElementById('trouble').textContent = 'Not saved yet: trying again.'"
        ),
        "nothing left": lambda: (press("Enter"), expect(page.locator("#done")).to_be_visible()),
    }


def violations(page: Page, axe: str) -> list[str]:
    if not page.evaluate("'axe' in window"):
        page.evaluate(axe)
    found = page.evaluate(
        "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']})"
    )
    return [f"{one['id']}: {[node['html'][:120] for node in one['nodes']]}" for one in found["violations"]]


def assert_no_sideways_scroll(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    wider = """[...document.querySelectorAll('main *:not(.word)')].filter(
      (e) => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== 'visible'
    )"""
    assert page.evaluate(f"{wider}.map((e) => e.outerHTML.slice(0, 80))") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing_in_any_state(serve, open_page, axe, size, scheme):
    served = serve([LONG])
    page = open_page(served.address, viewport=SIZES[size], color_scheme=scheme)
    for state, reach in states(page).items():
        reach()
        assert violations(page, axe) == [], f"{state} ({size}, {scheme})"
        assert_no_sideways_scroll(page)


@pytest.mark.parametrize("size", [*SIZES, "400 % zoom"])
def test_every_text_is_shown_whole_and_nothing_scrolls_sideways(serve, open_page, size):
    served = serve([LONG])
    page = open_page(served.address, viewport=SIZES.get(size, ZOOMED))
    shown = page.locator(".answer .text").all_text_contents()
    assert sorted(shown) == sorted(LONG["responses"])
    assert page.locator("#prompt .text").all_text_contents() == [message["content"] for message in LONG["prompt"]]
    cut = "[...document.querySelectorAll('.text')].filter(e => e.scrollHeight > e.clientHeight + 1).length"
    assert page.evaluate(cut) == 0
    assert_no_sideways_scroll(page)
    for key in ("Digit1", "Digit2", "?"):
        page.keyboard.press(key)
    assert_no_sideways_scroll(page)
    dialog = page.locator("#help-dialog")
    assert dialog.evaluate("e => e.scrollWidth <= e.clientWidth")
    page.keyboard.press("Escape")
    if size == "400 % zoom":  # nothing that stays in view takes the room of the texts
        page.mouse.wheel(0, 600)
        sticky = (
            "[...document.querySelectorAll('main *')].filter(e => getComputedStyle(e).position === 'sticky').length"
        )
        assert page.evaluate(sticky) == 0


@pytest.mark.parametrize("k", range(2, 10))
def test_answers_are_side_by_side_on_a_desktop_and_below_each_other_on_a_phone(serve, open_page, k):
    served = serve([row(k)])
    page = open_page(served.address)
    columns = (
        "new Set([...document.querySelectorAll('.answer')].map(e => Math.round(e.getBoundingClientRect().left))).size"
    )
    assert page.evaluate(columns) == (2 if k in (2, 4, 8) else 3)
    page.set_viewport_size({"width": 1600, "height": 900})
    assert page.evaluate(columns) == {2: 2, 4: 4, 8: 4}.get(k, 3)
    page.set_viewport_size(SIZES["phone"])
    assert page.evaluate(columns) == 1


def test_nothing_moves_for_who_wants_no_motion(serve, open_page):
    served = serve([row(3)])
    page = open_page(served.address, reduced_motion="reduce")
    moving = """[...document.querySelectorAll('*')].map((e) => getComputedStyle(e)).filter(
      (style) => style.transitionDuration !== '0s' || style.animationName !== 'none'
    ).length"""
    assert page.evaluate(moving) == 0


def test_the_page_is_small_and_asks_nobody_but_the_server(serve, open_page):
    served = serve([row(4)])
    sizes: dict[str, int] = {}
    page = open_page(served.address)
    page.on("response", lambda response: sizes.__setitem__(response.url, len(response.body())))
    page.reload()
    page.wait_for_selector("#task:not([hidden])")
    page.wait_for_load_state("networkidle")
    assert {url.removeprefix(served.origin) for url in sizes} >= {"/", "/rank.css", "/rank.js", "/api/view"}
    assert all(url.startswith(served.origin + "/") for url in sizes)
    assert sum(sizes.values()) <= 100_000


def answer_with(status: int, value: Any) -> Callable[[Route], None]:
    return lambda route: route.fulfill(status=status, json=value)


RUNS = "window.hits = 0; window.hit = () => { window.hits++; return 1 }; window.alert = window.hit;"


def test_no_payload_runs_in_any_field(serve, open_page):
    assert len(PAYLOADS) >= 100
    rows = [
        {
            "prompt": [{"role": "user", "content": payload}],
            "responses": [payload, f"{payload} {i}"],
        }
        for i, payload in enumerate(PAYLOADS)
    ]
    served = serve(rows, "--repeats", "0")
    page = open_page(served.address)
    page.context.add_init_script(RUNS)
    page.reload()
    page.wait_for_selector("#task:not([hidden])")
    for done, payload in enumerate(PAYLOADS, start=1):
        page.keyboard.press("KeyN")
        page.locator("#note-text").fill(payload)
        page.keyboard.press("Control+Enter")
        page.keyboard.press("KeyN")  # shown again
        page.keyboard.press("Escape")
        page.keyboard.press("KeyS")
        page.keyboard.press("Digit5")
        page.locator("#details").fill(payload)
        page.keyboard.press("Control+Enter")
        expect(page.locator("#count")).to_have_text(re.compile(f"^{done} done"))
        assert page.evaluate("hits") == 0, payload
        assert page.evaluate("document.querySelectorAll('.text *, .message h3 *, script:not([src])').length") == 0
    assert page.evaluate("hit()") == 1  # it would have been counted
    assert [ranking.note for ranking in served.rankings()] == [payload.strip() for payload in PAYLOADS]


def test_a_payload_in_a_role_or_in_an_answer_of_the_server_does_not_run(serve, open_page):
    """The server takes four roles alone; the page relies on nothing."""
    served = serve([row(2)])
    page = open_page(served.address)
    page.context.add_init_script(RUNS)
    for payload in PAYLOADS:
        view = {
            "annotator": payload,
            "error": payload,
            "task": "t",
            "prompt": [{"role": payload, "content": payload}],
            "responses": [payload, payload],
            "answer": {"ranks": [None, None], "all_bad": False, "flag": False, "note": payload},
            "can_undo": False,
            "can_redo": False,
            "done": 0,
            "left": 1,
            "seconds_per_task": None,
        }
        page.unroute_all()
        page.route("**/api/view", answer_with(200, view))
        page.route("**/api/act", answer_with(400, view))
        page.reload()
        page.wait_for_selector("#task:not([hidden])")
        page.keyboard.press("Digit1")
        expect(page.locator("#said")).to_contain_text("Not saved: ")
        assert page.evaluate("hits") == 0, payload
        assert page.evaluate("document.querySelectorAll('.text *, .message h3 *, #said *').length") == 0


def test_the_policy_stops_a_script_that_came_in_all_the_same(serve, open_page):
    served = serve([row(2)])
    page = open_page(served.address)
    page.context.add_init_script(RUNS)
    page.reload()
    page.wait_for_selector("#task:not([hidden])")
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          try { script.textContent = "hit()"; document.body.append(script); } catch {}
          try { document.body.insertAdjacentHTML("beforeend", "<img src=x onerror=hit()>"); } catch {}
          const image = document.createElement("img");
          image.setAttribute("src", "x");
          try { image.setAttribute("onerror", "hit()"); document.body.append(image); } catch {}
        }"""
    )
    page.wait_for_timeout(300)
    assert page.evaluate("hits") == 0
    assert (
        json.loads(page.evaluate("JSON.stringify([...document.scripts].map(s => s.src.split('/').at(-1)))"))[0]
        == "rank.js"
    )
