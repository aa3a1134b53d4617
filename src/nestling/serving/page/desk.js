// The desk: a question with several answers at a time, to put in order, to score, to write better, or to pass by.

import { identify, json, remove } from "./api.js";
import { byId, make, memory, showText } from "./dom.js";
import { sendJudgment } from "./judge.js";
import { answerBody, button, editInPlace } from "./parts.js";
import { ranking } from "./ranking.js";
import { onLanguage, saying, startWords, t } from "./words.js";

let opinion = null;

/** Show the next question, or that there is none. */
async function next() {
  const task = await asked(() => json("/api/desk"));
  if (!task) return;
  byId("task").hidden = task.item === null;
  byId("nothing").hidden = task.item !== null;
  saying(byId("waiting"), "deskWaiting", { n: task.waiting });
  if (task.item !== null) show(task);
  opinion = await asked(() => json("/api/people"));
  showOpinion();
  scrollTo({ top: 0 });
}

/** What the server says; what it refuses is shown instead, and null. */
async function asked(ask) {
  const trouble = byId("trouble");
  try {
    const said = await ask();
    trouble.hidden = true;
    return said;
  } catch (error) {
    trouble.textContent = error.message;
    trouble.hidden = false;
    return null;
  }
}

function show(task) {
  byId("question").replaceChildren(
    ...task.messages.map(({ role, content }) => {
      const text = make("div", { className: role === "user" ? "text" : "text written" });
      showText(text, content);
      return make("article", { className: `turn ${role === "user" ? "user" : "answer"}` }, text);
    }),
  );
  const turn = { answers: task.answers, desk_item: task.item };
  const cards = task.answers.map((answer, at) => card(answer, at, task.item));
  byId("sides").replaceChildren(...cards.map(({ node }) => node));
  byId("controls").replaceChildren(...ranking(turn, byId("sides"), cards, () => setTimeout(next, 600)));
  byId("skip").onsubmit = async (event) => {
    event.preventDefault();
    const reason = byId("skip-why").value;
    if (await asked(() => json(`/api/desk/${task.item}/skip`, { reason }))) next();
  };
}

function card(answer, at, item) {
  const body = answerBody();
  const reply = make("span", { className: "reply", role: "status" });
  const foot = make("footer", { className: "foot" });
  const node = make("section", { className: "side", role: "group" }, body.node, foot, score(answer, at, item, reply), reply);
  const better = button("writeBetter", "pen");
  better.addEventListener("click", () => {
    editInPlace(body.node, foot, better, answer.rewrite ?? answer.text, "writeBetter", "keep", (text) => {
      sendJudgment({ kind: "rewrite", generation_id: answer.id, text }, reply, [better], () => {
        answer.rewrite = text;
        body.update({ ...answer, end: "stop" });
      });
    });
  });
  foot.append(better);
  body.update({ ...answer, end: "stop" });
  onLanguage(() => node.setAttribute("aria-label", t("answerNumber", { n: at + 1 })));
  return { node };
}

/** Five marks, from bad to good, for one answer by itself. */
function score(answer, at, item, reply) {
  const choices = [1, 2, 3, 4, 5].map((value) => {
    const input = make("input", { type: "radio", name: `score-${at}`, value });
    input.addEventListener("change", () => {
      sendJudgment({ kind: "score", generation_id: answer.id, value, desk_item: item }, reply, [input], () => {
        saying(reply, "thanks");
      });
    });
    return make("label", {}, input, String(value));
  });
  const legend = saying(make("legend", { className: "quiet" }), "howGood");
  return make("fieldset", { className: "score" }, legend, ...choices);
}

function showOpinion() {
  if (!opinion) return;
  const { agreement, arena, satisfaction } = opinion;
  byId("agreement").textContent =
    agreement === null ? t("noAgreement") : t("agreementIs", { alpha: agreement.toFixed(2), n: opinion.opinions });
  const { version, rate, people } = satisfaction;
  byId("content").textContent = rate === null ? "" : t("contentIs", { version, share: Math.round(100 * rate), n: people });
  byId("arena").hidden = arena.length === 0;
  byId("standings").replaceChildren(
    ...arena.map(({ version: name, points, low, high, games }) => {
      const numbers = [points.toFixed(0), `${low.toFixed(0)} … ${high.toFixed(0)}`, String(games)];
      return make("tr", {}, make("th", { scope: "row" }, name), ...numbers.map((text) => make("td", {}, text)));
    }),
  );
}

byId("forget-me").addEventListener("click", async () => {
  if (!confirm(t("forgetMeSure"))) return;
  const said = await asked(() => remove("/api/me"));
  if (!said) return;
  saying(byId("forgotten"), "forgotten", { n: said.withdrawn });
  memory.forget("identity"); // nothing tells that who speaks next is the same person
  await identify().catch(() => {});
});
byId("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  memory.set("theme", now === "dark" ? "light" : "dark");
  document.documentElement.dataset.theme = memory.get("theme");
});

if (memory.get("theme")) document.documentElement.dataset.theme = memory.get("theme");
startWords();
onLanguage(showOpinion);
await identify().catch(() => {});
next();
