// How turns look. A view is {node, update()}; what its buttons do is given to it as `act`.

import { alternatives } from "./conversation.js";
import { icon, make, showText } from "./dom.js";
import { thumbs, verdict, voting } from "./judge.js";
import { copyButton, showMarkdown } from "./markdown.js";
import { labelled, saying, t } from "./words.js";

const button = (label, picture) =>
  labelled(make("button", { type: "button", className: `icon ${picture}` }, icon(picture)), label);

/** The view of a turn. `act` has again(turn), edit(turn, text), show(turn, by) and follow(). */
export const view = (turn, act) => VIEWS[turn.kind](turn, act);

const VIEWS = {
  user(turn, act) {
    const text = labelled(make("div", { className: "text" }), "you");
    showText(text, turn.text);
    const places = switcher(turn, act);
    const change = button("edit", "pen");
    const foot = make("footer", { className: "foot branches" }, places.node, change);
    const node = make("article", { className: "turn user" }, text, foot);
    change.addEventListener("click", () => {
      const editor = editing(turn, act, () => {
        editor.replaceWith(text);
        foot.hidden = false;
        change.focus();
      });
      text.replaceWith(editor);
      foot.hidden = true;
      editor.querySelector("textarea").focus();
    });
    return { node, update: places.update };
  },

  note(turn) {
    return { node: saying(make("p", { className: "note" }), turn.says, turn.slots), update() {} };
  },

  answer(turn, act) {
    const body = answerBody();
    const foot = make("footer", { className: "foot" });
    const node = make("article", { className: "turn answer" }, body.node, foot);
    const places = switcher(turn, act);
    const update = () => {
      body.update(turn);
      places.update();
      if (turn.end && !foot.childElementCount) foot.append(places.node, ...afterwards(turn, act));
      act.follow();
    };
    return { node, update };
  },

  pair(turn, act) {
    const sides = ["left", "right"].map((side) => {
      const body = answerBody();
      const caption = make("footer", { className: "foot" });
      const label = side === "left" ? "answerA" : "answerB";
      const node = labelled(make("section", { className: `side ${side}` }, body.node, caption), label);
      return { side, node, body, caption };
    });
    const vote = make("div", { className: "vote" });
    const both = make("div", { className: "sides" }, ...sides.map((side) => side.node));
    const places = switcher(turn, act);
    const foot = make("footer", { className: "foot branches" }, places.node);
    const node = make("article", { className: "turn pair" }, both, vote, foot);
    const update = () => {
      for (const { side, node, body, caption } of sides) {
        body.update({ ...turn[side], trouble: side === "left" ? turn.trouble : undefined });
        node.classList.toggle("won", turn.winner === side || turn.winner === "tie");
        caption.textContent = turn.versions?.[side] ?? "";
      }
      const judgeable = turn.left.id && turn.right.id;
      if (judgeable && !turn.winner && !vote.childElementCount) vote.append(...voting(turn, update));
      if (turn.winner) vote.replaceChildren(verdict(turn));
      places.update();
      act.follow();
    };
    return { node, update };
  },
};

/** The text of one answer, with dots while it is awaited and a line when it did not end well. */
function answerBody() {
  const text = make("div", { className: "text written" });
  const dots = make("span", { className: "dots", "aria-hidden": "true" }, make("i"), make("i"), make("i"));
  const trouble = make("p", { className: "line" });
  const node = make("div", { className: "body" }, text, dots, trouble);
  return {
    node,
    update(answer) {
      showMarkdown(text, answer.text);
      node.classList.toggle("waiting", !answer.end && !answer.text);
      node.classList.toggle("writing", !answer.end);
      if (answer.trouble) trouble.textContent = answer.trouble;
      else if (answer.end === "cancelled") saying(trouble, "stopped");
      else if (answer.end === "length") saying(trouble, "cut");
      trouble.classList.toggle("bad", Boolean(answer.trouble));
    },
  };
}

/** What stands under a finished answer: thumbs, copy, again, and which version it was. */
function afterwards(turn, act) {
  const version = make("span", { className: "quiet version" }, turn.version ?? "");
  const again = button("again", "again");
  again.addEventListener("click", () => act.again(turn));
  if (!turn.id || !turn.text) return [again, version];
  const { buttons, why, reply } = thumbs(turn);
  return [...buttons, copyButton(() => turn.text), again, why, reply, version];
}

/** Goes through a turn's alternatives; hidden while there is one. */
function switcher(turn, act) {
  const back = button("previousBranch", "back");
  const on = button("nextBranch", "on");
  const place = make("span", { className: "quiet", role: "status" });
  const node = labelled(make("span", { className: "switcher", role: "group" }, back, place, on), "branches");
  back.addEventListener("click", () => act.show(turn, -1));
  on.addEventListener("click", () => act.show(turn, 1));
  return {
    node,
    update() {
      const all = alternatives(turn);
      const at = all.indexOf(turn);
      node.hidden = all.length < 2;
      place.textContent = `${at + 1} / ${all.length}`;
      back.disabled = at === 0;
      on.disabled = at === all.length - 1;
    },
  };
}

/** A form in place of what was said; `leave` puts that back. */
function editing(turn, act, leave) {
  const text = labelled(make("textarea", { value: turn.text, maxLength: 20000, rows: 3 }), "edit");
  const send = saying(make("button", { type: "submit", className: "soft" }), "send");
  const cancel = saying(make("button", { type: "button", className: "soft" }), "cancel");
  const form = make("form", { className: "editor" }, text, make("div", { className: "buttons" }, cancel, send));
  cancel.addEventListener("click", leave);
  text.addEventListener("keydown", (event) => {
    if (event.key === "Escape") leave();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!text.value.trim()) return;
    leave();
    act.edit(turn, text.value.trim());
  });
  return form;
}
