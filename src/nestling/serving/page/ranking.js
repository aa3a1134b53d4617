// Putting three or more answers in order: by dragging, by buttons, or by the arrow keys.

import { make } from "./dom.js";
import { sendJudgment } from "./judge.js";
import { button } from "./parts.js";
import Sortable from "./vendor/sortable.js";
import { labelled, saying, t } from "./words.js";

/** Let `cards` be put in order within `list`; returns what stands below them. */
export function ranking(turn, list, cards, update) {
  const places = new Map(cards.map((card) => [card.node, place(card)]));
  const said = make("p", { className: "quiet", role: "status" });
  const reply = make("p", { className: "line bad", role: "status" });
  const allBad = make("input", { type: "checkbox" });
  const done = saying(make("button", { type: "button", className: "soft" }), "recordOrder");
  // The browser's own dragging does not begin at a button everywhere, nor under a finger.
  const sorted = Sortable.create(list, { handle: ".handle", forceFallback: true, animation: 150, onEnd: number });

  function place(card) {
    const badge = make("span", { className: "badge", "aria-hidden": "true" });
    const handle = button("moveAnswer", "move");
    handle.classList.add("handle");
    const equal = labelled(make("button", { type: "button", className: "icon equal" }, "="), "equalToAbove");
    const [up, down] = [button("moveUp", "up-one"), button("moveDown", "down-one")];
    handle.addEventListener("keydown", (event) => {
      const by = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      move(card.node, by, handle);
    });
    up.addEventListener("click", () => move(card.node, -1, up));
    down.addEventListener("click", () => move(card.node, 1, down));
    equal.addEventListener("click", () => {
      equal.setAttribute("aria-pressed", String(equal.getAttribute("aria-pressed") !== "true"));
      number();
    });
    equal.setAttribute("aria-pressed", "false");
    const head = make("div", { className: "place" }, badge, handle, up, down, equal);
    card.node.prepend(head);
    return { head, badge, equal };
  }

  function move(node, by, focus) {
    const other = by < 0 ? node.previousElementSibling : node.nextElementSibling;
    if (!other) return;
    if (by < 0) other.before(node);
    else other.after(node);
    focus.focus();
    number();
    const at = [...list.children].indexOf(node) + 1;
    const n = cards.findIndex((card) => card.node === node) + 1;
    said.textContent = t("movedTo", { n, at });
  }

  /** Show and return the rank of each card, in the order that the cards were shown in. */
  function number() {
    const ranks = new Map();
    let rank = 0;
    [...list.children].forEach((node, at) => {
      const { badge, equal } = places.get(node);
      equal.disabled = at === 0;
      const tied = at > 0 && equal.getAttribute("aria-pressed") === "true";
      if (!tied) rank += 1;
      badge.textContent = rank;
      ranks.set(node, rank);
    });
    return cards.map((card) => ranks.get(card.node));
  }

  done.addEventListener("click", () => {
    const ranks = number();
    const answers = turn.answers.map((answer) => answer.id);
    const judgment = { kind: "ranking", answers, ranks, all_bad: allBad.checked };
    if (turn.desk_item) judgment.desk_item = turn.desk_item;
    sendJudgment(judgment, reply, [done], ({ versions }) => {
      turn.versions = versions;
      turn.judged = { ranks, allBad: allBad.checked };
      sorted.destroy();
      for (const { head, badge } of places.values()) head.replaceChildren(badge);
      update();
    });
  });
  number();
  const none = make("label", { className: "check" }, allBad, saying(make("span", {}), "allBad"));
  return [saying(make("p", {}), "putInOrder"), make("div", { className: "buttons" }, none, done), said, reply];
}
