// The captions of a dataset beside small pictures, edited in place. What is typed is saved by itself.

import { Captions } from "./captions_data.mjs";
import { make, openDialog } from "./elements.mjs";
import { VirtualList } from "./virtual_list.mjs";
import { t, told } from "./words.mjs";

const ROW_HEIGHT = 104;
const QUIET = 700; // ms without a key press until it is saved
const PAGE = 200;
const MOST_TAGS = 300;

/** @typedef {import("./run_list.mjs").Page} Page */

/**
 * Opens the editor.
 * @param {string} afterwards what is said when all is saved
 * @returns {Promise<string>} why it cannot; "" when it is open
 */
export async function openCaptions(/** @type {Page} */ page, /** @type {string} */ dataset, afterwards) {
  const answer = await page.fetch(`/in_graph_lora/captions/${encodeURIComponent(dataset)}`).catch(() => null);
  const said = await answer?.json().catch(() => null);
  if (!answer?.ok) return told(said?.error ?? t("the server does not answer"));
  new CaptionEditor(page, dataset, said.pictures, afterwards).open();
  return "";
}

class CaptionEditor {
  /** @type {string | null} */
  tag = null;
  /** Pictures that are listed. @type {number[]} */
  shown = [];
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  timer;
  /** The saving that is under way. @type {Promise<void>} */
  saving = Promise.resolve();

  constructor(/** @type {Page} */ page, /** @type {string} */ dataset, /** @type {import("./captions_data.mjs").Picture[]} */ pictures, /** @type {string} */ afterwards) {
    this.page = page;
    this.afterwards = afterwards;
    this.route = `/in_graph_lora/captions/${encodeURIComponent(dataset)}`;
    this.captions = new Captions(pictures);
    this.list = new VirtualList({
      rowHeight: ROW_HEIGHT,
      pageSize: PAGE,
      fetchPage: async (offset, limit) => ({ items: this.shown.slice(offset, offset + limit), total: this.shown.length }),
      row: (/** @type {number} */ number) => this.row(number),
    });
    const typed = (name) => make("input", { type: "text", "aria-label": name, placeholder: name, oninput: () => this.tellCount() });
    this.find = typed(t("Find"));
    this.by = typed(t("Replace with"));
    this.all = make("button", { textContent: t("Replace all"), onclick: () => this.replace() });
    this.undone = make("button", { textContent: t("Undo"), title: t("Take the last change back (Ctrl+Z)"), onclick: () => this.undo() });
    this.matches = make("span", { className: "igl-about", role: "status" });
    this.said = make("span", { className: "igl-about igl-saved", role: "status" });
    this.problem = make("div", { className: "igl-said", role: "alert" });
    this.tags = make("div", { className: "igl-tags", role: "group", "aria-label": t("Tags") });
    this.element = make(
      "div",
      { className: "igl-captions", onkeydown: (event) => this.onKey(event) },
      make("div", { className: "igl-buttons" }, this.find, this.by, this.all, this.matches, this.undone, this.said),
      this.problem,
      make("div", { className: "igl-captions-main" }, this.list.element, this.tags),
    );
  }

  open() {
    const refused = this.captions.pictures.filter((picture) => picture.refused);
    if (refused.length) {
      const why = told(refused[0].refused ?? "");
      this.problem.textContent = t("{count} of {total} cannot be edited: {why}", { count: refused.length, total: this.captions.texts.length, why });
    }
    const leaving = () => this.save();
    const dialog = openDialog(t("Captions"), this.element, "igl-captions-dialog");
    dialog.addEventListener("close", () => {
      this.save();
      this.list.dispose();
      window.removeEventListener("pagehide", leaving);
    });
    window.addEventListener("pagehide", leaving);
    this.draw().then(() => this.list.element.querySelector("textarea")?.focus());
  }

  row(/** @type {number} */ number) {
    const { name, refused } = this.captions.pictures[number];
    const area = make("textarea", {
      value: this.captions.texts[number],
      disabled: Boolean(refused),
      title: refused ? told(refused) : "",
      "aria-label": name,
      "data-number": String(number),
      spellcheck: false,
      oninput: () => {
        this.captions.type(number, area.value);
        this.changed();
      },
    });
    const image = make("img", { src: this.page.url(`${this.route}/${number}/thumbnail`), alt: "", loading: "lazy", draggable: false });
    return make("div", { className: "igl-caption-row" }, image, make("div", {}, make("div", { className: "igl-about" }, name), area));
  }

