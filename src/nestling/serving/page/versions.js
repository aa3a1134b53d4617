// The versions of the assistant: where each comes from, what its exam said, and what changed.

import { byId, make } from "./dom.js";
import { language, measureName, onLanguage, stageName, t } from "./words.js";

let versions = [];
let first = null; // the name of the version that is shown first

const dialog = () => byId("versions-dialog");

/** Take the server's list of versions. */
export function takeVersions(list) {
  versions = list;
  if (dialog().open) show();
}

/** Open the list at a version. */
export function showVersion(name = null) {
  first = name;
  show();
  if (!dialog().open) dialog().showModal();
}

function show() {
  const newest = versions.toReversed();
  const at = newest.findIndex((version) => version.name === first);
  byId("versions-list").replaceChildren(...newest.map((version, number) => entry(version, number === Math.max(at, 0))));
}

function entry(version, open) {
  const state = version.serving ? "stateServing" : `state_${version.state}`;
  const badge = make("span", { className: `state ${version.serving ? "serving" : version.state}` }, t(state));
  const when = new Date(version.created).toLocaleString(language(), { dateStyle: "medium", timeStyle: "short" });
  const from = version.parents.length ? t("madeFrom", { parents: version.parents.join(", ") }) : "";
  const kind = stageName(version.kind);
  const told = make("p", { className: "quiet" }, [kind, from, when, version.licence].filter(Boolean).join(" · "));
  const head = make("summary", {}, make("b", {}, version.name), badge);
  const node = make("details", { open }, head, told, ...words(version));
  return make("li", {}, node);
}

/** Where it comes from, and why it is served again or no more; then the gate's verdict, and what its exam measured. */
function words({ exam, verdict, state, learnt, rolled_back, instead_of }) {
  const story = [
    learnt && t("learntFrom", learnt),
    instead_of && t("servedAgain", { newer: instead_of }),
    rolled_back && t("rolledBack"),
  ];
  const told = story.filter(Boolean).map((sentence) => make("p", {}, sentence));
  // A version that was rolled back passed its exam before; the verdict of its card is no longer the gate's.
  if (!exam || rolled_back) return verdict ? [...told, make("p", { lang: "en" }, verdict)] : told;
  return [...told, ...examined(exam, state, Boolean(learnt))];
}

function examined(exam, state, learnt) {
  const lines = exam.lines.map((line) => ({ ...line, shown: measureName(line.name, line.label) }));
  const evidence = lines.find((line) => line.role === "evidence");
  const lost = lines.filter((line) => line.role === "guarded" && !line.passed);
  const on = t(learnt ? "onPeople" : "onUnrewarded");
  const slots = { on, against: exam.against, gain: points(evidence.gain), least: points(evidence.bound ?? 0) };
  const sentences = [];
  if (state === "accepted") sentences.push(t("examPassed", slots));
  else sentences.push(t(evidence.passed ? "examBetterBut" : "examNotBetter", slots));
  for (const line of lost) {
    sentences.push(t("mayHaveLost", { name: line.shown, most: percent(roundedUp(line.bound)), allowed: percent(line.margin) }));
  }
  const measured = lines.filter((line) => line !== evidence).sort((a, b) => b.gain - a.gain);
  const rows = measured.map((line) => {
    const sign = line.gain > 0.0005 ? "gained" : line.gain < -0.0005 ? "lost" : "";
    return make("tr", {}, make("th", { scope: "row" }, line.shown), make("td", { className: sign }, points(line.gain)));
  });
  const table = make("table", {}, make("caption", {}, t("changes", { against: exam.against })), make("tbody", {}, ...rows));
  return [make("p", {}, sentences.join(" ")), table];
}

const percent = (share) => (100 * share).toFixed(1).replace(/\.0$/, "");
/** As the gate says it: never below a margin that it exceeds. */
const roundedUp = (share) => Math.ceil(Number((1000 * share).toFixed(6))) / 1000;
const points = (share) => (share > 0 ? "+" : share < 0 ? "−" : "±") + percent(Math.abs(share));

/** Wire the button and its dialog. */
export function startVersions() {
  byId("versions").addEventListener("click", () => showVersion());
  byId("versions-close").addEventListener("click", () => dialog().close());
  onLanguage(() => dialog().open && show());
}
