"""Whole sessions in a real browser: what is pressed, what the store then holds, what is read out."""

import re

import pytest
from playwright.sync_api import Page, expect
from rows import row


class Keyboard:
    """Presses keys and counts them."""

    def __init__(self, page: Page) -> None:
        self.page, self.presses = page, 0

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
            self.presses += 1


def wait_saved(page: Page) -> None:
    expect(page.locator("#saved")).to_have_text("All saved")


def wait_done(page: Page, done: int) -> None:
    expect(page.locator("#count")).to_have_text(re.compile(rf"^{done} done"))
    wait_saved(page)


def shown_ranks(ranking) -> list[int]:
    """The ranks of a stored ranking, in the order in which the answers were shown."""
    return [ranking.ranks[index] for index in ranking.order]


@pytest.mark.parametrize("k", range(2, 10))
def test_a_ranking_takes_at_most_two_keys_more_than_answers(serve, open_page, k):
    served = serve([row(k, number) for number in range(3)], "--repeats", "0")
    page = open_page(served.address)
    keys = Keyboard(page)
    keys.press(*(f"Digit{i}" for i in range(k, 0, -1)), "Enter")  # without ties, the last one is the best
    wait_done(page, 1)
    assert keys.presses <= k + 2
    keys.presses = 0
    keys.press("Digit1", *(f"Shift+Digit{i}" for i in range(2, k + 1)), "Enter")  # all equal
    wait_done(page, 2)
    assert keys.presses <= k + 2
    keys.presses = 0
    keys.press("KeyB", "Enter")
    wait_done(page, 3)
    assert keys.presses <= k + 2
    expect(page.locator("#done-title")).to_be_focused()
    expect(page.locator("#done-title")).to_have_text("Nothing is left to rank")
    first, tied, bad = served.rankings()
    assert shown_ranks(first) == list(range(k, 0, -1))
    assert (tied.ranks, tied.all_bad) == ([1] * k, False)
    assert (bad.ranks, bad.all_bad) == ([1] * k, True)


@pytest.mark.parametrize(("k", "opens"), [(6, True), (7, False)])
def test_a_question_mark_on_a_digit_opens_help_unless_an_answer_has_that_digit(serve, open_page, k, opens):
    page = open_page(serve([row(k)]).address)
    expect(page.locator("#prompt-title")).to_be_focused()
    page.evaluate(  # as a Russian keyboard has it; Playwright's own keyboard is American
        """document.activeElement.dispatchEvent(
            new KeyboardEvent("keydown", {key: "?", code: "Digit7", shiftKey: true, bubbles: true}))"""
    )
    expect(page.locator("#help-dialog")).to_be_visible(visible=opens)
    expect(page.locator("#said")).to_have_text("" if opens else re.compile("^Answer 7 is 1st"))


def test_ties_in_the_middle_and_a_digit_once_more_takes_off(serve, open_page):
    served = serve([row(4)])
    page = open_page(served.address)
    keys = Keyboard(page)
    keys.press("Digit3", "Digit1", "Shift+Digit4", "Digit2")
    expect(page.locator("#order")).to_have_text("1st 32nd 143rd 2")
    keys.press("Digit3")  # off: what is behind moves up
    expect(page.locator("#order")).to_have_text("1st 142nd 2Not ranked 3")
    keys.press("Enter")
    expect(page.locator("#said")).to_have_text("Rank 3 first. If all answers are bad, press B.")
    keys.press("Shift+Digit3", "Enter")
    wait_done(page, 1)
    assert shown_ranks(served.rankings()[0]) == [1, 2, 2, 1]


def test_the_number_pad_and_a_keyboard_whose_digits_need_shift(serve, open_page):
    served = serve([row(3)])
    page = open_page(served.address)
    press = "key => document.body.dispatchEvent(new KeyboardEvent('keydown', {...key, bubbles: true}))"
    page.evaluate(press, {"code": "Numpad1", "key": "End"})  # without NumLock it moves
    page.evaluate(press, {"code": "Numpad2", "key": "2"})
    page.evaluate(press, {"code": "Digit1", "key": "&"})  # on a French keyboard
    page.evaluate(press, {"code": "", "key": "3"})  # on a screen
    expect(page.locator("#order")).to_have_text("1st 22nd 13rd 3")


