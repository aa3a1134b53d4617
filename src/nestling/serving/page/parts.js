// Parts that several kinds of turns share.

import { alternatives } from "./conversation.js";
import { icon, make } from "./dom.js";
import { showMarkdown } from "./markdown.js";
import { labelled, saying } from "./words.js";

/** A button with a picture and a label. */
export const button = (label, picture) =>
  labelled(make("button", { type: "button", className: `icon ${picture}` }, icon(picture)), label);

/** The text of one answer, with dots while it is awaited and a line when it did not end well. */
export function answerBody() {
  const text = make("div", { className: "text written" });
  const dots = make("span", { className: "dots", "aria-hidden": "true" }, make("i"), make("i"), make("i"));
  const trouble = make("p", { className: "line" });
  const node = make("div", { className: "body" }, text, dots, trouble);
  return {
    node,
    update(answer) {
      showMarkdown(text, answer.rewrite ?? answer.text);
      node.classList.toggle("waiting", !answer.end && !answer.text);
      node.classList.toggle("writing", !answer.end);
      if (answer.trouble) trouble.textContent = answer.trouble;
      else if (answer.rewrite) saying(trouble, "yourWords");
      else if (answer.end === "cancelled") saying(trouble, "stopped");
      else if (answer.end === "length") saying(trouble, "cut");
      trouble.classList.toggle("bad", Boolean(answer.trouble));
    },
  };
}

/** Goes through a turn's alternatives; hidden while there is one. */
export function switcher(turn, act) {
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

/** A form with a text to change; `send(text)` takes what was written, `leave` puts back what stood there. */
export function editor(written, label, action, leave, send) {
  const text = labelled(make("textarea", { value: written, maxLength: 20000, rows: 3 }), label);
  const keep = saying(make("button", { type: "submit", className: "soft" }), action);
  const cancel = saying(make("button", { type: "button", className: "soft" }), "cancel");
  const form = make("form", { className: "editor" }, text, make("div", { className: "buttons" }, cancel, keep));
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
    send(text.value.trim());
  });
  return form;
}

/** Show an editor in place of a node until it is left; `focus` is what has the focus again then. */
export function editInPlace(node, foot, focus, ...editing) {
  const leave = () => {
    form.replaceWith(node);
    foot.hidden = false;
    focus.focus();
  };
  const [written, label, action, send] = editing;
  const form = editor(written, label, action, leave, send);
  node.replaceWith(form);
  foot.hidden = true;
  form.querySelector("textarea").focus();
}
