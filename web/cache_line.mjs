// How much is kept of encoded pictures, and a button that deletes it.

import { ask, make } from "./elements.mjs";
import { bytes } from "./runs_data.mjs";

const ROUTE = "/in_graph_lora/cache";

export class CacheLine {
  /**
   * @param {import("./run_list.mjs").Page} page
   * @param {(lines: string[]) => void} say
   */
  constructor(page, say) {
    this.page = page;
    this.say = say;
    this.size = make("span", { className: "igl-total" });
    this.button = make("button", { textContent: "Clear cache…", title: "Delete what is kept of encoded pictures and captions", onclick: () => this.clear() });
    this.held = 0;
    this.element = make("div", { className: "igl-head igl-cache", hidden: true }, this.size, this.button);
  }

  async refresh() {
    const answer = await this.page.fetch(ROUTE).catch(() => null);
    if (!answer?.ok) return;
    const { entries, bytes: held } = await answer.json();
    this.held = held;
    this.size.textContent = `Encoded pictures and captions: ${bytes(held)}`;
    this.element.hidden = !entries;
  }

  async clear() {
    const question = `Delete what is kept of encoded pictures and captions (${bytes(this.held)})? No run is lost: the next training, and one that runs now, encodes again what it needs.`;
    if (!(await ask(question, "Clear cache"))) return;
    this.button.disabled = true;
    this.say(["The cache is being cleared…"]);
    const answer = await this.page.fetch(ROUTE, { method: "DELETE" }).catch(() => null);
    const told = (await answer?.json().catch(() => null)) ?? {};
    if (!answer?.ok) this.say([told.error ?? `The cache could not be cleared: the server ${answer ? `said ${answer.status}` : "does not answer"}.`]);
    else if (told.left) this.say([`${told.left} files of the cache could not be deleted; check who may write in output/in-graph-lora/cache.`]);
    else this.say([`The cache is cleared: ${bytes(told.bytes)} are free again.`]);
    this.button.disabled = false;
    await this.refresh();
  }
}
