let chosen = null; // the label whose map is drawn; null: the likeliest
let numImages = 0;
let lastSearch = 0, lastLabels = 0;

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

function clearFound() {
  ++lastSearch;
  part("found").replaceChildren();
  for (const id of ["search-note", "search-error"]) say(id, "");
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
    look(() => ask(`api/pictures/${one.number}`, new Blob()), () => classifyAnew(text));
    part("look-part").scrollIntoView({ block: "start" });
  });
  return item;
}

// Look at an image ------------------------------------------------------------------------------

async function classifyAnew(label) {
  chosen = label;
  part("similar").hidden = numImages === 0;
  await classify();
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
      : `Most likely ${best.label}, of these alone: together they make 100 %, whether or not one fits. The cosine says how well each does. Choose one to see where it is.`);
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
  const button = make(item, "button", "row");
  button.type = "button";
  button.dataset.label = one.label;
  make(button, "span", "label", one.label);
  make(button, "span", "cosine", `cosine ${one.cosine.toFixed(3)}`);
  make(button, "span", "percent", percent(one.probability));
  addBar(button, one.probability);
  button.addEventListener("click", () => {
    chosen = one.label;
    heat(one.label).catch((error) => say("look-error", error.message));
  });
  return item;
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

// What the page listens to -------------------------------------------------------------------------

function listen() {
  listenForImages((file) => lookAtFile(file, () => classifyAnew(null)));
  part("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = part("query").value.trim().replace(/\s+/g, " ");
    if (text) search({ text }, `“${text}”`, text);
    else clearFound();
  });
  part("query").addEventListener("input", () => {
    if (!part("query").value.trim()) clearFound();
  });
  part("similar").addEventListener("click", () => {
    search({ image: shown.image }, "the image below", null);
    part("search-part").scrollIntoView({ block: "start" });
  });
  part("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    classify();
  });
  const changed = later(classify, 350);
  part("labels").addEventListener("input", changed);
  part("prompt").addEventListener("input", changed);
}

async function start() {
  listen();
  const { about, size } = await describeModel();
  numImages = about.num_images;
  if (numImages) {
    say("model", `${size}, ${plural(numImages, "image")} to search`);
    return;
  }
  document.querySelector("main").classList.add("searchless");
  part("search").hidden = true;
  say("search-note", "There are no images to search. Start with --index SHARDS to find images by text.");
}

start().catch((error) => say("look-error", error.message));
