// How turns look. A view is {node, update()}; what its buttons do is given to it as `act`.

import { make, showText } from "./dom.js";
import { rewriting, thumbs } from "./judge.js";
import { copyButton } from "./markdown.js";
import { answerBody, button, editInPlace, switcher } from "./parts.js";
import { several } from "./several.js";
import { showVersion } from "./versions.js";
import { labelled, saying } from "./words.js";

/** The view of a turn. `act` has again(turn), edit(turn, text), show(turn, by) and follow(). */
export const view = (turn, act) => VIEWS[turn.kind](turn, act);

const VIEWS = {
  several,

  user(turn, act) {
    const text = labelled(make("div", { className: "text", role: "group" }), "you");
    showText(text, turn.text);
    const places = switcher(turn, act);
    const change = button("edit", "pen");
    const foot = make("footer", { className: "foot branches" }, places.node, change);
    const node = make("article", { className: "turn user" }, text, foot);
    change.addEventListener("click", () =>
      editInPlace(text, foot, change, turn.text, "edit", "send", (written) => act.edit(turn, written)),
    );
    return { node, update: places.update };
  },

  note(turn) {
    const words = saying(make("span", {}), turn.says, turn.slots);
    const more = saying(make("button", { type: "button", className: "more" }), "whatChanged");
    more.addEventListener("click", () => showVersion(turn.slots.name));
    return { node: make("p", { className: "note" }, words, " ", more), update() {} };
  },

  answer(turn, act) {
    const body = answerBody();
    const foot = make("footer", { className: "foot" });
    const node = make("article", { className: "turn answer" }, body.node, foot);
    const places = switcher(turn, act);
    const update = () => {
      body.update(turn);
      places.update();
      if (turn.end && !foot.childElementCount) foot.append(places.node, ...afterwards(turn, act, body, foot));
      act.follow();
    };
    return { node, update };
  },
};

/** What stands under a finished answer: thumbs, copy, a better answer, again, and which version it was. */
function afterwards(turn, act, body, foot) {
  const version = make("span", { className: "quiet version" }, turn.version ?? "");
  const again = button("again", "again");
  again.addEventListener("click", () => act.again(turn));
  if (!turn.id || !turn.text) return [again, version];
  const { buttons, why, reply } = thumbs(turn);
  const better = rewriting(turn, body, foot, reply);
  return [...buttons, better, copyButton(() => turn.rewrite ?? turn.text), again, why, reply, version];
}
