// The list of runs: its curve, newest picture and state in a row each. The Runs panel and Load Run show it.

import { drawing, make } from "./elements.mjs";
import { about, curves, pictureOf, titleOf } from "./runs_data.mjs";
import { VirtualList } from "./virtual_list.mjs";
import { t } from "./words.mjs";

const PAGE = 50;
const CURVE = { width: 120, height: 40 };
const PATIENCE = 120; // ms that a row has to stay before its curve is fetched

/**
 * What a list of runs asks of the page.
 * @typedef {{
 *   fetch(route: string, options?: RequestInit): Promise<Response>,
 *   url(route: string): string,
 * }} Page
 * @typedef {import("./runs_data.mjs").Summary} Summary
 * @typedef {import("./runs_data.mjs").Detail} Detail
 */

/** The route of a run. */
export function routeOf(/** @type {string} */ id) {
  return `/in_graph_lora/runs/${id.split("/").map(encodeURIComponent).join("/")}`;
}

/** Details of runs, fetched once for each state of a run. */
export class Details {
  constructor(/** @type {Page} */ page) {
    this.page = page;
    /** @type {Map<string, {key: string, detail: Promise<Detail | null>}>} */
    this.kept = new Map();
  }

  /** @returns {Promise<Detail | null>} null when the run is not there */
  of(/** @type {Summary} */ run) {
    const key = `${run.state} ${run.step} ${run.bytes}`;
    const kept = this.kept.get(run.id);
    if (kept?.key === key) return kept.detail;
    const detail = fetchDetail(this.page, run.id);
    this.kept.set(run.id, { key, detail });
    return detail;
  }
}

/** @returns {Promise<Detail | null>} */
export async function fetchDetail(/** @type {Page} */ page, /** @type {string} */ id) {
  const answer = await page.fetch(routeOf(id)).catch(() => null);
  return answer?.ok ? answer.json() : null;
}

/**
 * @param {Page} page
 * @param {Details} details
 * @param {{withLora?: boolean, rowHeight: number, told?(answer: any): void, row?(run: Summary): Node[], open?(run: Summary): void}} wishes
 * told: gets each answer of the server. row: what a row has besides. open: its picture was clicked.
 */
export function runList(page, details, wishes) {
  return new VirtualList({
    rowHeight: wishes.rowHeight,
    pageSize: PAGE,
    async fetchPage(offset, limit) {
      const only = wishes.withLora ? "&with_lora=1" : "";
      const answer = await page.fetch(`/in_graph_lora/runs?offset=${offset}&limit=${limit}${only}`);
      if (!answer.ok) throw new Error(String(answer.status));
      const { runs, total, ...more } = await answer.json();
      wishes.told?.({ total, ...more });
      return { items: runs, total };
    },
    row: (/** @type {Summary} */ run) => rowOf(page, details, run, wishes),
  });
}

function rowOf(page, details, run, wishes) {
  const picture = run.picture
    ? make("img", { src: page.url(pictureOf(run.id, run.picture)), alt: t("newest preview"), loading: "lazy", draggable: false })
    : make("span", { className: "igl-no-picture", textContent: t("no preview") });
  const curve = make("div", { className: "igl-curve" });
  const row = make(
    "div",
    { className: "igl-run", "data-run": run.id },
    make("button", { className: "igl-thumb", title: wishes.withLora ? t("Choose") : t("Previews at full size"), onclick: () => wishes.open?.(run) }, picture),
    make(
      "div",
      { className: "igl-what" },
      make("div", { className: "igl-name", textContent: titleOf(run.id).name, title: run.id }),
      make("div", { className: "igl-about", textContent: about(run), title: about(run) }),
    ),
    curve,
    ...(wishes.row?.(run) ?? []),
  );
  setTimeout(async () => {
    const detail = row.isConnected ? await details.of(run) : null;
    if (detail) curve.replaceChildren(curveOf(detail));
  }, PATIENCE);
  return row;
}

/** The loss, smoothed, and the held-out loss as it was measured. */
export function curveOf(/** @type {Detail} */ detail, { width, height } = CURVE) {
  const { paths } = curves([detail.curve.loss, detail.curve.held_out], width, height, [0.8, 0]);
  return drawing(width, height, [
    { d: paths[0], colour: "var(--p-primary-color, #5b8def)" },
    { d: paths[1], colour: "var(--p-orange-400, #e8a33d)" },
  ]);
}