def test_letter_keys_of_a_keyboard_without_latin_letters(serve, open_page):
    served = serve([row(2)])
    page = open_page(served.address)
    press = "key => document.body.dispatchEvent(new KeyboardEvent('keydown', {...key, bubbles: true}))"
    page.evaluate(press, {"code": "KeyF", "key": "а"})  # on a Russian one
    expect(page.locator("#flag")).to_have_attribute("aria-pressed", "true")
    page.evaluate(press, {"code": "KeyB", "key": "Process"})  # where Chinese is typed
    expect(page.locator("#all-bad")).to_have_attribute("aria-pressed", "true")
    page.evaluate(press, {"code": "KeyN", "key": "b"})  # Dvorak: the letter counts, not its place
    expect(page.locator("#all-bad")).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#note-dialog")).to_be_hidden()
    page.evaluate(press, {"code": "KeyS", "key": "é"})
    expect(page.locator("#skip-dialog")).to_be_visible()


def test_undo_and_redo_go_over_submits_without_limit(serve, open_page):
    served = serve([row(2, number) for number in range(4)], "--repeats", "0")
    page = open_page(served.address)
    keys = Keyboard(page)
    prompts = []
    for done in range(3):
        prompts.append(page.locator("#prompt").inner_text())
        keys.press("Digit2", "Digit1", "Enter")
        wait_done(page, done + 1)
    for _ in range(9):
        keys.press("KeyU")
    wait_done(page, 0)
    assert page.locator("#prompt").inner_text() == prompts[0]
    expect(page.locator("#order")).to_have_text("Not ranked 12")
    expect(page.locator("#undo")).to_have_attribute("aria-disabled", "true")
    keys.press("Backspace")
    expect(page.locator("#said")).to_have_text("There is nothing to undo.")
    for _ in range(9):
        keys.press("KeyR")
    wait_done(page, 3)
    assert page.locator("#prompt").inner_text() not in prompts
    # To correct the last one costs no later one.
    keys.press("KeyU", "Digit2", "Digit2", "Enter")
    wait_done(page, 3)
    assert [shown_ranks(ranking) for ranking in served.rankings()] == [[2, 1], [2, 1], [1, 2]]


SLOW = """const quick = window.fetch;
window.fetch = async (path, options) => {
  if (/"(submit|undo)"/.test(options?.body)) await new Promise((done) => setTimeout(done, 700));
  return quick(path, options);
};"""


def test_what_is_typed_before_the_next_task_is_seen_ranks_nothing(serve, open_page):
    served = serve([row(3, number) for number in range(3)], "--repeats", "0")
    page = open_page(served.address)
    page.context.add_init_script(SLOW)
    page.reload()
    page.wait_for_selector("#task:not([hidden])")
    for key in ("Digit1", "Digit2", "Digit3", "Enter", "Digit3", "KeyB", "Enter"):
        page.keyboard.press(key)
    wait_done(page, 1)
    expect(page.locator("#order")).to_have_text("Not ranked 123")
    # Behind an undo it is meant for what comes back, in the order in which it was typed.
    for key in ("KeyU", "Digit3", "Digit3", "KeyU", "KeyU", "KeyF", "Enter"):
        page.keyboard.press(key)
    wait_done(page, 1)
    [ranking] = served.rankings()
    assert (shown_ranks(ranking), ranking.flag) == ([1, 2, 3], True)


