"use strict";

// Asks for what is new and puts it where it belongs: a part whose HTML is the same stays as it is,
// so that nothing flickers, and the page stays where the reader scrolled it.
const EVERY = 1000; // milliseconds between two questions
const HIDDEN = 10000; // the same while nobody looks
const RESTING = 1500; // a part that the pointer moved over so lately is being read
const PATIENCE = 20000;
const part = (id) => document.getElementById(id);

let seen = ""; // the version on the page
let answer = null;
let answeredAt = 0; // by performance.now()
let movedAt = -Infinity;
const shown = new WeakMap(); // a part's element: its HTML

async function look() {
  try {
    const reply = await fetch(`/api/runs?seen=${seen}`, { signal: AbortSignal.timeout(PATIENCE) });
    if (!reply.ok) throw new Error((await reply.json().catch(() => ({}))).error ?? reply.status);
    answer = await reply.json();
    answeredAt = performance.now();
    part("asof").textContent = `; as of ${new Date().toLocaleTimeString("en-GB")}`;
    part("lost").hidden = true;
    if (answer.sections) seen = showSections(answer.sections) ? answer.version : "";
  } catch (error) {
    const old = answer ? " What is shown may be out of date." : "";
    const gone = error instanceof TypeError || error.name === "TimeoutError";
    const why = gone ? "mmtrain watch does not answer; has it ended?" : `mmtrain watch says: ${error.message}.`;
    if (part("lost").textContent !== why + old) part("lost").textContent = why + old;
    part("lost").hidden = false;
  }
  showRuns();
  setTimeout(look, document.hidden ? HIDDEN : EVERY);
}

// How the runs stand --------------------------------------------------------------------------

function showRuns() {
  if (!answer) return;
  say(part("title"), answer.title);
  document.title = `${answer.title} · mmtrain watch`;
  const list = part("runs");
  while (list.children.length < answer.runs.length) list.append(makeRun());
  // Another watch may have taken the address, and watch fewer.
  while (list.children.length > answer.runs.length) list.lastChild.remove();
  answer.runs.forEach((run, place) => fillRun(list.children[place], run, answer.runs.length > 1));
}

function makeRun() {
  const row = document.createElement("li");
  row.append(make("span", "dot"));
  const what = make("div", "what");
  what.append(make("span", "swatch"), make("span", "name"), make("span", "text"), make("span", "more"));
  row.append(what);
  return row;
}

function fillRun(row, run, named) {
  if (row.className !== run.kind) row.className = run.kind;
  const find = (name) => row.querySelector(`.${name}`);
  const swatch = named && run.color !== null ? `swatch ${run.color}` : "swatch";
  if (find("swatch").className !== swatch) find("swatch").className = swatch;
  find("swatch").hidden = !named || run.color === null;
  say(find("name"), named ? run.name : "");
  say(find("text"), named ? run.text : run.text[0].toUpperCase() + run.text.slice(1));
  const since = run.age === null ? null : run.age + (performance.now() - answeredAt) / 1000;
  say(find("more"), [run.length, since === null ? "" : `last line ${ago(since)}`].filter(Boolean).join(" · "));
}

function ago(seconds) {
  if (seconds < 2) return "just now";
  if (seconds < 120) return `${Math.floor(seconds)} s ago`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min ago`;
  return `${Math.floor(seconds / 3600)} h ago`;
}

// What they did -------------------------------------------------------------------------------

// Whether all of it is on the page; what is being read waits.
function showSections(sections) {
  let all = true;
  keep(part("sections"), sections.map((one) => one.id), (place, element) => {
    const one = sections[place];
    if (!element.firstChild) element.append(make("h2", ""), make("div", one.css));
    const [title, body] = element.children;
    title.hidden = !one.title;
    say(title, one.title);
    keep(body, one.parts.map(([key]) => key), (at, holder) => {
      all = showPart(holder, one.parts[at][1]) && all;
    });
  });
  return all;
}

function showPart(holder, html) {
  if (shown.get(holder) === html) return true;
  if (shown.has(holder) && isRead(holder)) return false;
  const opened = [...holder.querySelectorAll("details")].map((one) => one.open);
  const scrolled = [...holder.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
  holder.className = "part";
  holder.innerHTML = html;
  holder.querySelectorAll("details").forEach((one, place) => { one.open = opened[place] ?? false; });
  holder.querySelectorAll(".scroll").forEach((one, place) => { one.scrollLeft = scrolled[place] ?? 0; });
  shown.set(holder, html);
  return true;
}

function isRead(holder) {
  if (holder.matches(":hover") && performance.now() - movedAt < RESTING) return true;
  const chosen = getSelection();
  return !chosen.isCollapsed && chosen.containsNode(holder, true);
}

// The children of a parent by their keys, in this order: those that are there stay the same elements.
function keep(parent, keys, fill) {
  const old = new Map([...parent.children].map((one) => [one.dataset.key, one]));
  keys.forEach((key, place) => {
    const element = old.get(key) ?? make(parent.id === "sections" ? "section" : "div", "");
    old.delete(key);
    element.dataset.key = key;
    if (parent.children[place] !== element) parent.insertBefore(element, parent.children[place] ?? null);
    fill(place, element);
  });
  old.forEach((element) => element.remove());
}

function make(tag, name) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  return element;
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

document.addEventListener("pointermove", () => { movedAt = performance.now(); });
// A page that comes back into sight is not ten seconds behind: the ages at least are right at once.
document.addEventListener("visibilitychange", showRuns);
setInterval(showRuns, 1000);
look();
