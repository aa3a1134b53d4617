// What people say of answers: thumbs with a reason, better answers, and the sending of any judgment.

import { json } from "./api.js";
import { chatId, save } from "./conversation.js";
import { icon, make, memory, randomId } from "./dom.js";
import { button, editInPlace } from "./parts.js";
import { labelled, saying, t } from "./words.js";

const client = memory.get("client") ?? randomId();
memory.set("client", client);

/** What every request says of who asks. */
export const asker = () => ({ user: client, metadata: { conversation_id: chatId() } });

/** Thumbs, a line to say why, and the reply. */
export function thumbs(turn) {
  const reply = make("span", { className: "reply", role: "status" });
  const why = labelled(make("input", { className: "why", maxLength: 2000, hidden: true }), "why");
  why.dataset.placeholder = "thanksWhy";
  why.placeholder = t("thanksWhy");
  const buttons = [thumb("up", "good"), thumb("down", "bad")];

  function thumb(value, label) {
    const button = labelled(make("button", { type: "button", className: `icon thumb ${value}` }, icon(value)), label);
    button.addEventListener("click", () => judge(turn.thumb === value ? "none" : value));
    return button;
  }
  function reflect() {
    buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(turn.thumb === ["up", "down"][at])));
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
    reflect();
    why.hidden = value === "none" || reason !== "";
    reply.textContent = "";
    if (reason) saying(reply, "thanks");
  }
  why.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing && why.value.trim()) judge(turn.thumb, why.value.trim());
  });
  reflect();
  return { buttons, why, reply };
}

/** A button to write a better answer with, in place of the one that was given. */
export function rewriting(turn, body, foot, reply) {
  const better = button("writeBetter", "pen");
  better.addEventListener("click", () => {
    const written = turn.rewrite ?? turn.text;
    editInPlace(body.node, foot, better, written, "writeBetter", "keep", (text) => {
      sendJudgment({ kind: "rewrite", generation_id: turn.id, text }, reply, [better], () => {
        turn.rewrite = text;
        body.update(turn);
        saying(reply, "thanks");
      });
    });
  });
  return better;
}

/** Record a judgment: buttons rest meanwhile, `reply` says what went wrong, `then` gets what the server said. */
export async function sendJudgment(judgment, reply, buttons, then) {
  reply.textContent = "";
  for (const each of buttons) each.disabled = true;
  try {
    then(await json("/api/judgments", { ...judgment, user: client }));
    save();
  } catch (error) {
    reply.textContent = t("notRecorded", { why: error.message });
  }
  for (const each of buttons) each.disabled = false;
}
