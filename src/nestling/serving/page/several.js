// Several answers to one prompt, side by side: a vote between two, an order of more.
//
// A turn is {kind: "several", answers: [{id, text, end}], judged, versions}; `judged` is {ranks, allBad}, where 1 is the
// best rank.

import { make } from "./dom.js";
import { ranking } from "./ranking.js";
import { sendJudgment } from "./judge.js";
import { answerBody, switcher } from "./parts.js";
import { labelled, saying, t } from "./words.js";

/** Which of the answers the conversation goes on with: a best one, none when all are bad, else the first. */
export function keptOf({ answers, judged }) {
  if (judged?.allBad) return null;
  return answers[judged ? judged.ranks.indexOf(1) : 0];
}

/** The view of such a turn; see views.js. */
export function several(turn, act) {
  const cards = turn.answers.map((answer, at) => {
    const body = answerBody();
    const caption = make("footer", { className: "foot" });
    const node = make("section", { className: "side", role: "group" }, body.node, caption);
    return { node, body, caption, at };
  });
  const list = make("div", { className: turn.answers.length === 2 ? "sides" : "sides many" });
  list.append(...cards.map((card) => card.node));
  const vote = make("div", { className: "vote" });
  const places = switcher(turn, act);
  const foot = make("footer", { className: "foot branches" }, places.node);
  const node = make("article", { className: "turn several" }, list, vote, foot);
  let asked = false;

  function update() {
    for (const { node: side, body, caption, at } of cards) {
      body.update({ ...turn.answers[at], trouble: at === 0 ? turn.trouble : undefined });
      side.setAttribute("aria-label", t("answerNumber", { n: at + 1 }));
      side.classList.toggle("won", turn.judged?.ranks?.[at] === 1 && !turn.judged.allBad);
      caption.textContent = turn.versions?.[at] ?? "";
    }
    if (turn.judged) vote.replaceChildren(verdict(turn));
    else if (!asked && turn.answers.every((answer) => answer.id)) {
      asked = true;
      const ask = turn.answers.length === 2 ? voting : ranking;
      vote.append(...ask(turn, list, cards, update));
    }
    places.update();
    act.follow();
  }
  return { node, update };
}

const RANKS = { left: [1, 2], tie: [1, 1], both_bad: [1, 1], right: [2, 1] };

/** The four buttons of a vote; `update` is called once it is recorded. */
function voting(turn, _list, _cards, update) {
  const question = saying(make("p", {}), "whichIsBetter");
  const reply = make("p", { className: "line bad", role: "status" });
  const buttons = Object.keys(RANKS).map((winner) => {
    const button = make("button", { type: "button", className: "soft", value: winner });
    if (winner === "left" || winner === "right") {
      // On a narrow screen the answers stand one above the other.
      const other = winner === "left" ? "first" : "second";
      const wide = saying(make("span", { className: "wide" }), winner);
      button.append(wide, saying(make("span", { className: "narrow" }), other));
    } else saying(button, winner);
    button.addEventListener("click", () => {
      const [left, right] = turn.answers.map((answer) => answer.id);
      sendJudgment({ kind: "vote", left, right, winner }, reply, buttons, ({ versions }) => {
        turn.versions = [versions.left, versions.right];
        turn.judged = { ranks: RANKS[winner], allBad: winner === "both_bad" };
        update();
      });
    });
    return button;
  });
  return [question, labelled(make("div", { className: "buttons", role: "group" }, ...buttons), "whichIsBetter"), reply];
}

const verdict = (turn) => saying(make("p", { role: "status" }), turn.judged.allBad ? "keptNone" : "thanks");
