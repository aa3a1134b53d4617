// Small helpers around the DOM. Text from people and models only ever becomes text nodes.

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/** A new element with properties and children; strings among the children become text. */
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}

/** Show text as paragraphs; single line breaks are kept by the style sheet. Only what changed is touched. */
export function showText(node, text) {
  const paragraphs = text.split(/\n{2,}/);
  while (node.children.length > paragraphs.length) node.lastElementChild.remove();
  paragraphs.forEach((paragraph, at) => {
    const child = node.children[at] ?? node.appendChild(document.createElement("p"));
    if (child.textContent !== paragraph) child.textContent = paragraph;
  });
}

const ICONS = {
  up: "M7 11v9H4v-9zM7 11l4-8c1.6 0 2.5 1 2.2 2.7L12.6 9H18c1.3 0 2.2 1.2 1.9 2.400l-1.7 7c-.2.9-1 1.6-2 1.6H7",
  down: "M17 13V4h3v9zM17 13l-4 8c-1.6 0-2.5-1-2.2-2.700l.6-3.300H6c-1.3 0-2.2-1.2-1.9-2.400l1.7-7C6 4.7 6.8 4 7.8 4H17",
  copy: "M9 9h10v11H9zM5 15V4h10",
  pen: "M4 20l1-4L16 5l3 3L8 19zM13 8l3 3",
  again: "M19 12a7 7 0 1 1-2.2-5.100M19 4v4h-4",
  back: "M14 6l-6 6 6 6",
  on: "M10 6l6 6-6 6",
  move: "M9 6h.01M15 6h.01M9 12h.01M15 12h.01M9 18h.01M15 18h.01",
  "up-one": "M6 14l6-6 6 6",
  "down-one": "M6 10l6 6 6-6",
  bin: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
};

/** An icon that screen readers skip; label the button around it. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A random id, also where crypto.randomUUID is missing because the page came over plain HTTP. */
export function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
}

/** Remembered between visits; a browser that forbids it forgets. */
export const memory = {
  get(key) {
    try {
      return JSON.parse(localStorage.getItem(`nestling.${key}`));
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem(`nestling.${key}`, JSON.stringify(value));
    } catch {
      // Private windows and full stores: nothing depends on being remembered.
    }
  },
  forget(key) {
    try {
      localStorage.removeItem(`nestling.${key}`);
    } catch {
      // As above.
    }
  },
};