def test_skip_asks_for_a_reason_and_the_keyboard_gives_it(serve, open_page):
    served = serve([row(2, number) for number in range(2)], "--repeats", "0")
    page = open_page(served.address)
    page.keyboard.press("KeyS")
    page.keyboard.press("Enter")  # no reason yet
    expect(page.locator("#skip-dialog")).to_be_visible()
    page.keyboard.press("Digit2")
    page.keyboard.press("Enter")
    wait_done(page, 1)
    page.keyboard.press("KeyS")
    page.keyboard.press("Digit5")
    page.keyboard.press("Enter")  # "something else" needs words
    expect(page.locator("#skip-dialog")).to_be_visible()
    page.locator("#details").fill("only whitespace differs")
    page.keyboard.press("Control+Enter")
    wait_done(page, 2)
    assert [ranking.skipped for ranking in served.rankings()] == [
        "The prompt is unclear",
        "Something else: only whitespace differs",
    ]


def test_flag_and_note_belong_to_the_ranking(serve, open_page):
    served = serve([row(2)])
    page = open_page(served.address)
    page.keyboard.press("KeyF")
    expect(page.locator("#flag")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("KeyN")
    page.keyboard.type("b1 s2 are no keys here")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#note-label")).to_have_text("Edit note")
    page.keyboard.press("Digit1")
    page.keyboard.press("Digit2")
    page.keyboard.press("Enter")
    wait_done(page, 1)
    [ranking] = served.rankings()
    assert (ranking.flag, ranking.note) == (True, "b1 s2 are no keys here")


def test_a_half_done_ranking_survives_a_reload_and_a_killed_server(serve, open_page):
    served = serve([row(4)])
    page = open_page(served.address)
    page.keyboard.press("Digit4")
    page.keyboard.press("Digit2")
    page.keyboard.press("KeyF")
    wait_saved(page)
    for disturb in (page.reload, lambda: (served.kill(), served.restart(), page.reload())):
        disturb()
        expect(page.locator("#order")).to_have_text("1st 42nd 2Not ranked 13")
        expect(page.locator("#flag")).to_have_attribute("aria-pressed", "true")


def test_while_the_server_is_away_nothing_is_called_saved_and_then_all_of_it_is(serve, open_page):
    served = serve([row(3, number) for number in range(2)], "--repeats", "0")
    page = open_page(served.address)
    served.kill()
    for key in ("Digit3", "Digit1", "Digit2", "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#saved")).to_have_text("Not saved yet")
    expect(page.locator("#trouble")).to_contain_text("Not saved yet: the server does not answer.")
    expect(page.locator("#count")).to_have_text(re.compile("^0 done"))
    expect(page.locator("#order")).to_have_text("1st 32nd 13rd 2")
    served.restart()
    wait_done(page, 1)
    expect(page.locator("#trouble")).to_be_hidden()
    assert [shown_ranks(ranking) for ranking in served.rankings()] == [[2, 3, 1]]


def test_while_nothing_can_be_stored_the_page_shows_it_without_naming_the_file(serve, open_page):
    served = serve([row(2)])
    page = open_page(served.address)
    moved = served.store.rename(served.store.with_name("moved"))
    page.keyboard.press("Digit2")
    expect(page.locator("#trouble")).to_have_text(
        "Not saved yet: the server could not store it; whoever started chatpipe rank can read why. Trying again."
    )
    assert served.store.name not in page.content()
    moved.rename(served.store)
    wait_saved(page)
    expect(page.locator("#trouble")).to_be_hidden()
    expect(page.locator("#order")).to_have_text("1st 2Not ranked 1")
    assert str(served.store) in served.stop()


