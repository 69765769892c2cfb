// Shows the texts of a task and its ranking. Texts reach the page only through textContent.

import { atPlace, ordinal, unranked, worst } from "./ranks.js";

export const byId = (id) => document.getElementById(id);

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

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/** Writes it into the line that screen readers read out. */
export function announce(text) {
  byId("said").textContent = text;
}

export const trouble = () => byId("trouble").textContent;

export function showTrouble(text) {
  if (trouble() !== text) byId("trouble").textContent = text;
}

/** Replaces the page by a final message: nothing can be ranked here any more. */
export function showStopped(text) {
  document.querySelector("dialog[open]")?.close();
  for (const id of ["task", "done", "controls", "progress"]) byId(id).hidden = true;
  showTrouble(text);
}

/** Shows whether every step is saved. */
export function showSaved(isSaved) {
  byId("saved").textContent = trouble() ? "Not saved yet" : isSaved ? "All saved" : "Saving …";
}

/** Puts the texts of the task at hand on the page; `place` and `tie` are what the buttons of an answer do. */
export function showTask(view, place, tie) {
  document.querySelector("dialog[open]")?.close(); // it belongs to the task before
  byId("task").hidden = view.task === null;
  byId("done").hidden = view.task !== null;
  byId("controls").hidden = false;
  byId("prompt").replaceChildren(...view.prompt.map(makeMessage));
  byId("answers").replaceChildren(...view.responses.map((response, i) => makeCard(response, i, place, tie)));
  const k = view.responses.length;
  byId("answers").dataset.columns = k === 4 || k === 8 ? 4 : k === 2 ? 2 : 3;
}

function makeMessage(message) {
  const element = make("div", "message");
  element.append(make("h3", "", message.role), makeText(message.content));
  return element;
}

function makeCard(response, i, place, tie) {
  const card = make("article", "answer");
  const title = make("h3");
  title.id = `answer-${i + 1}`;
  title.append(make("span", "word", "Answer "), make("kbd", "", String(i + 1)));
  card.setAttribute("aria-labelledby", title.id);
  const placed = make("span", "place");
  const placeButton = make("button", "place-button");
  const tieButton = make("button", "tie-button");
  placeButton.type = tieButton.type = "button";
  onClick(placeButton, () => place(i));
  onClick(tieButton, () => {
    const hadFocus = document.activeElement === tieButton;
    tie(i);
    if (hadFocus) placeButton.focus(); // the other one is gone now
  });
  const head = make("div", "head");
  head.append(title, placed, placeButton, tieButton);
  card.append(head, makeText(response));
  return card;
}

/** Shows ranks, flags, progress, and what each button does; `canUndo` also while a step is not confirmed. */
export function showState(view, answer, canUndo) {
  const ranks = answer.ranks;
  byId("annotator").textContent = `as ${view.annotator}`;
  byId("count").textContent = `${view.done} done, ${view.left} left`;
  byId("bar").max = Math.max(1, view.done + view.left);
  byId("bar").value = view.done;
  const pace = view.seconds_per_task;
  byId("pace").textContent =
    pace === null ? "" : `${duration(pace)} each` + (view.left ? `, about ${duration(pace * view.left)} to go` : "");
  byId("done-count").textContent = `${view.annotator}, you have ranked or skipped ${view.done}. Thank you.`;

  const next = worst(ranks) + 1;
  document.querySelectorAll(".answer").forEach((card, i) => {
    const rank = ranks[i];
    card.classList.toggle("placed", rank !== null);
    const isTied = rank !== null && atPlace(ranks, rank).length > 1;
    card.querySelector(".place").textContent = rank === null ? "not ranked" : ordinal(rank) + (isTied ? ", tied" : "");
    label(card.querySelector(".place-button"), rank === null ? `Place ${ordinal(next)}` : "Take off", `answer ${i + 1}`);
    const tieButton = card.querySelector(".tie-button");
    tieButton.hidden = rank !== null || next === 1;
    label(tieButton, `Tie ${ordinal(Math.max(1, next - 1))}`, `answer ${i + 1}`);
  });
  showOrder(ranks);

  for (const id of ["all-bad", "flag", "note", "skip", "submit"]) disable(byId(id), view.task === null);
  disable(byId("undo"), !canUndo);
  disable(byId("redo"), !view.can_redo);
  byId("all-bad").setAttribute("aria-pressed", answer.all_bad);
  byId("flag").setAttribute("aria-pressed", answer.flag);
  byId("note-label").textContent = answer.note ? "Edit note" : "Note";
}

/** The places in order, and the answers without a place. */
function showOrder(ranks) {
  const lines = [];
  for (let rank = 1; rank <= worst(ranks); rank++) lines.push(makeLine(ordinal(rank), atPlace(ranks, rank), "chip placed"));
  if (unranked(ranks).length) lines.push(makeLine("Not ranked", unranked(ranks), "chip"));
  byId("order").replaceChildren(...lines);
}

function makeLine(title, numbers, className) {
  const line = make("p", "", `${title} `);
  line.append(...numbers.map((number) => make("span", className, String(number))));
  return line;
}

/** The words on a button, and for screen readers also what they are about. */
function label(button, words, about) {
  if (button.textContent !== words) button.textContent = words;
  button.setAttribute("aria-label", `${words}: ${about}`);
}

/** A disabled button keeps its place in the tab order. */
function disable(button, isOff) {
  button.setAttribute("aria-disabled", isOff);
}

export function onClick(button, act) {
  button.addEventListener("click", (event) => {
    if (button.getAttribute("aria-disabled") === "true") return;
    // After a click with the mouse, Enter submits and does not press this button again.
    if (event.detail > 0) button.blur();
    act();
  });
}
