// The page of `chatpipe rank`: shows one task, takes a ranking by key or button, and posts every step.
//
// What the server says stands. A step is shown at once, but called saved only when the server has answered for it; until
// then it is sent again and again under the same key, so that it counts once. Texts reach the page by textContent alone.

const RETRY_SECONDS = [0.5, 1, 2, 5];
const TIMEOUT_SECONDS = 15;

const byId = (id) => document.getElementById(id);

let view = null; // what the server last said: annotator, task, prompt, responses, answer, can_undo, can_redo, done, left, ...
let answer = null; // the answer as it stands on the page: view.answer and the edits that are under way
let shownTask; // whose texts are on the page
let turn = null; // the step under way that may lead to another task: what follows has to wait until that is known
const waiting = []; // what was asked for meanwhile, the oldest first
const outbox = []; // steps that the server has not answered for, the oldest first
let sending = false;

// ------------------------------------------------------------------------------------------------- the server

async function call(path, options = {}) {
  const reply = await fetch(path, { ...options, signal: AbortSignal.timeout(TIMEOUT_SECONDS * 1000) });
  if (reply.status === 403) throw new Error("this address is no longer valid: open the one that chatpipe rank prints now");
  if (reply.status === 503) throw new Error((await reply.json()).error);
  if (reply.status >= 500) throw new Error(`the server has failed (${reply.status})`);
  return { status: reply.status, body: await reply.json() };
}

const fetchView = () => call("/api/view");

const post = (step) =>
  call("/api/act", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(step) });

/** Calls until the server answers, and meanwhile says on the page that nothing is saved. */
async function insist(request) {
  for (let tries = 0; ; tries++) {
    try {
      const reply = await request();
      showTrouble("");
      return reply;
    } catch (problem) {
      const why = problem instanceof TypeError || problem.name === "TimeoutError" ? "the server does not answer" : problem.message;
      showTrouble(`Not saved yet: ${why}. Trying again.`);
      await new Promise((done) => setTimeout(done, 1000 * RETRY_SECONDS[Math.min(tries, RETRY_SECONDS.length - 1)]));
    }
  }
}

/** A key that no other step has. (`randomUUID` is missing where the page is not local.) */
function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Puts a step into the outbox; `said` tells what it did once it is saved. */
function take(action, { reason = null, said = "" } = {}) {
  if (action !== "edit") turn = action;
  const given = isMove(action) ? null : structuredClone(answer);
  outbox.push({ step: { key: newKey(), action, task: view.task, answer: given, reason }, said });
  showSaved();
  sendAll();
}

async function sendAll() {
  if (sending) return;
  sending = true;
  while (outbox.length) {
    const { step, said } = outbox[0];
    const { status, body } = await insist(() => post(step));
    outbox.shift();
    view = body;
    if (status === 200) {
      if (step.action !== "edit") announce(`${said} ${view.done} done, ${view.left} left.`);
    } else {
      // What comes behind it was meant for another state of affairs.
      outbox.length = 0;
      announce(status === 409 ? "You went on in another tab or window. This is what comes now." : `Not taken: ${body.error}.`);
    }
    if (!outbox.length) adopt();
  }
  sending = false;
  showSaved();
}

/** Takes over what the server said, once no step is under way. */
function adopt() {
  turn = null;
  answer = structuredClone(view.answer);
  const isNew = view.task !== shownTask;
  if (isNew) showTask();
  showState();
  if (isNew) {
    window.scrollTo(0, 0);
    byId(view.task === null ? "done-title" : "prompt-title").focus({ preventScroll: true });
  }
  while (turn === null && waiting.length) waiting.shift()();
}

async function start() {
  view = (await insist(fetchView)).body;
  shownTask = undefined;
  adopt();
  showSaved();
}

// ------------------------------------------------------------------------------------------------- ranking

const isMove = (action) => action === "undo" || action === "redo";

/**
 * Does it now, or once the task is there that an undo or redo leads to. What was typed behind a submit or skip, before the
 * next task was to be seen, cannot be meant for that one.
 */
