// Asking, and streaming the answer into the conversation.

import { stream } from "./api.js";
import * as conversation from "./conversation.js";
import { byId, make } from "./dom.js";
import { asker } from "./judge.js";
import { asked as settings } from "./settings.js";
import { keptOf } from "./several.js";
import { view } from "./views.js";
import { saying, t } from "./words.js";

// Turns by kind:
//   {kind: "user", text}   {kind: "answer", id, text, version, thumb, rewrite, end}   {kind: "note", says, slots}
//   {kind: "several", answers: [{id, text, end}], judged, versions}   see several.js
const views = new Map(); // by turn
let running = null;

const log = () => byId("log");

/** Whether an answer is on its way. */
export const isRunning = () => running !== null;

/** The version that is asked, or as many as answers are wanted, the one compared with in turns. */
function models() {
  const model = byId("version").value || "nestling";
  const against = byId("against").value || model;
  return Array.from({ length: Number(byId("answers").value) }, (_, at) => (at % 2 ? against : model));
}

/** What is asked with: finished exchanges among the turns, then the last question. */
function messages(turns) {
  const said = [];
  let question = null;
  for (const turn of turns) {
    if (turn.kind === "user") question = turn.text;
    const answer =
      turn.kind === "answer" ? turn.rewrite ?? turn.text : turn.kind === "several" ? keptOf(turn)?.text : "";
    if (question !== null && answer) {
      said.push({ role: "user", content: question }, { role: "assistant", content: answer });
      question = null;
    }
  }
  if (question !== null) said.push({ role: "user", content: question });
  return said;
}

// -- asking ------------------------------------------------------------------------------------------------------

/** Say something and stream the answer. */
export async function ask(text) {
  for (const button of log().querySelectorAll(".retry")) button.remove(); // it asks what was asked last
  const last = conversation.path().at(-1) ?? null;
  await answer(conversation.add({ kind: "user", text }, last));
}

/** Stream an answer to a turn of the user's. */
async function answer(question) {
  const asking = models();
  const one = asking.length === 1;
  const { messages: before, ...sampling } = settings();
  const body = { messages: [...before, ...messages(conversation.pathTo(question))], ...sampling, ...asker() };
  const turn = one ? { kind: "answer", ...fresh() } : { kind: "several", answers: asking.map(fresh) };
  conversation.add(turn, question);
  running = new AbortController();
  document.body.classList.add("running");
  lay(true);
  const shown = views.get(turn);
  // A fast model writes more often than a screen can show; one update a frame keeps the controls responsive.
  let frame = 0;
  const showSoon = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      shown.update();
    });
  };
  let retriable = true;
  shown.node.setAttribute("aria-busy", "true");
  try {
    const events = one
      ? stream("/v1/chat/completions", { ...body, model: asking[0], stream: true }, running.signal)
      : stream("/api/compare", { ...body, models: asking }, running.signal);
    for await (const event of events) {
      follow(turn, event);
      showSoon();
    }
  } catch (error) {
    for (const side of turn.answers ?? [turn]) side.end ??= error.name === "AbortError" ? "cancelled" : "error";
    if (error.name !== "AbortError") turn.trouble = troubleOf(error);
    retriable = error.code !== FULL;
  } finally {
    running = null;
    document.body.classList.remove("running");
    shown.node.removeAttribute("aria-busy");
    shown.update();
    conversation.save();
    if (turn.trouble && retriable) shown.node.append(retryButton(turn, question));
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
  const several = turn.kind === "several";
  const answer = several ? turn.answers[event.answer] : turn;
  answer.text += (several ? event.text : event.choices[0].delta.content) ?? "";
  answer.end = (several ? event.finish_reason : event.choices[0].finish_reason) ?? answer.end;
  if (several) answer.id = event.generation_id ?? answer.id;
  else [turn.id, turn.version] = [event.id, event.model];
}

/** Stop the answer on its way; what was said stays. */
export function stop() {
  running?.abort();
}

function retryButton(turn, question) {
  const button = saying(make("button", { type: "button", className: "soft retry" }), "retry");
  button.addEventListener("click", () => {
    if (isRunning()) return;
    conversation.drop(turn);
    answer(question);
  });
  return button;
}

const act = {
  again(turn) {
    if (!isRunning()) answer(conversation.pathTo(turn).at(-2));
  },
  edit(turn, text) {
    if (isRunning()) return;
    const before = conversation.pathTo(turn).at(-2) ?? null;
    answer(conversation.add({ kind: "user", text }, before));
  },
  show(turn, by) {
    if (isRunning()) return;
    conversation.choose(turn, by);
    lay();
  },
  follow: () => scrollDown(),
};

// -- showing -----------------------------------------------------------------------------------------------------

/** Show the turns of the chosen branch; views that were made before are used again. */
function lay(toEnd = false) {
  const turns = conversation.path();
  for (const turn of turns) if (!views.has(turn)) views.set(turn, view(turn, act));
  const nodes = turns.map((turn) => views.get(turn).node);
  const same = nodes.findIndex((node, at) => node !== log().children[at]);
  const kept = same < 0 ? nodes.length : same; // what stays is not touched: it keeps focus and does not arrive again
  while (log().children.length > kept) log().lastElementChild.remove();
  log().append(...nodes.slice(kept));
  for (const turn of turns) views.get(turn).update();
  byId("welcome").hidden = turns.length > 0;
  if (toEnd) scrollDown(true);
}

/** An answer on its way is kept as far as it came. */
function leave() {
  stop();
  conversation.save();
}

/** Begin another conversation; this one stays in the list. */
export function startNew() {
  leave();
  conversation.startFresh();
  views.clear();
  lay();
}

/** Show the conversation with this id, or the one of the last visit. */
export function restore(id) {
  leave();
  if (id) conversation.open(id);
  views.clear();
  for (const turn of conversation.path()) {
    if (turn.kind === "answer") turn.end ??= "cancelled";
    for (const answer of turn.answers ?? []) answer.end ??= "cancelled";
  }
  lay(true);
}

/** A line between the turns, not part of the conversation the model sees. */
export function note(says, slots) {
  const last = conversation.path().at(-1);
  if (!last) return;
  conversation.add({ kind: "note", says, slots }, last);
  lay();
}

/** Follow the text, unless the reader scrolled away to read something else. */
function scrollDown(always = false) {
  const scroller = byId("scroller");
  const below = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  if (always || below < 120) scroller.scrollTop = scroller.scrollHeight;
}