@pytest.mark.parametrize("step", ["KeyU", "Digit1"])
def test_when_another_annotators_address_is_opened_in_the_browser_the_first_page_stops(serve, open_page, step):
    served = serve(
        [row(2, number) for number in range(2)], "--annotators", "ann,ben", "--overlap", "2", "--repeats", "0"
    )
    page = open_page(served.addresses["ann"])
    expect(page.locator("#annotator")).to_have_text("as ann")
    for key in ("Digit1", "Digit2", "Enter"):
        page.keyboard.press(key)
    wait_done(page, 1)
    other = page.context.new_page()
    other.goto(served.addresses["ben"])
    expect(other.locator("#annotator")).to_have_text("as ben")
    for key in ("Digit2", "Digit1", "Enter"):
        other.keyboard.press(key)
    wait_done(other, 1)
    page.bring_to_front()
    page.keyboard.press(step)
    expect(page.locator("#trouble")).to_have_text(
        "The address of ben was opened in this browser, so it ranks as ben now, not as ann. The last step was not"
        " saved. Reload this page to continue as ben, or open the address of ann again."
    )
    expect(page.locator("#task")).to_be_hidden()
    expect(page.locator("#controls")).to_be_hidden()
    for key in ("KeyU", "Digit1", "Digit2", "Enter", "?"):
        page.keyboard.press(key)
    expect(page.locator("#help-dialog")).to_be_hidden()
    assert [(ranking.annotator, shown_ranks(ranking)) for ranking in served.rankings()] == [
        ("ann", [1, 2]),
        ("ben", [2, 1]),
    ]
    page.reload()
    expect(page.locator("#annotator")).to_have_text("as ben")
    page.goto(served.addresses["ann"])
    expect(page.locator("#annotator")).to_have_text("as ann")
    wait_done(page, 1)


def test_another_tab_sees_what_comes_now(serve, open_page):
    served = serve([row(2, number) for number in range(3)], "--repeats", "0")
    page = open_page(served.address)
    other = page.context.new_page()
    other.goto(served.origin)
    other.wait_for_selector("#task:not([hidden])")
    for key in ("Digit1", "Digit2", "Enter"):
        other.keyboard.press(key)
    wait_done(other, 1)
    page.bring_to_front()
    page.keyboard.press("Digit2")
    expect(page.locator("#said")).to_contain_text("You continued in another tab")
    expect(page.locator("#count")).to_have_text(re.compile("^1 done"))
    assert page.locator("#prompt").inner_text() == other.locator("#prompt").inner_text()
    expect(page.locator("#order")).to_have_text("Not ranked 12")


def test_two_annotators_rank_at_once_at_addresses_of_their_own(serve, open_page):
    served = serve(
        [row(3, number) for number in range(4)], "--annotators", "ann,ben", "--overlap", "2", "--repeats", "0"
    )
    pages = [open_page(served.addresses[name]) for name in ("ann", "ben")]
    for done in range(4):
        for page in pages:
            for key in ("Digit1", "Digit2", "Digit3", "Enter"):
                page.keyboard.press(key)
        for page in pages:
            wait_done(page, done + 1)
    assert sorted(ranking.annotator for ranking in served.rankings()) == ["ann"] * 4 + ["ben"] * 4
    expect(pages[1].locator("#done-count")).to_have_text("ben, you have ranked or skipped 4. Thank you.")


def test_the_mouse_alone_does_all_of_it(serve, open_page):
    served = serve([row(3, number) for number in range(2)], "--repeats", "0")
    page = open_page(served.address)
    card = page.locator(".answer")
    card.nth(1).get_by_role("button", name="Place 1st").click()
    card.nth(0).get_by_role("button", name="Tie 1st").click()
    card.nth(2).get_by_role("button", name="Place 2nd").click()
    page.keyboard.press("Enter")  # the button that was clicked is not pressed once more
    wait_done(page, 1)
    page.get_by_role("button", name="Undo").click()
    wait_done(page, 0)
    card.nth(1).get_by_role("button", name="Take off").click()
    card.nth(1).get_by_role("button", name="Place 3rd").click()
    page.get_by_role("button", name="Submit").click()
    wait_done(page, 1)
    page.get_by_role("button", name="All bad").click()
    page.get_by_role("button", name="Submit").click()
    wait_done(page, 2)
    first, second = served.rankings()
    assert (shown_ranks(first), second.all_bad) == ([1, 3, 2], True)


