// The conversation: what was said, how it looks, and streaming the next answer into it.

import { json, stream } from "./api.js";
import { byId, icon, make, memory, randomId, showText } from "./dom.js";
import { labelled, saying, t } from "./words.js";

const client = memory.get("client") ?? randomId();
memory.set("client", client);

// Turns are plain data, remembered between visits:
//   {kind: "user", text}   {kind: "answer", id, text, version, thumb, end}   {kind: "note", key, slots}
//   {kind: "pair", left: {id, text, end}, right, winner, versions}
let chat = memory.get("chat");
if (!Array.isArray(chat?.turns)) chat = { id: randomId(), turns: [] };
let running = null;

const log = () => byId("log");
const save = () => memory.set("chat", chat);

/** Whether an answer is on its way. */
export const isRunning = () => running !== null;

/** What the next answer is asked with: finished exchanges, then the new text. */
function messages() {
  const said = [];
  let question = null;
  for (const turn of chat.turns) {
    if (turn.kind === "user") question = turn.text;
    const answer = turn.kind === "answer" ? turn.text : turn.kind === "pair" ? keptOf(turn)?.text : "";
    if (question !== null && answer) {
      said.push({ role: "user", content: question }, { role: "assistant", content: answer });
      question = null;
    }
  }
  if (question !== null) said.push({ role: "user", content: question });
  return said;
}

/** Which of two answers the conversation goes on with: the better one, none when both are bad, else the left. */
const keptOf = (pair) => (pair.winner === "both_bad" ? null : pair[pair.winner === "right" ? "right" : "left"]);

const asked = () => ({ messages: messages(), user: client, metadata: { conversation_id: chat.id } });

// -- asking ------------------------------------------------------------------------------------------------------

/** Ask and stream the answer. `models` holds one name, or two to compare. */
export async function ask(text, models) {
  for (const button of log().querySelectorAll(".retry")) button.remove(); // it asks what was asked last
  add({ kind: "user", text });
  await answer(models);
}

async function answer(models) {
  const pair = models.length === 2;
  const question = asked();
  const turn = pair ? { kind: "pair", left: fresh(), right: fresh() } : { kind: "answer", ...fresh() };
  const view = add(turn);
  // A fast model writes more often than a screen can show; one update a frame keeps the controls responsive.
  let frame = 0;
  const showSoon = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      view.update();
    });
  };
  let retriable = true;
  running = new AbortController();
  document.body.classList.add("running");
  view.node.setAttribute("aria-busy", "true");
  try {
    const events = pair
      ? stream("/api/compare", { ...question, models }, running.signal)
      : stream("/v1/chat/completions", { ...question, model: models[0], stream: true }, running.signal);
    for await (const event of events) {
      follow(turn, event);
      showSoon();
    }
  } catch (error) {
    const sides = pair ? [turn.left, turn.right] : [turn];
    for (const side of sides) side.end ??= error.name === "AbortError" ? "cancelled" : "error";
    if (error.name !== "AbortError") turn.trouble = troubleOf(error);
    retriable = error.code !== FULL;
  } finally {
    running = null;
    document.body.classList.remove("running");
    view.node.removeAttribute("aria-busy");
    view.update();
    save();
    if (turn.trouble && retriable) view.node.append(retryButton(turn, view, models));
  }
}

const fresh = () => ({ text: "" });

const FULL = "context_length_exceeded";

function troubleOf(error) {
  if (error.code === FULL) return t("full");
  return error.code === "connection_lost" || error.name === "TypeError" ? t("lost") : error.message;
}

/** Take one event of a stream into a turn. */
function follow(turn, event) {
  const side = event.side ? turn[event.side] : turn;
  const delta = event.side ? event.text : event.choices[0].delta.content;
  side.text += delta ?? "";
  side.end = (event.side ? event.finish_reason : event.choices[0].finish_reason) ?? side.end;
  if (event.side) side.id = event.generation_id ?? side.id;
  else [turn.id, turn.version] = [event.id, event.model];
}

