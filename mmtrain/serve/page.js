"use strict";

const part = (id) => document.getElementById(id);
const SHOWN_HEIGHT = 420;
// Dark to bright, so that it reads without its colours too.
const RAMP = [[16, 18, 38], [66, 22, 92], [168, 44, 96], [236, 104, 64], [252, 184, 72], [255, 246, 170]];

let shown = null; // the image on the page: {image, width, height, region}
let chosen = null; // the label whose heat map is on it; null: the likeliest
let numImages = 0;
// A slow answer must not overwrite that of a later question.
let lastSearch = 0, lastImage = 0, lastLabels = 0, lastHeat = 0;

// Asking --------------------------------------------------------------------------------------

async function ask(path, body) {
  const json = body !== undefined && !(body instanceof Blob);
  const request = body === undefined ? {} : {
    method: "POST",
    body: json ? JSON.stringify(body) : body,
    headers: { "Content-Type": json ? "application/json" : "application/octet-stream" },
  };
  let reply;
  try {
    reply = await fetch(path, request);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const answer = await reply.json().catch(() => null);
  if (reply.ok && answer) return answer;
  const reason = answer?.error ?? (reply.status === 503 ? "the server is busy; try again" : `status ${reply.status}`);
  throw new Error(`${reason[0].toUpperCase()}${reason.slice(1)}.`);
}

function say(id, text) {
  part(id).textContent = text;
}

const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

// Find images -----------------------------------------------------------------------------------

async function search(question, described, text) {
  const run = ++lastSearch;
  say("search-error", "");
  say("search-note", "Looking …");
  try {
    const count = window.innerWidth < 760 ? 12 : 24;
    const { found } = await ask("api/search", { ...question, count });
    if (run !== lastSearch) return;
    part("found").replaceChildren(...found.map((one) => foundItem(one, text)));
    say("search-note", `The ${found.length} nearest of ${plural(numImages, "image")} to ${described}, with their cosines.`);
  } catch (error) {
    if (run !== lastSearch) return;
    part("found").replaceChildren();
    say("search-note", "");
    say("search-error", error.message);
  }
}

function foundItem(one, text) {
  const item = document.createElement("li");
  const button = make(item, "button", "");
  button.type = "button";
  const picture = document.createElement("img");
  picture.src = `api/pictures/${one.number}`;
  picture.alt = one.caption || "an image without a caption";
  picture.loading = "lazy";
  make(button, "span", "frame").append(picture);
  if (one.caption) {
    const caption = make(button, "span", "caption", one.caption);
    caption.title = one.caption;
    picture.alt = "";
  }
  make(button, "span", "cosine", one.cosine.toFixed(3));
  button.addEventListener("click", () => {
    if (text) addLabel(text);
    look(() => ask(`api/pictures/${one.number}`, new Blob()), text);
    part("look-part").scrollIntoView({ block: "start" });
  });
  return item;
}

function make(parent, tag, name, text = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.textContent = text;
  parent.append(element);
  return element;
}

// Look at an image ------------------------------------------------------------------------------

function lookAtFile(file) {
  const limit = LIMITS.maxImageBytes;
  if (file.size > limit) {
    const size = file.size >= 1e9 ? `${(file.size / 1e9).toFixed(1)} GB` : `${(file.size / 1e6).toFixed(0)} MB`;
    say("look-error", `That file is too large: ${size}; at most ${limit >> 20} MB.`);
    return;
  }
  look(() => ask("api/images", file), null);
}

async function look(add, label) {
  const run = ++lastImage;
  say("look-error", "");
  try {
    const added = await add();
    if (run !== lastImage) return;
    shown = added;
    chosen = label;
    await show();
    await classify();
  } catch (error) {
    if (run === lastImage) say("look-error", error.message);
  }
}

async function show() {
  const { image, width, height, region } = shown;
  const frame = part("frame");
  frame.style.aspectRatio = `${width} / ${height}`;
  frame.style.width = `min(100%, ${(SHOWN_HEIGHT * width) / height}px)`;
  for (const layer of [part("heat"), part("seen")]) {
    ["left", "top", "width", "height"].forEach((side, place) => {
      layer.style[side] = `${100 * region[place]}%`;
    });
  }
  clearHeat();
  part("picture").src = `api/images/${encodeURIComponent(image)}`;
  part("drop").hidden = true;
  part("view").hidden = false;
  part("similar").hidden = numImages === 0;
  await part("picture").decode().catch(() => {});
}

function labels() {
  const lines = part("labels").value.split("\n").map((line) => line.trim());
  return [...new Set(lines.filter(Boolean))];
}

function addLabel(label) {
  if (!labels().includes(label)) part("labels").value = [label, ...labels()].join("\n");
}

async function classify() {
  if (!shown) return;
  const run = ++lastLabels;
  try {
    const question = { image: shown.image, labels: labels(), prompt: part("prompt").value };
    const answer = await ask("api/classify", question);
    if (run !== lastLabels) return;
    say("look-error", "");
    const best = answer.labels[0];
    if (!answer.labels.some((one) => one.label === chosen)) chosen = null;
    part("answers").replaceChildren(...answer.labels.map(answerItem));
    say("ask-note", answer.independent
      ? `Most likely ${best.label}. Each has a probability of its own. Choose one to see where it is.`
      : `Most likely ${best.label}. Together they make 100 %. Choose one to see where it is.`);
    await heat(chosen ?? best.label);
  } catch (error) {
    if (run !== lastLabels) return;
    part("answers").replaceChildren();
    say("ask-note", "");
    clearHeat();
    say("look-error", error.message);
  }
}

function answerItem(one) {
  const item = document.createElement("li");
  const button = make(item, "button", "");
  button.type = "button";
  button.dataset.label = one.label;
  make(button, "span", "label", one.label);
  make(button, "span", "percent", percent(one.probability)).title = `cosine ${one.cosine.toFixed(3)}`;
  const bar = make(make(button, "span", "track"), "span", "bar");
  bar.style.width = `${100 * one.probability}%`;
  button.addEventListener("click", () => {
    chosen = one.label;
    heat(one.label).catch((error) => say("look-error", error.message));
  });
  return item;
}

function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  return `${value.toFixed(1)} %`;
}