def test_tab_and_enter_alone_do_all_of_it(serve, open_page):
    served = serve([row(2)])
    page = open_page(served.address)
    page.keyboard.press("?")
    page.locator("#keys").uncheck()  # no key but these
    page.keyboard.press("Escape")
    page.keyboard.press("Digit1")
    expect(page.locator("#order")).to_have_text("Not ranked 12")
    page.locator("#prompt-title").focus()
    seen = []

    def tab_to(name: str) -> None:
        for _ in range(20):
            page.keyboard.press("Tab")
            seen.append(page.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
            words = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
            if page.evaluate(words).startswith(name):
                page.keyboard.press("Enter")
                return
        raise AssertionError(f"Tab leads to no {name}")

    tab_to("Place 1st: answer 1")
    tab_to("Tie 1st: answer 2")
    expect(page.get_by_role("button", name="Take off: answer 2")).to_be_focused()
    tab_to("Submit")
    wait_done(page, 1)
    assert set(seen) == {"solid"}  # the focus was visible all the way
    assert served.rankings()[0].ranks == [1, 1]


def test_what_is_done_is_read_out_and_the_new_task_has_the_focus(serve, open_page):
    served = serve([row(3, number) for number in range(2)], "--repeats", "0")
    page = open_page(served.address)
    expect(page.locator("#prompt-title")).to_be_focused()
    said = page.locator("#said")
    assert said.get_attribute("role") == "status"
    for key, words in [
        ("Digit2", "Answer 2 is 1st. Not ranked: 1 and 3."),
        ("Shift+Digit3", "Answer 3 is 1st too. Not ranked: 1."),
        ("Digit3", "Answer 3 has no place. Not ranked: 1 and 3."),
        ("KeyU", "Undone. 0 done, 2 left."),
        ("Digit1", "Answer 1 is 2nd. Enter submits."),
        ("KeyB", "All answers are bad. Enter submits."),
        ("KeyB", "Not all answers are bad."),
    ]:
        page.keyboard.press(key)
        expect(said).to_have_text(words)
        wait_saved(page)
    page.get_by_role("button", name="Submit").focus()
    page.keyboard.press("Enter")
    expect(said).to_have_text("Submitted and saved. 1 done, 1 left.")
    expect(page.locator("#prompt-title")).to_be_focused()
    expect(page.get_by_role("article", name="Answer 3")).to_be_visible()


def test_a_link_on_another_site_leads_to_the_page(serve, open_page, browser, tmp_path):
    served = serve([row(2)])
    address = served.address.replace("127.0.0.1", "localhost")
    context = browser.new_context()
    page = context.new_page()
    page.route(
        "http://chat.example/", lambda route: route.fulfill(content_type="text/html", body=f"<a href='{address}'>")
    )
    page.goto("http://chat.example/")
    page.evaluate("document.querySelector('a').click()")
    page.wait_for_selector("#task:not([hidden])")
    assert page.url == served.origin.replace("127.0.0.1", "localhost") + "/"
    assert "token" not in page.evaluate("document.cookie + location.href")
    context.close()


def test_another_site_can_do_nothing(serve, open_page, browser):
    served = serve([row(2)])
    page = open_page(served.address)  # the browser has the cookie
    evil = page.context.new_page()
    evil.route("http://evil.example/", lambda route: route.fulfill(content_type="text/html", body="<p>"))
    evil.goto("http://evil.example/")
    script = """async (url) => {
      const body = JSON.stringify({key: "evil-key-1", action: "skip", task: null, answer: null, reason: "evil"});
      const headers = {"Content-Type": "application/json"};
      const tries = [
        fetch(url + "/api/view", {credentials: "include"}),
        fetch(url + "/api/view", {credentials: "include", mode: "no-cors"}),
        fetch(url + "/api/act", {method: "POST", body, credentials: "include", mode: "no-cors"}),
        fetch(url + "/api/act", {method: "POST", body, credentials: "include", headers}),
      ];
      const results = await Promise.allSettled(tries);
      return Promise.all(results.map(async (result) => (result.value ? await result.value.text() : "")));
    }"""
    assert evil.evaluate(script, served.origin) == [""] * 4
    assert evil.evaluate(
        """(url) => new Promise((done) => {
          const frame = document.createElement("iframe");
          frame.onload = () => { try { done(frame.contentDocument.body.textContent) } catch { done("closed") } };
          frame.src = url;
          document.body.append(frame);
        })""",
        served.origin,
    ) in ("closed", "")
    assert served.rankings() == []
