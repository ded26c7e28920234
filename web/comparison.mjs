// Before | after with a divider that is dragged, and a strip of all pictures to choose from.

import { keepEvents, make, openDialog } from "./elements.mjs";
import { t } from "./words.mjs";

/** @typedef {{prompt: string, seed: string, strength: number, url: string}} Picture */

/** 0 → "without LoRA", 0.5 → "LoRA × 0.5" */
export function titleOf(/** @type {number} */ strength) {
  return strength === 0 ? t("without LoRA") : `LoRA × ${strength}`;
}

function seedOf(/** @type {Picture} */ { seed }) {
  return t("seed {seed}", { seed });
}

/**
 * Pictures as rows of one prompt and seed with a picture for each strength.
 * @param {Picture[]} pictures row by row
 * @returns {Picture[][]}
 */
export function rowsOf(pictures) {
  /** @type {Picture[][]} */
  const rows = [];
  for (const picture of pictures) {
    const row = rows.at(-1);
    // Strength 0 always comes first.
    if (row && picture.strength !== 0) row.push(picture);
    else rows.push([picture]);
  }
  return rows;
}

const KEYS = { ArrowLeft: -2, ArrowRight: 2, PageDown: -20, PageUp: 20, Home: -100, End: 100 };

/** Two pictures over each other. */
export class Divider {
  constructor(/** @type {(() => void) | null} */ onopen = null) {
    this.before = make("img", { className: "igl-before", draggable: false });
    this.after = make("img", { draggable: false, onload: () => this.fit() });
    this.line = make("div", { className: "igl-line" });
    this.labels = [make("span", { className: "igl-label" }), make("span", { className: "igl-label igl-right" })];
    this.onopen = onopen;
    this.percent = 50;
    this.element = make(
      "div",
      {
        className: "igl-divider",
        role: "slider",
        tabIndex: 0,
        title: onopen ? t("Drag the line, or press ← and →. Click for full size.") : t("Drag the line, or press ← and →."),
        "aria-label": t("Divider between the picture without and with the LoRA"),
        "aria-valuemin": "0",
        "aria-valuemax": "100",
        onkeydown: (event) => this.onKey(event),
      },
      this.after,
      this.before,
      this.line,
      ...this.labels,
    );
    this.listen();
    this.move(this.percent);
  }

  show(/** @type {Picture} */ before, /** @type {Picture} */ after) {
    [this.before, this.after].forEach((image, i) => {
      const picture = [before, after][i];
      image.src = picture.url;
      image.alt = `${titleOf(picture.strength)}: ${picture.prompt}`;
      this.labels[i].textContent = titleOf(picture.strength);
    });
  }

  fit() {
    this.element.style.setProperty("--ratio", String(this.after.naturalWidth / this.after.naturalHeight || 1));
  }

  move(/** @type {number} */ percent) {
    this.percent = Math.min(100, Math.max(0, percent));
    this.element.style.setProperty("--divide", `${this.percent}%`);
    this.element.setAttribute("aria-valuenow", this.percent.toFixed(0));
  }

  onKey(/** @type {KeyboardEvent} */ event) {
    if (event.key in KEYS) this.move(this.percent + KEYS[event.key]);
    else if ((event.key === "Enter" || event.key === " ") && this.onopen) this.onopen();
    else return;
    event.preventDefault();
  }

  listen() {
    const { element } = this;
    /** @type {number | null} */
    let from = null;
    let dragged = false;
    element.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      [from, dragged] = [event.clientX, false];
      element.setPointerCapture(event.pointerId);
    });
    element.addEventListener("pointermove", (event) => {
      if (from === null || (!dragged && Math.abs(event.clientX - from) < 4)) return;
      dragged = true;
      const box = element.getBoundingClientRect(); // on the page, however far the canvas is zoomed
      this.move((100 * (event.clientX - box.left)) / box.width);
    });
    element.addEventListener("pointerup", () => {
      if (from !== null && !dragged) this.onopen?.();
      from = null;
    });
    element.addEventListener("pointercancel", () => (from = null));
  }
}

/** Divider and strip. */
export class Comparison {
  constructor() {
    /** @type {Picture[][]} */
    this.rows = [];
    this.row = 0;
    this.column = 0;
    this.divider = new Divider(() => this.open());
    this.caption = make("div", { className: "igl-caption" });
    this.strip = make("div", { className: "igl-strip" });
    this.element = keepEvents(
      make("div", { className: "igl igl-comparison", onkeydown: (event) => this.onKey(event) }, this.divider.element, this.caption, this.strip),
    );
  }

  show(/** @type {Picture[]} */ pictures) {
    this.rows = rowsOf(pictures);
    this.strip.replaceChildren(
      make("table", {}, this.head(), ...this.rows.map((row, r) => make("tr", {}, ...row.map((picture, c) => this.cell(picture, r, c))))),
    );
    this.choose(0, (this.rows[0]?.length ?? 1) - 1);
  }

  head() {
    return make("tr", {}, ...(this.rows[0] ?? []).map(({ strength }) => make("th", {}, titleOf(strength))));
  }

  cell(/** @type {Picture} */ picture, row, column) {
    const title = `${picture.prompt} · ${seedOf(picture)} · ${titleOf(picture.strength)}`;
    const image = make("img", { src: picture.url, alt: title, loading: "lazy", draggable: false });
    return make("td", {}, make("button", { title, onclick: () => this.choose(row, column) }, image));
  }

  choose(row, column) {
    const pictures = this.rows[row];
    if (!pictures) return;
    this.row = row;
    this.column = column;
    const shown = pictures[column];
    this.divider.show(pictures[0], shown);
    this.caption.textContent = `${shown.prompt} · ${seedOf(shown)}`;
    const buttons = [...this.strip.querySelectorAll("button")];
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === row * pictures.length + column)));
  }

  onKey(/** @type {KeyboardEvent} */ event) {
    const by = event.key === "ArrowUp" ? -1 : 1;
    if (by === 1 && event.key !== "ArrowDown") return;
    this.choose(Math.min(Math.max(this.row + by, 0), this.rows.length - 1), this.column);
    event.preventDefault();
  }

  open() {
    const large = new Divider();
    large.show(this.rows[this.row][0], this.rows[this.row][this.column]);
    large.move(this.divider.percent);
    openDialog(this.caption.textContent, large.element, "igl-full");
    large.element.focus();
  }
}
