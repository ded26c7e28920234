// Elements as nodes, never from markup: names, prompts and captions are other people's text.

import { t } from "./words.mjs";

const SVG = "http://www.w3.org/2000/svg";

/**
 * @param {string} tag
 * @param {Record<string, any>} given properties of the element, attributes (`aria-…`, `role`) and `on…` listeners
 * @param {(Node | string | null | undefined)[]} children
 * @returns {any}
 */
export function make(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "style") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/**
 * A picture of lines that fills its place.
 * @param {number} width
 * @param {number} height
 * @param {{d: string, colour: string}[]} lines
 */
export function drawing(width, height, lines) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  for (const { d, colour } of lines) {
    const path = svg.appendChild(document.createElementNS(SVG, "path"));
    const look = { d, fill: "none", stroke: colour, "stroke-width": 1.5, "vector-effect": "non-scaling-stroke" };
    for (const [name, value] of Object.entries(look)) path.setAttribute(name, String(value));
  }
  return svg;
}

/** What happens in a widget of ours is no drag of its node and no shortcut of the canvas. */
export function keepEvents(/** @type {HTMLElement} */ element) {
  for (const name of ["pointerdown", "pointermove", "pointerup", "mousedown", "dblclick", "contextmenu"]) {
    element.addEventListener(name, (event) => event.stopPropagation());
  }
  element.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey && event.key !== "Escape") event.stopPropagation();
  });
  return element;
}

/**
 * A dialog over the whole page, closed by Escape, its button, or a click beside its content.
 * @param {string} label
 * @param {HTMLElement} content
 */
export function openDialog(label, content, className = "") {
  const close = make("button", { className: "igl-close", textContent: "✕", title: t("Close"), onclick: () => dialog.close() });
  const head = make("div", { className: "igl-dialog-head" }, make("span", {}, label), close);
  const dialog = make(
    "dialog",
    {
      className: `igl igl-dialog ${className}`,
      onclose: () => dialog.remove(),
      onclick: (event) => event.target === dialog && dialog.close(),
    },
    head,
    content,
  );
  keepEvents(dialog);
  // Wherever the focus is: ComfyUI would keep the dialog open, and act on the key too.
  const onEscape = (event) => {
    if (event.key !== "Escape" || [...document.querySelectorAll("dialog.igl[open]")].at(-1) !== dialog) return;
    event.stopPropagation();
    event.preventDefault();
    dialog.close();
  };
  window.addEventListener("keydown", onEscape, true);
  dialog.addEventListener("close", () => window.removeEventListener("keydown", onEscape, true));
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * Ask before something that cannot be undone.
 * @param {string} question
 * @param {string} yes the button that does it
 * @returns {Promise<boolean>}
 */
export function ask(question, yes) {
  return new Promise((resolve) => {
    let answer = false;
    const decide = (value) => () => {
      answer = value;
      dialog.close();
    };
    const buttons = make(
      "div",
      { className: "igl-buttons" },
      make("button", { textContent: t("Cancel"), autofocus: true, onclick: decide(false) }),
      make("button", { textContent: yes, className: "igl-danger", onclick: decide(true) }),
    );
    const dialog = openDialog(yes, make("div", {}, make("p", {}, question), buttons), "igl-ask");
    dialog.addEventListener("close", () => resolve(answer));
  });
}

/**
 * Pictures at full size: ← and →, buttons and a swipe go along a row, ↑ and ↓ to another row.
 * @param {{url: string, caption: string}[][]} rows
 */
export function openPictures(rows, row = 0, column = 0) {
  const image = make("img", { draggable: false });
  const caption = make("div", { className: "igl-caption" });
  const show = (down, along) => {
    row = Math.min(Math.max(row + down, 0), rows.length - 1);
    column = Math.min(Math.max(column + along, 0), rows[row].length - 1);
    const picture = rows[row][column];
    image.src = picture.url;
    image.alt = caption.textContent = `${picture.caption} (${column + 1}/${rows[row].length})`;
  };
  const step = (by) => make("button", { textContent: by < 0 ? "‹" : "›", title: by < 0 ? t("Previous") : t("Next"), onclick: () => show(0, by) });
  let from = 0;
  const stage = make(
    "div",
    {
      className: "igl-gallery",
      onpointerdown: (event) => (from = event.clientX),
      onpointerup: (event) => Math.abs(event.clientX - from) > 40 && show(0, event.clientX < from ? 1 : -1),
    },
    step(-1),
    image,
    step(1),
  );
  const dialog = openDialog(t("Full size"), make("div", {}, stage, caption), "igl-full");
  dialog.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move) return;
    event.preventDefault();
    show(move[0], move[1]);
  });
  show(0, 0);
  return dialog;
}
