// The page of `chatpipe rank`: shows one task, takes a ranking by key or button, and posts every step.
//
// The server decides. A step is shown at once, but as saved only after the server has confirmed it; until then it is sent
// again and again with the same key, so that it counts once.

import { ordinal, placed, spoken, tied, unranked, whatIsLeft } from "./ranks.js";
import { fetchView, insist, newKey, post } from "./server.js";
import { announce, byId, onClick, showSaved, showState, showStopped, showTask, showTrouble } from "./show.js";

let view = null; // the server's last view: annotator, task, prompt, responses, answer, can_undo, can_redo, done, left, ...
let annotator = null; // who ranks on this page
let answer = null; // the answer on the page: view.answer and the edits that are not confirmed yet
let shownTask; // whose texts are on the page
let turn = null; // the step that may lead to another task: what follows waits until that is known
const waiting = []; // actions of the user meanwhile, the oldest first
const outbox = []; // steps that the server has not confirmed, the oldest first
let sending = false;

// ------------------------------------------------------------------------------------------------- steps

/** Puts a step into the outbox; `said` is announced once it is saved. */
function take(action, { reason = null, said = "" } = {}) {
  if (action !== "edit") turn = action;
  const given = isMove(action) ? null : structuredClone(answer);
  outbox.push({ step: { annotator, key: newKey(), action, task: view.task, answer: given, reason }, said });
  showSaved(!outbox.length);
  sendAll();
}

async function sendAll() {
  if (sending) return;
  sending = true;
  while (outbox.length) {
    const { step, said } = outbox[0];
    const { status, body } = await insist(() => post(step), tellTrouble);
    if (isOthers(body)) return;
    outbox.shift();
    view = body;
    if (status === 200) {
      if (step.action !== "edit") announce(`${said} ${view.done} done, ${view.left} left.`);
    } else {
      // The later steps were meant for another task.
      outbox.length = waiting.length = 0;
      announce(status === 409 ? "You continued in another tab or window. Here is the present task." : `Not saved: ${body.error}.`);
    }
    if (!outbox.length) adopt();
  }
  sending = false;
  showSaved(!outbox.length);
}

/** Whether the browser belongs to another annotator now, since their address was opened in it; then this page ends. */
function isOthers(body) {
  annotator ??= body.annotator;
  if (body.annotator === annotator) return false;
  const lost = outbox.length ? " The last step was not saved." : "";
  view = null;
  outbox.length = waiting.length = 0;
  showStopped(
    `The address of ${body.annotator} was opened in this browser, so it ranks as ${body.annotator} now, not as ${annotator}.${lost}` +
      ` Reload this page to continue as ${body.annotator}, or open the address of ${annotator} again.`,
  );
  return true;
}

function tellTrouble(text) {
  showTrouble(text);
  showSaved(!outbox.length);
}

const show = () => showState(view, answer, view.can_undo || outbox.length > 0);

/** Shows the server's view, once all steps are confirmed. */
function adopt() {
  turn = null;
  answer = structuredClone(view.answer);
  const isNew = view.task !== shownTask;
  if (isNew) showTask(view, (i) => attempt(() => place(i)), (i) => attempt(() => tie(i)));
  shownTask = view.task;
  show();
  if (isNew) {
    window.scrollTo(0, 0);
    byId(view.task === null ? "done-title" : "prompt-title").focus({ preventScroll: true });
  }
  while (turn === null && waiting.length) waiting.shift()();
}

async function start() {
  const { body } = await insist(fetchView, tellTrouble);
  if (isOthers(body)) return;
  view = body;
  shownTask = undefined;
  adopt();
  showSaved(!outbox.length);
}

// ------------------------------------------------------------------------------------------------- ranking

const isMove = (action) => action === "undo" || action === "redo";

/**
 * Does it now, or when the task of an undo or redo has arrived. A key after a submit or skip, before the next task was
 * visible, cannot be meant for that task.
 */
function attempt(act) {
  if (view === null) return;
  if (turn === null) act();
  else if (isMove(turn) || act === undo || act === redo) waiting.push(act);
}

const isTask = () => view.task !== null;

/** Gives an answer (counted from 0) the next place, or takes it off the place it has. */
function place(i) {
  if (i >= answer.ranks.length) return;
  answer.ranks = placed(answer.ranks, i);
  const rank = answer.ranks[i];
  edit(`Answer ${i + 1} ${rank === null ? "has no place" : `is ${ordinal(rank)}`}. ${whatIsLeft(answer.ranks)}`);
}

/** Gives an answer the place of the answer that was placed last. */
function tie(i) {
  if (i >= answer.ranks.length) return;
  answer.ranks = tied(answer.ranks, i);
  edit(`Answer ${i + 1} is ${ordinal(answer.ranks[i])} too. ${whatIsLeft(answer.ranks)}`);
}

function edit(said) {
  announce(said);
  show();
  take("edit");
}

function submit() {
  if (!isTask()) return;
  const missing = unranked(answer.ranks);
  if (missing.length && !answer.all_bad) {
    announce(`Rank ${spoken(missing)} first. If all answers are bad, press B.`);
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

/** A form of a dialog: it is not sent anywhere. */
function onSubmit(name, act) {
  byId(`${name}-form`).addEventListener("submit", (event) => {
    event.preventDefault();
    byId(`${name}-dialog`).close();
    act();
  });
}

// ------------------------------------------------------------------------------------------------- keys and buttons

const KEYS = { u: undo, backspace: undo, r: redo, b: allBad, s: openSkip, f: flag, n: openNote, "?": openHelp };

/** Which digit key, on the main row or the number pad, in any keyboard layout, with or without Shift. */
function digitOf(event) {
  const named = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
  if (event.code.startsWith("Numpad") && !/^[1-9]$/.test(event.key)) return null; // without NumLock it moves
  if (named) return Number(named[1]);
  return !event.code && /^[1-9]$/.test(event.key) ? Number(event.key) : null; // a keyboard on the screen
}

/** The Latin letter of a key in a layout without Latin letters. */
function letterOf(event) {
  const isAscii = /^[\x20-\x7e]$/.test(event.key);
  return (!isAscii && /^Key([A-Z])$/.exec(event.code)?.[1] || event.key).toLowerCase();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat) return;
  if (!byId("keys").checked || document.querySelector("dialog[open]")) return;
  const digit = digitOf(event);
  // On Russian keyboards the question mark is Shift+7: help, unless there is a seventh answer to tie.
  const isHelp = event.key === "?" && digit > (answer?.ranks.length ?? 0);
  if (digit !== null && !isHelp) {
    attempt(() => (event.shiftKey ? tie : place)(digit - 1));
  } else if (event.key === "Enter") {
    if (event.target.closest("button, a")) return; // which it presses
    attempt(submit);
  } else if (KEYS[letterOf(event)]) {
    attempt(KEYS[letterOf(event)]);
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
