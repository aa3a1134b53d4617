// What a model writes, as Markdown. HTML in it is text like any other; pictures and odd links are not followed.

import { icon, make } from "./dom.js";
import { Marked } from "./vendor/marked.js";
import DOMPurify from "./vendor/purify.js";
import { labelled } from "./words.js";

const reader = new Marked({
  breaks: true,
  tokenizer: { html: () => undefined, tag: () => undefined },
  renderer: { image: ({ text }) => escaped(text) },
});

// A second lock on the same door: whatever the reader makes, nothing else comes through.
const ALLOWED = {
  ALLOWED_TAGS: [
    ..."a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre strong".split(" "),
    ..."table tbody td th thead tr ul".split(" "),
  ],
  ALLOWED_ATTR: ["href", "start"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(https?|mailto):/i,
  RETURN_DOM_FRAGMENT: true,
};

const escaped = (text) => text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

/** Show text as Markdown. */
export function showMarkdown(node, text) {
  if (node.source === text) return;
  node.source = text;
  const shown = DOMPurify.sanitize(reader.parse(text), ALLOWED);
  for (const link of shown.querySelectorAll("a")) Object.assign(link, { target: "_blank", rel: "noopener noreferrer" });
  for (const block of shown.querySelectorAll("pre")) {
    wrap(block, make("div", { className: "code" }, copyButton(() => block.textContent)));
  }
  for (const table of shown.querySelectorAll("table")) wrap(table, make("div", { className: "wide-table" }));
  node.replaceChildren(shown);
}

function wrap(node, around) {
  node.replaceWith(around);
  around.prepend(node);
}

/** A button that copies what `text` gives; hidden where the browser does not let pages copy. */
export function copyButton(text) {
  const button = labelled(make("button", { type: "button", className: "icon copy" }, icon("copy")), "copy");
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", () => navigator.clipboard.writeText(text()));
  return button;
}
