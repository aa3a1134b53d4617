// A conversation as a tree. An edited message or another answer is a branch beside the old one: nothing said is lost.
//
// A chat is plain data, remembered between visits:
//   {id, title, turns: {key: turn}, chosen: {key of a turn, or "": key of the child that is shown}}
// A turn is {key, parent, kind, ...}; kinds and their fields are chat.js's.

import { memory, randomId } from "./dom.js";

const KEPT = 100; // chats; the oldest is forgotten first
const TITLE = 60; // characters
const KINDS = new Set(["user", "answer", "several", "note"]); // another release may have written others

let chat = load(memory.get("current")) ?? fresh();

function fresh() {
  return { id: randomId(), title: "", turns: {}, chosen: {} };
}

function load(id) {
  const found = id && memory.get(`chat.${id}`);
  const known = Object.values(found?.turns ?? {}).every((turn) => KINDS.has(turn.kind));
  return found?.turns && found?.chosen && known ? found : null;
}

export const chatId = () => chat.id;

/** Remember the chat as it is now. One in which nothing was said is not remembered. */
export function save() {
  if (!Object.keys(chat.turns).length) return;
  const others = listed().filter((entry) => entry.id !== chat.id);
  for (const old of others.splice(KEPT - 1)) memory.forget(`chat.${old.id}`);
  memory.set("chats", [{ id: chat.id, title: chat.title, when: Date.now() }, ...others]);
  memory.set(`chat.${chat.id}`, chat);
  memory.set("current", chat.id);
}

/** The chats that are remembered, the newest first: {id, title, when}. */
export function listed() {
  const known = memory.get("chats");
  return Array.isArray(known) ? known : [];
}

export function startFresh() {
  chat = fresh();
  memory.forget("current");
}

/** Go on with a remembered chat. */
export function open(id) {
  chat = load(id) ?? fresh();
  memory.set("current", chat.id);
}

/** Forget a chat for good. */
export function forget(id) {
  memory.set("chats", listed().filter((entry) => entry.id !== id));
  memory.forget(`chat.${id}`);
  if (id === chat.id) startFresh();
}

/** The turns that are shown, from the first to the last. */
export function path() {
  const shown = [];
  for (let at = chat.turns[chat.chosen[""]]; at; at = chat.turns[chat.chosen[at.key]]) shown.push(at);
  return shown;
}

/** The turns from the first to this one; none for null. */
export function pathTo(turn) {
  const before = [];
  for (let at = turn; at; at = chat.turns[at.parent]) before.unshift(at);
  return before;
}

/** Put a turn below another (null: at the beginning) and show it. */
export function add(turn, below) {
  const parent = below?.key ?? "";
  Object.assign(turn, { key: randomId(), parent });
  chat.turns[turn.key] = turn;
  chat.chosen[parent] = turn.key;
  if (turn.kind === "user") chat.title ||= turn.text.slice(0, TITLE);
  save();
  return turn;
}

/** Take a turn that nothing was said after out again. */
export function drop(turn) {
  const left = alternatives(turn).filter((other) => other !== turn);
  delete chat.turns[turn.key];
  chat.chosen[turn.parent] = left.at(-1)?.key;
}

/** The turns that stand for one another, in the order they came: this one and its branches. */
export const alternatives = (turn) => Object.values(chat.turns).filter((other) => other.parent === turn.parent);

/** Show another of a turn's alternatives, `by` places further. */
export function choose(turn, by) {
  const all = alternatives(turn);
  const next = all[all.indexOf(turn) + by];
  if (next) chat.chosen[turn.parent] = next.key;
  save();
}
