"use strict";

// What the pages have alike: asking the server, taking an image, drawing a map over it.
const part = (id) => document.getElementById(id);
const SHOWN_HEIGHT = 420;
// Dark to bright, so that it reads without its colours too.
const RAMP = [[16, 18, 38], [66, 22, 92], [168, 44, 96], [236, 104, 64], [252, 184, 72], [255, 246, 170]];

let shown = null; // the image on the page: {image, width, height, region}
let taking = null; // until an image that was dropped is on it
// A slow answer must not overwrite that of a later question.
let lastImage = 0, lastHeat = 0;

// Asking --------------------------------------------------------------------------------------

async function ask(path, body) {
  const reply = await send(path, body);
  const answer = await reply.json().catch(() => null);
  if (answer) return answer;
  throw new Error("The answer broke off. Is the server still running?");
}

// The reply to a good question; what else it is says the error.
async function send(path, body, signal) {
  const json = body !== undefined && !(body instanceof Blob);
  const request = body === undefined ? { signal } : {
    signal,
    method: "POST",
    body: json ? JSON.stringify(body) : body,
    headers: { "Content-Type": json ? "application/json" : "application/octet-stream" },
  };
  let reply;
  try {
    reply = await fetch(path, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (reply.ok) return reply;
  const answer = await reply.json().catch(() => null);
  const reason = answer?.error ?? (reply.status === 503 ? "the server is busy; try again" : `status ${reply.status}`);
  throw new Error(sentence(reason));
}

const sentence = (reason) => `${reason[0].toUpperCase()}${reason.slice(1)}.`;

function say(id, text) {
  part(id).textContent = text;
}

const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

function make(parent, tag, name, text = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.textContent = text;
  parent.append(element);
  return element;
}

function addBar(parent, share) {
  make(make(parent, "span", "track"), "span", "bar").style.width = `${100 * share}%`;
}

function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  return `${value.toFixed(1)} %`;
}

function later(act, milliseconds) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, milliseconds);
  };
}

// Taking an image ----------------------------------------------------------------------------

// `add` asks the server to take it; `taken` goes on with it.
function look(add, taken) {
  taking = takeImage(add, taken);
}

async function takeImage(add, taken) {
  const run = ++lastImage;
  say("look-error", "");
  part("stage").setAttribute("aria-busy", "true");
  try {
    const added = await add();
    if (run !== lastImage) return;
    shown = added;
    await show();
    await taken();
  } catch (error) {
    if (run === lastImage) say("look-error", error.message);
  } finally {
    if (run === lastImage) part("stage").setAttribute("aria-busy", "false");
  }
}

function lookAtFile(file, taken) {
  const limit = LIMITS.maxImageBytes;
  if (file.size > limit) {
    const size = file.size >= 1e9 ? `${(file.size / 1e9).toFixed(1)} GB` : `${(file.size / 1e6).toFixed(0)} MB`;
    say("look-error", `That file is too large: ${size}; at most ${limit >> 20} MB.`);
    return;
  }
  look(() => ask("api/images", file), taken);
}

async function show() {
  const { image, width, height, region } = shown;
  for (const frame of [part("original"), part("frame")]) {
    frame.style.aspectRatio = `${width} / ${height}`;
    frame.style.width = `min(100%, ${(SHOWN_HEIGHT * width) / height}px)`;
  }
  for (const layer of [part("heat"), part("seen")]) {
    ["left", "top", "width", "height"].forEach((side, place) => {
      layer.style[side] = `${100 * region[place]}%`;
    });
  }
  clearHeat();
  for (const id of ["plain", "picture"]) part(id).src = `api/images/${encodeURIComponent(image)}`;
  part("drop").hidden = true;
  part("view").hidden = false;
  await part("picture").decode().catch(() => {});
}

// The map ------------------------------------------------------------------------------------

function clearHeat() {
  ++lastHeat;
  const canvas = part("heat");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  for (const id of ["low", "high", "heat-note"]) say(id, "");
  part("frame").setAttribute("aria-label", "The image");
  part("legend").hidden = true;
  part("frame").classList.add("empty");
}

// What is below zero is drawn as zero: dark.
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
  part("legend").hidden = false;
  part("frame").classList.remove("empty");
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

// What the pages listen to -------------------------------------------------------------------

// `takeFile` is given what is dropped, pasted or chosen.
function listenForImages(takeFile) {
  part("another").addEventListener("click", () => part("file").click());
  part("file").addEventListener("change", () => {
    const [file] = part("file").files;
    if (file) takeFile(file);
    part("file").value = ""; // so that the same file can be chosen again
  });
  part("strength").addEventListener("input", strengthen);
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (file) takeFile(file);
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
    if (file) takeFile(file);
    else say("look-error", "That is no file; drop an image file.");
  });
  drawRamp();
  strengthen();
  say("file-limit", `JPEG, PNG or WebP, at most ${LIMITS.maxImageBytes >> 20} MB`);
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

// What the server says of its model, and a line about it.
async function describeModel() {
  const about = await ask("api/about");
  document.title = `${about.name} · mmtrain`;
  say("name", about.name);
  const size = `${(about.num_parameters / 1e6).toFixed(1)} M parameters, images of ${about.image_size} pixels`;
  say("model", size);
  return { about, size };
}