function attempt(act) {
  if (view === null) return;
  if (turn === null) act();
  else if (isMove(turn) || act === undo || act === redo) waiting.push(act);
}

const isTask = () => view.task !== null;
const worst = () => Math.max(0, ...answer.ranks.filter((rank) => rank !== null));
const unranked = () => answer.ranks.flatMap((rank, i) => (rank === null ? [i + 1] : []));
const atPlace = (place) => answer.ranks.flatMap((rank, i) => (rank === place ? [i + 1] : []));

/** Gives an answer (counted from 0) the next place, or takes it off the place it has. */
function place(i) {
  if (i >= answer.ranks.length) return;
  const rank = answer.ranks[i];
  if (rank === null) {
    setRank(i, worst() + 1);
    edit(`Answer ${i + 1} is ${ordinal(answer.ranks[i])}. ${whatIsLeft()}`);
  } else {
    setRank(i, null);
    edit(`Answer ${i + 1} has no place. ${whatIsLeft()}`);
  }
}

/** Gives an answer the place of the answer that was placed last. */
function tie(i) {
  if (i >= answer.ranks.length) return;
  setRank(i, null);
  setRank(i, Math.max(1, worst()));
  edit(`Answer ${i + 1} is ${ordinal(answer.ranks[i])} too. ${whatIsLeft()}`);
}

/** Sets a rank; where a place becomes empty, what is behind it moves up. */
function setRank(i, rank) {
  const left = answer.ranks[i];
  answer.ranks[i] = rank;
  if (left !== null && !answer.ranks.includes(left)) {
    answer.ranks = answer.ranks.map((other) => (other !== null && other > left ? other - 1 : other));
  }
}

function edit(said) {
  announce(said);
  showState();
  take("edit");
}

function submit() {
  if (!isTask()) return;
  const missing = unranked();
  if (missing.length && !answer.all_bad) {
    announce(`Rank ${spoken(missing)} first. If all answers are bad, say so (B).`);
    return;
  }
  take("submit", { said: "Submitted and saved." });
}

function undo() {
  if (!view.can_undo && !outbox.length) return announce("There is nothing to undo.");
  take("undo", { said: "Undone." });
}

function redo() {
  if (!view.can_redo || outbox.length) return announce("There is nothing to redo.");
  take("redo", { said: "Done again." });
}

function toggle(field, on, off) {
  if (!isTask()) return;
  answer[field] = !answer[field];
  edit(answer[field] ? on : off);
}

const allBad = () => toggle("all_bad", "All answers are bad. Enter submits.", "Not all answers are bad.");
const flag = () => toggle("flag", "Flagged.", "The flag is taken off.");

// ------------------------------------------------------------------------------------------------- showing

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

function makeText(text) {
  const element = make("p", "text", text);
  element.dir = "auto"; // Arabic and Hebrew from the right
  return element;
}

const ordinal = (n) => n + (["st", "nd", "rd"][n - 1] ?? "th"); // n is at most 9
const spoken = (numbers) => (numbers.length < 2 ? numbers.join("") : `${numbers.slice(0, -1).join(", ")} and ${numbers.at(-1)}`);