/** Stop the answer on its way; what was said stays. */
export function stop() {
  running?.abort();
}

function retryButton(turn, view, models) {
  const button = saying(make("button", { type: "button", className: "soft retry" }), "retry");
  button.addEventListener("click", () => {
    if (isRunning()) return;
    chat.turns.splice(chat.turns.indexOf(turn), 1);
    view.node.remove();
    answer(models);
  });
  return button;
}

// -- showing -----------------------------------------------------------------------------------------------------

/** Forget the conversation and begin another. */
export function startNew() {
  stop();
  chat = { id: randomId(), turns: [] };
  save();
  log().replaceChildren();
  reflect();
}

/** Show the conversation of the last visit. */
export function restore() {
  for (const turn of chat.turns) {
    for (const side of turn.kind === "pair" ? [turn.left, turn.right] : [turn]) side.end ??= "cancelled";
    show(turn);
  }
  reflect();
  scrollDown(true);
  addEventListener("pagehide", save);
}

/** A line between the turns, not part of the conversation the model sees. */
export function note(key, slots) {
  if (chat.turns.length) add({ kind: "note", key, slots });
}

function add(turn) {
  chat.turns.push(turn);
  save();
  const view = show(turn);
  reflect();
  scrollDown(true);
  return view;
}

function show(turn) {
  const view = VIEWS[turn.kind](turn);
  log().append(view.node);
  return view;
}

function reflect() {
  byId("welcome").hidden = chat.turns.length > 0;
}

const VIEWS = {
  user(turn) {
    const node = make("article", { className: "turn user" });
    const text = make("div", { className: "text" });
    showText(text, turn.text);
    node.append(labelled(text, "you"));
    return { node, update() {} };
  },

  note(turn) {
    return { node: saying(make("p", { className: "note" }), turn.key, turn.slots), update() {} };
  },

  answer(turn) {
    const body = answerBody();
    const foot = make("footer", { className: "foot" });
    const node = make("article", { className: "turn answer" }, body.node, foot);
    const update = () => {
      body.update(turn);
      if (turn.end && !foot.childElementCount) foot.append(...afterwards(turn));
      scrollDown();
    };
    update();
    return { node, update };
  },

  pair(turn) {
    const sides = ["left", "right"].map((side) => {
      const body = answerBody();
      const caption = make("footer", { className: "foot" });
      const label = side === "left" ? "answerA" : "answerB";
      const node = labelled(make("section", { className: `side ${side}` }, body.node, caption), label);
      return { side, node, body, caption };
    });
    const vote = make("div", { className: "vote" });
    const both = make("div", { className: "sides" }, ...sides.map((side) => side.node));
    const node = make("article", { className: "turn pair" }, both, vote);
    const update = () => {
      for (const { side, node, body, caption } of sides) {
        body.update({ ...turn[side], trouble: side === "left" ? turn.trouble : undefined });
        node.classList.toggle("won", turn.winner === side || turn.winner === "tie");
        caption.textContent = turn.versions?.[side] ?? "";
      }
      const judgeable = turn.left.id && turn.right.id;
      if (judgeable && !turn.winner && !vote.childElementCount) vote.append(...voting(turn, update));
      if (turn.winner) showVerdict(vote, turn);
      scrollDown();
    };
    update();
    return { node, update };
  },
};

/** The text of one answer, with dots while it is awaited and a line when it did not end well. */
function answerBody() {
  const text = make("div", { className: "text" });
  const dots = make("span", { className: "dots", "aria-hidden": "true" }, make("i"), make("i"), make("i"));
  const trouble = make("p", { className: "line" });
  const node = make("div", { className: "body" }, text, dots, trouble);
  return {
    node,
    update(answer) {
      showText(text, answer.text);
      node.classList.toggle("waiting", !answer.end && !answer.text);
      node.classList.toggle("writing", !answer.end);
      if (answer.trouble) trouble.textContent = answer.trouble;
      else if (answer.end === "cancelled") saying(trouble, "stopped");
      else if (answer.end === "length") saying(trouble, "cut");
      trouble.classList.toggle("bad", Boolean(answer.trouble));
    },
  };
}

