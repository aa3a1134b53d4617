// The chats of this browser: open one again, forget one.

import { restore, startNew } from "./chat.js";
import { chatId, forget, listed } from "./conversation.js";
import { byId, icon, make } from "./dom.js";
import { labelled, language, onLanguage, t } from "./words.js";

const dialog = () => byId("history-dialog");

function show() {
  const chats = listed();
  byId("history-empty").hidden = chats.length > 0;
  byId("history-list").replaceChildren(...chats.map(entry));
}

function entry({ id, title, when }) {
  const day = new Date(when).toLocaleString(language(), { dateStyle: "medium", timeStyle: "short" });
  const open = make("button", { type: "button", className: "entry" }, make("span", {}, title || t("untitled")));
  open.append(make("span", { className: "quiet" }, day));
  if (id === chatId()) open.setAttribute("aria-current", "true");
  open.addEventListener("click", () => {
    dialog().close();
    restore(id);
  });
  const bin = labelled(make("button", { type: "button", className: "icon" }, icon("bin")), "forget");
  bin.addEventListener("click", () => {
    const current = id === chatId();
    forget(id);
    if (current) startNew();
    show();
  });
  return make("li", {}, open, bin);
}

/** Wire the button and its dialog. */
export function startHistory() {
  byId("history").addEventListener("click", () => {
    show();
    dialog().showModal();
  });
  byId("history-close").addEventListener("click", () => dialog().close());
  onLanguage(() => dialog().open && show());
}
