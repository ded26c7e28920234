// A long list of which only what is seen is in the page, and only what was seen is fetched.

import { make } from "./elements.mjs";

const BEYOND = 3; // rows above and below what is seen

/** @template T */
export class VirtualList {
  /**
   * @param {{
   *   rowHeight: number,
   *   pageSize: number,
   *   fetchPage(offset: number, limit: number): Promise<{items: T[], total: number}>,
   *   row(item: T): HTMLElement,
   * }} source
   */
  constructor(source) {
    this.source = source;
    /** @type {Map<number, {items: T[], total: number} | null>} page → its answer, null while it is under way */
    this.pages = new Map();
    /** @type {Map<number, HTMLElement>} */
    this.rows = new Map();
    this.total = 0;
    this.version = 0;
    this.inner = make("div", { className: "igl-list-inner" });
    this.element = make("div", { className: "igl-list", onscroll: () => this.draw() }, this.inner);
    this.watcher = new ResizeObserver(() => this.draw());
    this.watcher.observe(this.element);
  }

  /** Ask for everything that is seen again. */
  async refresh() {
    this.version += 1;
    this.pages.clear();
    await this.load(Math.floor(this.first() / this.source.pageSize));
  }

  /** Draw the rows again with what is known. */
  redraw() {
    this.inner.replaceChildren();
    this.rows.clear();
    this.draw();
  }

  dispose() {
    this.watcher.disconnect();
  }

  first() {
    return Math.max(0, Math.floor(this.element.scrollTop / this.source.rowHeight) - BEYOND);
  }

  async load(/** @type {number} */ page) {
    const version = this.version;
    this.pages.set(page, null);
    const { pageSize } = this.source;
    const answer = await this.source.fetchPage(page * pageSize, pageSize).catch(() => null);
    if (version !== this.version) return; // it was asked for again
    if (!answer) {
      this.pages.delete(page);
      return;
    }
    this.pages.set(page, answer);
    this.total = answer.total;
    this.inner.style.height = `${this.total * this.source.rowHeight}px`;
    this.redraw();
  }

  draw() {
    const { rowHeight, pageSize } = this.source;
    const first = this.first();
    const seen = Math.ceil(this.element.clientHeight / rowHeight) + 2 * BEYOND;
    const last = Math.min(this.total, first + seen) - 1;
    for (const [i, row] of this.rows) {
      if (i < first || i > last) {
        row.remove();
        this.rows.delete(i);
      }
    }
    for (let i = first; i <= last; i++) {
      const page = Math.floor(i / pageSize);
      if (!this.pages.has(page)) this.load(page);
      const item = this.pages.get(page)?.items[i - page * pageSize];
      if (item === undefined || this.rows.has(i)) continue;
      const row = this.source.row(item);
      row.style.top = `${i * rowHeight}px`;
      row.style.height = `${rowHeight}px`;
      this.rows.set(i, row);
      this.inner.append(row);
    }
  }
}