// -- judging -----------------------------------------------------------------------------------------------------

/** What stands under a finished answer: thumbs, copy, and which version it was. */
function afterwards(turn) {
  const version = make("span", { className: "quiet version" }, turn.version ?? "");
  if (!turn.id || !turn.text) return [version];
  const reply = make("span", { className: "reply", role: "status" });
  const why = labelled(make("input", { className: "why", maxLength: 2000, hidden: true }), "why");
  why.dataset.placeholder = "thanksWhy";
  why.placeholder = t("thanksWhy");
  const thumbs = [thumb("up", "good"), thumb("down", "bad")];

  function thumb(value, label) {
    const button = labelled(make("button", { type: "button", className: `icon thumb ${value}` }, icon(value)), label);
    button.addEventListener("click", () => judge(turn.thumb === value ? "none" : value));
    return button;
  }
  function reflectThumb() {
    thumbs.forEach((button, at) => button.setAttribute("aria-pressed", String(turn.thumb === ["up", "down"][at])));
  }
  async function judge(value, reason = "") {
    try {
      await json("/api/judgments", { kind: "thumb", generation_id: turn.id, value, reason, user: client });
    } catch (error) {
      reply.textContent = t("notRecorded", { why: error.message });
      return;
    }
    turn.thumb = value;
    save();
    reflectThumb();
    why.hidden = value === "none" || reason !== "";
    reply.textContent = "";
    if (reason) saying(reply, "thanks");
  }
  why.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing && why.value.trim()) judge(turn.thumb, why.value.trim());
  });
  const copy = labelled(make("button", { type: "button", className: "icon" }, icon("copy")), "copy");
  copy.hidden = !navigator.clipboard;
  copy.addEventListener("click", () => navigator.clipboard.writeText(turn.text));
  reflectThumb();
  return [...thumbs, copy, why, reply, version];
}

/** The four buttons of a vote. */
function voting(turn, update) {
  const question = saying(make("p", {}), "whichIsBetter");
  const reply = make("p", { className: "line bad", role: "status" });
  const buttons = ["left", "tie", "both_bad", "right"].map((winner) => {
    const button = make("button", { type: "button", className: "soft", value: winner });
    if (winner === "left" || winner === "right") {
      // On a narrow screen the answers stand one above the other.
      const other = winner === "left" ? "first" : "second";
      const wide = saying(make("span", { className: "wide" }), winner);
      button.append(wide, saying(make("span", { className: "narrow" }), other));
    } else saying(button, winner);
    button.addEventListener("click", async () => {
      const vote = { kind: "vote", left: turn.left.id, right: turn.right.id, winner, user: client };
      for (const each of buttons) each.disabled = true;
      try {
        turn.versions = (await json("/api/judgments", vote)).versions;
        turn.winner = winner;
        save();
        update();
      } catch (error) {
        reply.textContent = t("notRecorded", { why: error.message });
        for (const each of buttons) each.disabled = false;
      }
    });
    return button;
  });
  return [question, make("div", { className: "buttons", role: "group" }, ...buttons), reply];
}

function showVerdict(vote, turn) {
  const key = turn.winner === "both_bad" ? "keptNeither" : "thanks";
  vote.replaceChildren(saying(make("p", { role: "status" }), key));
}

// -- scrolling ---------------------------------------------------------------------------------------------------

/** Follow the text, unless the reader scrolled away to read something else. */
function scrollDown(always = false) {
  const scroller = byId("scroller");
  const below = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  if (always || below < 120) scroller.scrollTop = scroller.scrollHeight;
}
