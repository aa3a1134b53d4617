// The page: wires the controls to the conversation and the server's news.

import { identify } from "./api.js";
import { ask, isRunning, restore, startNew, stop } from "./chat.js";
import { save } from "./conversation.js";
import { byId, make, memory } from "./dom.js";
import { startHistory } from "./history.js";
import { followStatus } from "./nest.js";
import { startSettings } from "./settings.js";
import { startVersions } from "./versions.js";
import { onLanguage, startWords, t } from "./words.js";

const prompt = byId("prompt");

function send(text) {
  if (isRunning() || !text.trim()) return;
  prompt.value = "";
  fit();
  ask(text.trim());
  reflect();
}

/** The box grows with what is written, up to the limit in the style sheet. */
function fit() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

function reflect() {
  byId("send").hidden = isRunning();
  byId("stop").hidden = !isRunning();
  byId("send").disabled = !prompt.value.trim();
}

function showTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send(prompt.value);
});
prompt.addEventListener("input", () => (fit(), reflect()));
prompt.addEventListener("keydown", (event) => {
  // While a Chinese word is being composed, Enter belongs to the input method.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send(prompt.value);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && isRunning()) stop();
});
byId("stop").addEventListener("click", stop);
byId("new-chat").addEventListener("click", () => {
  startNew();
  prompt.focus();
});
byId("answers").addEventListener("change", () => {
  byId("against-label").hidden = byId("answers").value === "1";
});
byId("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  const theme = now === "dark" ? "light" : "dark";
  memory.set("theme", theme);
  showTheme(theme);
});
new MutationObserver(reflect).observe(document.body, { attributeFilter: ["class"] });

onLanguage(() => {
  byId("suggestions").replaceChildren(
    ...t("suggestions").map((text) => {
      const button = make("button", { type: "button", className: "soft" }, text);
      button.addEventListener("click", () => send(text));
      return button;
    }),
  );
});

showTheme(memory.get("theme"));
startWords();
startSettings();
startHistory();
startVersions();
restore();
addEventListener("pagehide", save);
reflect();
fit();
identify().catch(() => {}); // without it judgments go under a name that this browser made up
followStatus();
if (matchMedia("(hover: hover)").matches) prompt.focus();
