let turns = []; // the conversation about the image: {question, head, said, item, ...}, the oldest first
let about = null;
let asking = null; // what ends the answer that is being made

// Asking ----------------------------------------------------------------------------------------

async function askModel() {
  const question = part("question").value.trim();
  if (!question) return say("look-error", "The question is empty; write what you want to know.");
  if (question.length > LIMITS.maxQuestion) {
    const [length, most] = [question.length, LIMITS.maxQuestion].map((one) => one.toLocaleString("en"));
    return say("look-error", `The question has ${length} characters; at most ${most}.`);
  }
  const labels = ownAnswers();
  if (labels.length > LIMITS.maxChoices) {
    return say("look-error", `There are ${plural(labels.length, "answer")} to choose among; at most ${LIMITS.maxChoices}.`);
  }
  const ending = asking = new AbortController();
  say("send", "Stop");
  await taking; // an image that was dropped just now is the one that is meant
  if (shown) await answer(question, ending);
  else if (!part("look-error").textContent) say("look-error", "There is no image yet; drop one first.");
  if (asking !== ending) return;
  asking = null;
  say("send", "Ask");
}

async function answer(question, ending) {
  say("look-error", "");
  const turn = addTurn(question);
  busy(turn, true);
  try {
    const body = { image: shown.image, question, head: turn.head, earlier: earlierThan(turn) };
    if (turn.own.length) body.labels = turn.own;
    const reply = await send("api/ask", body, ending.signal);
    part("question").value = "";
    for await (const step of steps(reply)) takeStep(turn, step);
    if (!turn.looked) throw new Error("The answer broke off. Is the server still running?");
  } catch (error) {
    if (error.name === "AbortError") endEarly(turn, "stopped");
    else fail(turn, question, error);
  }
  busy(turn, false);
  describeTalk();
}

// Lines of JSON, as they come.
async function* steps(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The answer broke off. Is the server still running?");
    }
    if (part.done) return;
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

function takeStep(turn, step) {
  if (step.error) throw new Error(sentence(step.error));
  if (step.looked) {
    turn.looked = step.looked;
    finish(turn);
    return;
  }
  Object.assign(turn, step);
  showSaid(turn);
}

// Answers of one's own; none while the part of the page is folded away.
function ownAnswers() {
  if (!part("own").open) return [];
  const lines = part("labels").value.split("\n").map((line) => line.trim());
  return [...new Set(lines.filter((line) => line))];
}

// What the model reads before a question: of models that read dialogues alone.
function earlierThan(turn) {
  if (!about.reads_dialogues) return [];
  const before = turns.slice(0, turns.indexOf(turn)).filter((one) => one.said !== null);
  return before.map((one) => ({ question: one.question, answer: one.said }));
}

function stop() {
  asking?.abort();
  asking = null;
  say("send", "Ask");
}

function startOver() {
  turns = [];
  part("turns").replaceChildren();
  clearHeat();
  describeTalk();
  part("question").focus();
}

// A turn ----------------------------------------------------------------------------------------

function addTurn(question) {
  const item = make(part("turns"), "li", "");
  make(item, "p", "asked", question);
  const turn = {
    question,
    head: part("head").value || null,
    said: null, // until something is
    probability: null,
    own: ownAnswers(),
    answers: [],
    of: 0, // that those are the likeliest of
    left_out: 0,
    cut_after: null, // tokens, of an answer that had not ended
    looked: null,
    item,
    saidPart: make(item, "p", "said"),
    surePart: make(item, "p", "soft sure"),
  };
  turns.push(turn);
  describeTalk();
  reveal(turn);
  return turn;
}

function busy(turn, is) {
  for (const one of [turn.item, part("turns")]) one.setAttribute("aria-busy", String(is));
}

function showSaid(turn) {
  turn.saidPart.textContent = turn.cut_after ? `${turn.said} …` : turn.said;
  const sure = `${percent(turn.probability)} sure`;
  const cut = turn.cut_after ? `, cut off after ${plural(turn.cut_after, "token")}: it had not ended` : "";
  const of = turn.own.length ? `${plural(turn.of, "answer")} of yours alone` : plural(turn.of, "answer");
  turn.surePart.textContent = turn.answers.length ? `${sure}, the likeliest of ${of}` : sure + cut;
  reveal(turn);
}

