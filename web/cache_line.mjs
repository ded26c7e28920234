// How much is kept of encoded pictures, and a button that deletes it.

import { ask, make } from "./elements.mjs";
import { bytes } from "./runs_data.mjs";
import { t } from "./words.mjs";

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
    this.button = make("button", {
      textContent: t("Clear cache…"),
      title: t("Delete what is kept of encoded pictures and captions"),
      onclick: () => this.clear(),
    });
    this.held = 0;
    this.element = make("div", { className: "igl-head igl-cache", hidden: true }, this.size, this.button);
  }

  async refresh() {
    const answer = await this.page.fetch(ROUTE).catch(() => null);
    if (!answer?.ok) return;
    const { entries, bytes: held } = await answer.json();
    this.held = held;
    this.size.textContent = t("Encoded pictures and captions: {size}", { size: bytes(held) });
    this.element.hidden = !entries;
  }

  async clear() {
    const question = t(
      "Delete what is kept of encoded pictures and captions ({size})? No run is lost: the next training, and one that runs now, encodes again what it needs.",
      { size: bytes(this.held) },
    );
    if (!(await ask(question, t("Clear cache")))) return;
    this.button.disabled = true;
    this.say([t("The cache is being cleared…")]);
    const answer = await this.page.fetch(ROUTE, { method: "DELETE" }).catch(() => null);
    const told = (await answer?.json().catch(() => null)) ?? {};
    this.say([told.error ?? this.said(answer, told)]);
    this.button.disabled = false;
    await this.refresh();
  }

  /** What became of it. */
  said(/** @type {Response | null} */ answer, /** @type {any} */ told) {
    if (!answer) return t("The cache could not be cleared: the server does not answer.");
    if (!answer.ok) return t("The cache could not be cleared: the server said {status}.", { status: answer.status });
    if (told.left) {
      return t(
        "{count} files of the cache could not be deleted; check who may write in output/in-graph-lora/cache.",
        { count: told.left },
      );
    }
    return t("The cache is cleared: {size} are free again.", { size: bytes(told.bytes) });
  }
}