function whatIsLeft() {
  const missing = unranked();
  if (missing.length > 3) return `${missing.length} are not ranked.`;
  return missing.length ? `Not ranked: ${spoken(missing)}.` : "Enter submits.";
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/** Says it in the line that screen readers read out. */
function announce(text) {
  byId("said").textContent = text;
}

function showTrouble(text) {
  if (byId("trouble").textContent !== text) byId("trouble").textContent = text;
  showSaved();
}

function showSaved() {
  const isTrouble = byId("trouble").textContent !== "";
  byId("saved").textContent = isTrouble ? "Not saved yet" : outbox.length ? "Saving …" : view === null ? "" : "All saved";
}

/** Puts the texts of the task at hand on the page. */
function showTask() {
  document.querySelector("dialog[open]")?.close(); // it was about the task before
  shownTask = view.task;
  byId("task").hidden = view.task === null;
  byId("done").hidden = view.task !== null;
  byId("controls").hidden = false;
  byId("prompt").replaceChildren(...view.prompt.map(makeMessage));
  byId("answers").replaceChildren(...view.responses.map(makeCard));
  const k = view.responses.length;
  byId("answers").dataset.columns = k === 4 || k === 8 ? 4 : k === 2 ? 2 : 3;
}

function makeMessage(message) {
  const element = make("div", "message");
  element.append(make("h3", "", message.role), makeText(message.content));
  return element;
}

function makeCard(response, i) {
  const card = make("article", "answer");
  const title = make("h3");
  title.id = `answer-${i + 1}`;
  title.append(make("span", "word", "Answer "), make("kbd", "", String(i + 1)));
  card.setAttribute("aria-labelledby", title.id);
  const placed = make("span", "place");
  const placeButton = make("button", "place-button");
  const tieButton = make("button", "tie-button");
  placeButton.type = tieButton.type = "button";
  onClick(placeButton, () => attempt(() => place(i)));
  onClick(tieButton, () => {
    const hadFocus = document.activeElement === tieButton;
    attempt(() => tie(i));
    if (hadFocus) placeButton.focus(); // the other one is gone now
  });
  const head = make("div", "head");
  head.append(title, placed, placeButton, tieButton);
  card.append(head, makeText(response));
  return card;
}

/** Shows what stands: ranks, flags, progress, and what each button would do. */
function showState() {
  byId("count").textContent = `${view.done} done, ${view.left} left`;
  byId("bar").max = Math.max(1, view.done + view.left);
  byId("bar").value = view.done;
  const pace = view.seconds_per_task;
  byId("pace").textContent =
    pace === null ? "" : `${duration(pace)} each` + (view.left ? `, about ${duration(pace * view.left)} to go` : "");
  byId("done-count").textContent = `${view.annotator}, you have ranked or skipped ${view.done}. Thank you.`;

  const next = worst() + 1;
  document.querySelectorAll(".answer").forEach((card, i) => {
    const rank = answer.ranks[i];
    card.classList.toggle("placed", rank !== null);
    const isTied = rank !== null && atPlace(rank).length > 1;
    card.querySelector(".place").textContent = rank === null ? "not ranked" : ordinal(rank) + (isTied ? ", tied" : "");
    label(card.querySelector(".place-button"), rank === null ? `Place ${ordinal(next)}` : "Take off", `answer ${i + 1}`);
    const tieButton = card.querySelector(".tie-button");
    tieButton.hidden = rank !== null || next === 1;
    label(tieButton, `Tie ${ordinal(Math.max(1, next - 1))}`, `answer ${i + 1}`);
  });
  showOrder();

  for (const id of ["all-bad", "flag", "note", "skip", "submit"]) disable(byId(id), !isTask());
  disable(byId("undo"), !view.can_undo && !outbox.length);
  disable(byId("redo"), !view.can_redo);
  byId("all-bad").setAttribute("aria-pressed", answer.all_bad);
  byId("flag").setAttribute("aria-pressed", answer.flag);
  byId("note-label").textContent = answer.note ? "Edit note" : "Note";
}

/** The places in order, and the tray of what has none. */
function showOrder() {
  const lines = [];
  for (let rank = 1; rank <= worst(); rank++) lines.push(makeLine(ordinal(rank), atPlace(rank), "chip placed"));
  if (unranked().length) lines.push(makeLine("Not ranked", unranked(), "chip"));
  byId("order").replaceChildren(...lines);
}

function makeLine(title, numbers, className) {
  const line = make("p", "", `${title} `);
  line.append(...numbers.map((number) => make("span", className, String(number))));
  return line;
}

/** The words on a button, and behind them, for who hears and does not see, what they are about. */
function label(button, words, about) {
  if (button.textContent !== words) button.textContent = words;
  button.setAttribute("aria-label", `${words}: ${about}`);
}

/** A button that does nothing now stays where it is for the keyboard, and says so. */
function disable(button, isOff) {
  button.setAttribute("aria-disabled", isOff);
}

// ------------------------------------------------------------------------------------------------- dialogs

function openSkip() {
  if (!isTask()) return;
  byId("skip-form").reset();
  needDetails();
  byId("skip-dialog").showModal();
}

function needDetails() {
  byId("details").required = byId("skip-form").elements.reason.value === "Something else";
}

function skip() {
  const details = byId("details").value.trim();
  const chosen = byId("skip-form").elements.reason.value;
  take("skip", { reason: details ? `${chosen}: ${details}` : chosen, said: "Skipped and saved." });
}

function openNote() {
  if (!isTask()) return;
  byId("note-text").value = answer.note;
  byId("note-dialog").showModal();
}

function keepNote() {
  answer.note = byId("note-text").value.trim();
  edit(answer.note ? "The note is kept." : "There is no note now.");
}

const openHelp = () => byId("help-dialog").showModal();

/** A form of a dialog: what is sent stays on this page. */
function onSubmit(name, act) {
  byId(`${name}-form`).addEventListener("submit", (event) => {
    event.preventDefault();
    byId(`${name}-dialog`).close();
    act();
  });
}

// ------------------------------------------------------------------------------------------------- keys and buttons

const KEYS = { u: undo, backspace: undo, r: redo, b: allBad, s: openSkip, f: flag, n: openNote, "?": openHelp };

/** Which digit key, on the main row or the number pad, whatever stands on it under Shift or in other countries. */
function digitOf(event) {
  const named = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
  if (event.code.startsWith("Numpad") && !/^[1-9]$/.test(event.key)) return null; // without NumLock it moves
  if (named) return Number(named[1]);
  return !event.code && /^[1-9]$/.test(event.key) ? Number(event.key) : null; // a keyboard on the screen
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat) return;
  if (!byId("keys").checked || document.querySelector("dialog[open]")) return;
  const digit = digitOf(event);
  if (digit !== null) {
    attempt(() => (event.shiftKey ? tie : place)(digit - 1));
  } else if (event.key === "Enter") {
    if (event.target.closest("button, a")) return; // which it presses
    attempt(submit);
  } else if (KEYS[event.key.toLowerCase()]) {
    attempt(KEYS[event.key.toLowerCase()]);
  } else {
    return;
  }
  event.preventDefault();
}

