// How is asked: a system prompt and the sampling, where the visitor wants others than the server's.

import { byId, memory } from "./dom.js";

const NUMBERS = ["temperature", "top_p", "max_tokens"];

const field = (name) => byId(`set-${name}`);
const chosen = () => memory.get("settings") ?? {};

/** What a request says of it: {messages: the system's, temperature, ...}. */
export function asked() {
  const { system, ...sampling } = chosen();
  return { messages: system ? [{ role: "system", content: system }] : [], ...sampling };
}

function read() {
  const found = {};
  const system = field("system").value.trim();
  if (system) found.system = system;
  for (const name of NUMBERS) if (field(name).value !== "") found[name] = field(name).valueAsNumber;
  return found;
}

function show(settings) {
  field("system").value = settings.system ?? "";
  for (const name of NUMBERS) field(name).value = settings[name] ?? "";
  byId("settings").classList.toggle("on", Object.keys(settings).length > 0);
}

/** Wire the button and its dialog. */
export function startSettings() {
  const dialog = byId("settings-dialog");
  byId("settings").addEventListener("click", () => {
    show(chosen());
    dialog.showModal();
  });
  byId("settings-reset").addEventListener("click", () => show({}));
  byId("settings-form").addEventListener("submit", () => {
    memory.set("settings", read());
    show(chosen());
  });
  byId("settings-cancel").addEventListener("click", () => dialog.close());
  show(chosen());
}