  /** Everything anew: other captions than those that are typed in have changed. */
  draw() {
    this.shown = this.captions.having(this.tag);
    if (this.tag !== null && !this.shown.length) {
      this.tag = null;
      this.shown = this.captions.having(null);
    }
    this.drawTags();
    this.tellCount();
    this.tellSaved();
    return this.list.refresh();
  }

  drawTags() {
    const all = this.captions.tags();
    const buttons = () => /** @type {HTMLElement[]} */ ([...this.tags.querySelectorAll("button")]);
    const focused = buttons().findIndex((button) => button === document.activeElement);
    this.tags.replaceChildren(
      ...all.slice(0, MOST_TAGS).map(([tag, count]) =>
        make(
          "div",
          { className: "igl-tag" },
          make("button", {
            textContent: `${tag} ${count}`,
            title: t("Show only the pictures that have it"),
            "aria-pressed": String(tag === this.tag),
            onclick: () => this.filter(tag),
          }),
          make("button", {
            textContent: "✕",
            title: t("Remove '{tag}' from all captions", { tag }),
            "aria-label": t("Remove '{tag}' from all captions", { tag }),
            onclick: () => this.removeTag(tag),
          }),
        ),
      ),
    );
    if (focused >= 0) buttons()[Math.min(focused, buttons().length - 1)]?.focus();
  }

  filter(/** @type {string} */ tag) {
    this.tag = this.tag === tag ? null : tag;
    this.list.element.scrollTop = 0;
    this.draw();
  }

  removeTag(/** @type {string} */ tag) {
    this.captions.removeTag(tag);
    this.changed();
    this.draw();
  }

  replace() {
    this.captions.replace(this.find.value, this.by.value);
    this.changed();
    this.draw();
  }

  undo() {
    this.captions.undo();
    this.changed();
    return this.draw();
  }

  tellCount() {
    const { places, captions } = this.captions.count(this.find.value);
    this.matches.textContent = this.find.value ? t("{places} in {captions} captions", { places, captions }) : "";
    this.all.disabled = !places;
    this.undone.disabled = !this.captions.changes.length;
  }

  tellSaved() {
    const left = this.captions.unsaved().length;
    this.said.textContent = left ? t("{count} not saved yet", { count: left }) : this.afterwards;
  }

  changed() {
    this.tellCount();
    this.tellSaved();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.save(), QUIET);
  }

  /** One after the other: the server compares each edit with what it has written. */
  save() {
    clearTimeout(this.timer);
    return (this.saving = this.saving.then(() => this.send()));
  }

  async send() {
    const edits = this.captions.unsaved();
    if (!edits.length) return;
    const request = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(edits), keepalive: edits.length < 20 };
    const answer = await this.page.fetch(this.route, request).catch(() => null);
    const said = await answer?.json().catch(() => null);
    if (!answer?.ok) {
      this.problem.textContent = t("Not saved: {why}", { why: told(said?.error ?? t("the server does not answer")) });
      return;
    }
    const saved = new Set(said.saved);
    this.captions.written(edits.filter(({ number }) => saved.has(number)));
    this.problem.textContent = said.refused.map(({ error }) => t("Not saved: {why}", { why: told(error) })).join("\n");
    this.drawTags();
    this.tellSaved();
  }

  onKey(/** @type {KeyboardEvent} */ event) {
    const area = event.target instanceof HTMLTextAreaElement ? event.target : null;
    const key = event.key.toLowerCase();
    const command = event.ctrlKey || event.metaKey;
    if (command && key === "s") this.save();
    else if (command && key === "z" && !event.shiftKey && !(event.target instanceof HTMLInputElement)) this.undoFrom(area);
    else if (area && event.key === "ArrowDown" && area.selectionEnd === area.value.length) this.move(area, 1);
    else if (area && event.key === "ArrowUp" && area.selectionStart === 0) this.move(area, -1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** The rows are made anew, so the one that is typed in gets the cursor back. */
  async undoFrom(/** @type {HTMLTextAreaElement | null} */ area) {
    const number = area?.dataset.number;
    await this.undo();
    this.areaOf(Number(number))?.focus();
  }

  areaOf(/** @type {number} */ number) {
    return /** @type {HTMLTextAreaElement | null} */ (this.list.element.querySelector(`textarea[data-number="${number}"]`));
  }

  move(/** @type {HTMLTextAreaElement} */ area, /** @type {number} */ by) {
    const next = this.shown[this.shown.indexOf(Number(area.dataset.number)) + by];
    if (next === undefined) return;
    const there = this.areaOf(next);
    there?.focus();
    there?.scrollIntoView({ block: "nearest" });
  }
}