// The heat map ------------------------------------------------------------------------------------

async function heat(label) {
  const run = ++lastHeat;
  for (const button of part("answers").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.label === label));
  }
  const question = { image: shown.image, label, prompt: part("prompt").value };
  const { rows } = await ask("api/heat-map", question);
  if (run !== lastHeat) return;
  const values = rows.flat();
  const high = Math.max(...values);
  drawHeat(rows, high);
  say("low", "0");
  say("high", high > 0 ? `+${high.toPrecision(2)}` : "0");
  const place = placeOf(rows, values.indexOf(high));
  const what = `what each of ${rows.length} × ${rows[0].length} patches adds to the cosine`;
  const unseen = shown.region[2] < 0.99 || shown.region[3] < 0.99;
  say("heat-note", `Where “${label}” is: ${what}.${unseen ? " The model does not see the dark edges." : ""}`);
  part("frame").setAttribute("aria-label", `The image with its heat map: ${label} is strongest ${place}`);
}

function clearHeat() {
  ++lastHeat;
  const canvas = part("heat");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  for (const id of ["low", "high", "heat-note"]) say(id, "");
  part("frame").setAttribute("aria-label", "The image");
}

// What takes away from the cosine is drawn as what adds nothing: dark.
function drawHeat(rows, high) {
  const canvas = part("heat"), context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  for (let y = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++) {
      const value = between(rows, (y + 0.5) / canvas.height, (x + 0.5) / canvas.width);
      const share = high > 0 ? Math.max(0, value / high) : 0;
      pixels.data.set([...colour(share), 150 + 105 * share], 4 * (y * canvas.width + x));
    }
  }
  context.putImageData(pixels, 0, 0);
}

// Bilinear between the centres of the patches; `down` and `right` go from 0 to 1.
function between(rows, down, right) {
  const [top, bottom, lower] = neighbours(down * rows.length - 0.5, rows.length);
  const [left, other, farther] = neighbours(right * rows[0].length - 0.5, rows[0].length);
  const upper = rows[top][left] * (1 - farther) + rows[top][other] * farther;
  const under = rows[bottom][left] * (1 - farther) + rows[bottom][other] * farther;
  return upper * (1 - lower) + under * lower;
}

function neighbours(place, count) {
  const inside = Math.min(Math.max(place, 0), count - 1);
  const first = Math.floor(inside);
  return [first, Math.min(first + 1, count - 1), inside - first];
}

function colour(share) {
  const place = share * (RAMP.length - 1);
  const first = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[first].map((from, channel) => from + (RAMP[first + 1][channel] - from) * (place - first));
}

function placeOf(rows, index) {
  const third = (place, count) => Math.min(2, Math.floor((3 * (place + 0.5)) / count));
  const row = third(Math.floor(index / rows[0].length), rows.length);
  const column = third(index % rows[0].length, rows[0].length);
  if (row === 1 && column === 1) return "in the middle";
  return `at the ${[["top"], ["middle"], ["bottom"]][row]} ${["left", "middle", "right"][column]}`;
}

// What the page listens to -------------------------------------------------------------------------

function later(act, milliseconds) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, milliseconds);
  };
}

function listen() {
  part("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = part("query").value.trim().replace(/\s+/g, " ");
    if (text) search({ text }, `“${text}”`, text);
  });
  part("similar").addEventListener("click", () => {
    search({ image: shown.image }, "the image below", null);
    part("search-part").scrollIntoView({ block: "start" });
  });
  part("another").addEventListener("click", () => part("file").click());
  part("file").addEventListener("change", () => {
    const [file] = part("file").files;
    if (file) lookAtFile(file);
    part("file").value = ""; // so that the same file can be chosen again
  });
  part("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    classify();
  });
  const changed = later(classify, 350);
  part("labels").addEventListener("input", changed);
  part("prompt").addEventListener("input", changed);
  part("strength").addEventListener("input", strengthen);
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (file) lookAtFile(file);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    const [file] = event.dataTransfer?.files ?? [];
    if (file) lookAtFile(file);
    else say("look-error", "That is no file; drop an image file.");
  });
}

function strengthen() {
  part("heat").style.opacity = part("strength").value / 100;
}

function drawRamp() {
  const canvas = part("ramp"), context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    context.fillStyle = `rgb(${colour(x / (canvas.width - 1)).map(Math.round).join(" ")})`;
    context.fillRect(x, 0, 1, 1);
  }
}

async function start() {
  listen();
  drawRamp();
  strengthen();
  say("file-limit", `JPEG, PNG or WebP, at most ${LIMITS.maxImageBytes >> 20} MB`);
  const about = await ask("api/about");
  numImages = about.num_images;
  document.title = `${about.name} · mmtrain`;
  say("name", about.name);
  const size = `${(about.num_parameters / 1e6).toFixed(1)} M parameters, images of ${about.image_size} pixels`;
  say("model", numImages ? `${size}, ${plural(numImages, "image")} to search` : size);
  if (!numImages) {
    document.querySelector("main").classList.add("searchless");
    part("search").hidden = true;
    say("search-note", "There are no images to search. Start with --index SHARDS to find images by text.");
  }
}

start().catch((error) => say("look-error", error.message));
