// How the figures of the raising go: a small picture of each, drawn as SVG.

import { make } from "./dom.js";
import { figureName, t } from "./words.js";

const [WIDTH, HEIGHT, EDGE] = [180, 52, 3];
const SVG = "http://www.w3.org/2000/svg";

/** A picture of each figure of a stage: `figures` is {name: [[step, value], ...]}. */
export const pictures = (figures) =>
  Object.entries(figures)
    .filter(([, points]) => points.length > 1)
    .map(([name, points]) => picture(name, points));

function picture(name, points) {
  const [steps, values] = [points.map(([step]) => step), points.map(([, value]) => value)];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const x = (step) => scaled(step, steps[0], steps.at(-1), EDGE, WIDTH - EDGE);
  const y = (value) => scaled(value, low, high, HEIGHT - EDGE, EDGE);
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" "));
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("role", "img");
  const [from, to] = [short(values[0]), short(values.at(-1))];
  svg.setAttribute("aria-label", t("curve", { name: figureName(name), from, to, step: steps.at(-1) }));
  svg.append(line);
  const caption = make("figcaption", {}, make("span", {}, figureName(name)), make("b", {}, short(values.at(-1))));
  const range = make("span", { className: "quiet" }, `${short(low)} – ${short(high)}`);
  return make("figure", { className: "curve" }, caption, svg, range);
}

const scaled = (value, from, to, first, last) =>
  to === from ? (first + last) / 2 : first + ((value - from) / (to - from)) * (last - first);

/** A number as people read it. */
export function short(value) {
  if (typeof value !== "number") return String(value ?? "–");
  return Number.isInteger(value) ? value.toLocaleString() : String(Number(value.toPrecision(3)));
}