function finish(turn) {
  const { item, looked } = turn;
  if (!turn.said && !turn.cut_after) {
    turn.saidPart.classList.add("nothing");
    turn.saidPart.textContent = "It says nothing.";
  }
  if (turn.answers.length > 1) {
    const list = make(item, "ol", "answers");
    for (const one of turn.answers) addAnswer(list, one);
  }
  for (const [place, entries] of Object.entries(looked.entries)) addFired(item, place, entries);
  if (turn.left_out) {
    make(item, "p", "soft", `There is no room for the first ${plural(turn.left_out, "question")} any more: the model has not read ${turn.left_out === 1 ? "it" : "them"}.`);
  }
  if (looked.rows) {
    const button = make(item, "button", "see", "Where it looked");
    button.type = "button";
    button.addEventListener("click", () => showMap(turn));
  }
  showMap(turn);
  reveal(turn);
}

// The list scrolls by itself where there is room beside the image, else the page does.
function reveal({ item }) {
  const list = part("turns");
  if (list.scrollHeight > list.clientHeight) list.scrollTop = item.offsetTop - list.offsetTop;
  else item.scrollIntoView({ block: "nearest" });
}

function addAnswer(list, one) {
  const row = make(list, "li", "row");
  make(row, "span", "label", one.answer);
  addBar(row, one.probability);
  make(row, "span", "percent", percent(one.probability));
}

// The entries of a front door's dictionary that weigh most.
function addFired(item, place, entries) {
  const fired = make(item, "p", "fired");
  make(fired, "span", "soft", `Dictionary of the ${place}:`);
  for (const { entry, weight } of entries) {
    make(fired, "span", "entry", `entry ${entry} · ${percent(weight)}`);
  }
}

// What was said of an answer that was stopped stays, and counts as said.
function endEarly(turn, why) {
  if (turn.looked) return;
  if (turn.said === null) dropTurn(turn);
  else turn.surePart.textContent += `, ${why}`;
}

function fail(turn, question, error) {
  if (turn.said === null) dropTurn(turn);
  else endEarly(turn, "broken off");
  if (!part("question").value) part("question").value = question;
  say("look-error", error.message);
}

function dropTurn(turn) {
  turn.item.remove();
  turns = turns.filter((one) => one !== turn);
}

// Where it looked -------------------------------------------------------------------------------

function showMap(turn) {
  const { rows, why } = turn.looked;
  for (const one of turns) {
    one.item.classList.toggle("shown", one === turn);
    one.item.querySelector(".see")?.setAttribute("aria-pressed", String(one === turn));
  }
  if (!rows) {
    clearHeat();
    say("heat-wait", "There is no map.");
    say("heat-note", `There is no map: ${why}.`);
    return;
  }
  const values = rows.flat();
  const high = Math.max(...values);
  drawHeat(rows, high);
  say("low", "0 %");
  say("high", `up to ${percent(high)}`);
  const parts = `${rows.length} × ${rows[0].length} parts`;
  const unseen = shown.region[2] < 0.99 || shown.region[3] < 0.99;
  say("heat-note", `Where it looked for “${turn.question}”: shares of its attention over ${parts}.${unseen ? " It does not see the dark edges." : ""}`);
  const place = placeOf(rows, values.indexOf(high));
  part("frame").setAttribute("aria-label", `The image with a map of where the model looked: most ${place}`);
}

// What the page listens to ------------------------------------------------------------------------

function describeTalk() {
  const some = turns.length > 0;
  part("talk-note").hidden = some;
  part("over").hidden = !some;
  say("question-label", some && about?.reads_dialogues ? "Next question; the model has read those above" : "Question");
}

function listen() {
  listenForImages((file) => {
    stop();
    lookAtFile(file, async () => startOver());
  });
  part("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (asking) stop();
    else askModel();
  });
  part("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!asking) askModel();
  });
  part("over").addEventListener("click", () => {
    stop();
    startOver();
  });
}

async function start() {
  listen();
  const described = await describeModel();
  about = described.about;
  const names = { classify: "chosen of those it knows", generate: "written" };
  for (const head of about.heads) make(part("head"), "option", "", names[head]).value = head;
  part("head-choice").hidden = about.heads.length < 2;
  const reads = about.reads_dialogues ? "follow-up questions see what was said" : "each question is asked by itself";
  say("model", `${described.size}; ${reads}`);
}

start().catch((error) => say("look-error", error.message));