/** The digits of the reasons, and Ctrl+Enter in a longer text. */
function onDialogKey(event) {
  const isText = event.target.matches("textarea");
  if (isText && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    event.target.form.requestSubmit();
  }
  const reason = byId("skip-form").elements.reason[(digitOf(event) ?? 0) - 1];
  if (!isText && byId("skip-dialog").open && reason) {
    reason.checked = true;
    reason.focus();
    needDetails();
    event.preventDefault();
  }
}

function onClick(button, act) {
  button.addEventListener("click", (event) => {
    if (button.getAttribute("aria-disabled") === "true") return;
    // After a click with the mouse, Enter is to submit and not to press this button once more.
    if (event.detail > 0) button.blur();
    act();
  });
}

function connect() {
  const acts = { submit, undo, redo, flag, "all-bad": allBad, skip: openSkip, note: openNote, help: openHelp, again: start };
  for (const [id, act] of Object.entries(acts)) onClick(byId(id), () => attempt(act));
  onSubmit("skip", skip);
  onSubmit("note", keepNote);
  for (const button of document.querySelectorAll("dialog .cancel")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  byId("skip-form").addEventListener("change", needDetails);
  for (const dialog of document.querySelectorAll("dialog")) dialog.addEventListener("keydown", onDialogKey);
  document.addEventListener("keydown", onKey);

  byId("keys").checked = localStorage.getItem("keys") !== "off";
  byId("keys").addEventListener("change", () => localStorage.setItem("keys", byId("keys").checked ? "on" : "off"));
  window.addEventListener("beforeunload", (event) => {
    if (outbox.length) event.preventDefault(); // the browser asks whether to leave
  });
}

connect();
start();
