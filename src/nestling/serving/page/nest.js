// The server's own news: which version answers, which may be asked for, how the next one is being raised.

import { json, stream } from "./api.js";
import { note } from "./chat.js";
import { pictures, short } from "./curves.js";
import { byId, make } from "./dom.js";
import { takeVersions } from "./versions.js";
import { figureName, onLanguage, saying, stageName, t } from "./words.js";

const RETRY_MS = 2000;
const CURVES_MS = 5000;

let status = null;
let versions = [];
let curves = {};
let curvesAt = 0;

/** Follow the server's status for as long as the page is open. */
export async function followStatus() {
  onLanguage(showAll);
  byId("raising").addEventListener("toggle", async () => {
    await followCurves().catch(() => {}); // comes again with the next news
    showAll();
  });
  for (;;) {
    try {
      for await (const news of stream("/api/events")) await take(news);
    } catch {
      // The server was stopped or is being updated; it says everything again when it is back.
    }
    status = status && { ...status, unreachable: true };
    showTrouble();
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

async function take(news) {
  const before = status?.serving?.name;
  const stageBefore = status?.raising?.stage;
  const judgedBefore = status?.raising?.verdict?.version;
  const known = status !== null;
  status = news;
  const name = news.serving?.name;
  if (before !== name || stageBefore !== news.raising?.stage || !versions.length) {
    versions = (await json("/api/versions")).versions;
    takeVersions(versions);
  }
  const newer = versions.find((version) => version.name === name)?.instead_of;
  if (before && name && before !== name) note(newer ? "cameBack" : "tookOver", { name, newer });
  const verdict = news.raising?.verdict;
  if (known && verdict && verdict.version !== judgedBefore && !verdict.accepted) {
    note("notServed", { name: verdict.version });
  }
  await followCurves();
  showAll();
}

function showAll() {
  showVersions();
  showTrouble();
  showRaising();
  const assistant = status?.serving?.assistant ?? "Nestling";
  byId("name").textContent = assistant;
  document.title = assistant;
  byId("greeting").textContent = t("greeting", { name: assistant });
}

function showTrouble() {
  const line = byId("trouble");
  line.hidden = false;
  if (!status || status.unreachable) saying(line, "unreachable");
  else if (status.loading) saying(line, "loadingVersion", { name: status.loading });
  else if (status.error) line.textContent = status.error;
  else if (!status.serving) saying(line, "noVersion");
  else line.hidden = true;
  line.classList.toggle("bad", Boolean(status?.error && !status.loading));
}

// -- versions ----------------------------------------------------------------------------------------------------

function showVersions() {
  const name = status?.serving?.name;
  const newest = name ? t("newestNamed", { name }) : t("newest");
  fill(byId("version"), [option("nestling", newest), ...versions.map(named)]);
  fill(byId("against"), [option("", t("sameVersion")), ...versions.map(named)]);
}

function named(version) {
  const rejected = version.state === "rejected";
  const choice = option(version.name, rejected ? t("rejected", { name: version.name }) : version.name);
  choice.disabled = !version.offered;
  choice.title = version.verdict;
  return choice;
}

const option = (value, text) => make("option", { value }, text);

/** Replace a select's options, keeping the choice while it is still there. */
function fill(select, options) {
  const chosen = select.value;
  const same = options.length === select.options.length && options.every((o, at) => o.isEqualNode(select.options[at]));
  if (same) return;
  select.replaceChildren(...options);
  if (options.some((o) => o.value === chosen)) select.value = chosen;
}

/** Fetch the curves now and then, while somebody looks at them. */
async function followCurves() {
  if (!byId("raising").open || !status.raising || Date.now() - curvesAt < CURVES_MS) return;
  curvesAt = Date.now();
  ({ curves } = await json("/api/curves"));
}

// -- raising -----------------------------------------------------------------------------------------------------

function showRaising() {
  const raising = status?.raising;
  const panel = byId("raising");
  panel.hidden = !raising;
  if (!raising) return;
  panel.dataset.state = raising.state ?? "running";
  byId("raising-line").textContent = summary(raising);
  const bar = byId("raising-progress");
  bar.hidden = panel.dataset.state !== "running" || !raising.steps;
  bar.value = raising.steps ? raising.step / raising.steps : 0;
  const at = (raising.stages ?? []).indexOf(raising.stage);
  byId("raising-stages").replaceChildren(
    ...(raising.stages ?? []).map((stage, number) => {
      const done = number < at || panel.dataset.state === "finished";
      const item = make("li", { className: done ? "done" : number === at ? "now" : "" }, stageName(stage));
      if (number === at && !done) item.setAttribute("aria-current", "step");
      return item;
    }),
  );
  const figures = curves[raising.stage] ?? Object.values(curves).at(-1) ?? {};
  byId("raising-curves").replaceChildren(...pictures(figures));
  byId("raising-numbers").replaceChildren(
    ...Object.entries(raising.metrics ?? {})
      .filter(([name]) => !(figures[name]?.length > 1)) // the others are in the pictures
      .map(([name, value]) => make("div", {}, make("dt", {}, figureName(name)), make("dd", {}, short(value)))),
  );
}

function summary(raising) {
  const { version, accepted } = raising.verdict ?? {};
  const message = version ? t(accepted ? "verdictServed" : "verdictKept", { name: version }) : raising.message;
  if (raising.state === "finished") return [t("finished"), message].filter(Boolean).join(" · ");
  if (["failed", "stopped"].includes(raising.state)) return [t("failed"), raising.message].filter(Boolean).join(" · ");
  const step = raising.steps ? t("stepOf", raising) : raising.step ? t("step", raising) : "";
  const stage = raising.stage ? stageName(raising.part ?? raising.stage) : t("raising");
  return [stage, step, remaining(raising.eta_seconds), message].filter(Boolean).join(" · ");
}

function remaining(seconds) {
  if (seconds === undefined || seconds === null) return "";
  if (seconds < 60) return t("etaSeconds");
  if (seconds < 5400) return t("etaMinutes", { n: Math.round(seconds / 60) });
  return t("etaHours", { n: (seconds / 3600).toFixed(1) });
}
