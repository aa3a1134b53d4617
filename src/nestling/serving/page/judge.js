// What people say of answers: thumbs with a reason, and votes between two.

import { json } from "./api.js";
import { chatId, save } from "./conversation.js";
import { icon, make, memory, randomId } from "./dom.js";
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

/** The four buttons of a vote; `update` is called once it is recorded. */
export function voting(turn, update) {
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

export function verdict(turn) {
  return saying(make("p", { role: "status" }), turn.winner === "both_bad" ? "keptNeither" : "thanks");
}
