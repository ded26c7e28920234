// The Runs panel: all runs, several curves over each other, what differs in their settings, and what can be done with
// a run.

import { CacheLine } from "./cache_line.mjs";
import { ask, drawing, keepEvents, make, openPictures } from "./elements.mjs";
import { JobLines } from "./job_lines.mjs";
import { Details, routeOf, runList } from "./run_list.mjs";
import { bytes, curves, differences, pictureOf, titleOf } from "./runs_data.mjs";
import { t, told } from "./words.mjs";

const COLOURS = ["#5b8def", "#e8a33d", "#4caf7d", "#d65f8f", "#9b7be0", "#4bb5c1"];
const OVERLAY = { width: 300, height: 120 };
const ROW_HEIGHT = 104;

/**
 * What the panel asks of the page besides.
 * @typedef {import("./run_list.mjs").Page & {
 *   useLora(run: import("./runs_data.mjs").Summary): Promise<string[]>,
 *   useSettings(detail: import("./runs_data.mjs").Detail): Promise<string[]>,
 * }} Actions
 * useLora, useSettings: put nodes on the canvas; the lines say what was done and what could not be.
 */

export class RunsPanel {
  constructor(/** @type {Actions} */ actions) {
    this.actions = actions;
    this.details = new Details(actions);
    /** @type {Map<string, import("./runs_data.mjs").Summary>} */
    this.chosen = new Map();
    this.total = make("span", { className: "igl-total" });
    this.said = make("div", { className: "igl-said", role: "status" });
    this.overlay = make("div", { className: "igl-overlay" });
    this.jobs = new JobLines(actions);
    this.cache = new CacheLine(actions, (lines) => this.say(lines));
    this.list = runList(actions, this.details, {
      rowHeight: ROW_HEIGHT,
      told: (answer) => this.tell(answer),
      row: (run) => [this.buttons(run)],
      open: (run) => this.openPreviews(run),
    });
    const again = make("button", { textContent: "⟳", title: t("Read the list again"), onclick: () => this.refresh() });
    this.element = keepEvents(
      make(
        "div",
        { className: "igl igl-runs" },
        make("div", { className: "igl-head" }, make("b", {}, t("Training runs")), this.total, again),
        this.said,
        this.jobs.element,
        this.overlay,
        this.list.element,
        this.cache.element,
      ),
    );
    this.refresh();
  }

  refresh() {
    return Promise.all([this.list.refresh(), this.jobs.refresh(), this.cache.refresh()]);
  }

  dispose() {
    this.list.dispose();
  }

  tell(/** @type {{total: number, bytes?: number}} */ answer) {
    if (answer.bytes !== undefined) this.total.textContent = t("{count} runs · {size} on disk", { count: answer.total, size: bytes(answer.bytes) });
    if (!answer.total) this.say([t("No run yet: Train LoRA makes one.")]);
  }

  say(/** @type {string[]} */ lines) {
    this.said.textContent = lines.join("\n");
  }

  buttons(run) {
    const box = make("input", {
      type: "checkbox",
      checked: this.chosen.has(run.id),
      onchange: () => this.choose(run, box.checked),
    });
    const button = (text, title, act) => make("button", { textContent: text, title, onclick: act });
    return make(
      "div",
      { className: "igl-buttons" },
      make("label", { title: t("Show the curve above, and what differs in the settings") }, box, t("compare")),
      run.state === "empty" ? null : button(t("Apply LoRA"), t("Put an Apply LoRA with this run's LoRA on the canvas"), () => this.act(this.actions.useLora(run))),
      button(t("Settings"), t("Put this run's settings into the selected Train LoRA, or into a new one"), () => this.settings(run)),
      button(t("Delete…"), t("Delete the run's folder"), () => this.remove(run)),
    );
  }

  async act(/** @type {Promise<string[]>} */ work) {
    this.say(await work.catch((error) => [String(error.message ?? error)]));
  }

  async settings(run) {
    const detail = await this.details.of(run);
    if (detail) await this.act(this.actions.useSettings(detail));
    else this.say([t("{run} is not there any more.", { run: run.id })]);
  }

  async remove(run) {
    const lora = run.lora ? ` ${t("{file} stays.", { file: `output/loras/${run.lora}` })}` : "";
    const asked = t("Delete the run {run} with its checkpoints and pictures ({size})?", { run: run.id, size: bytes(run.bytes) });
    const question = `${asked}${lora} ${t("This cannot be undone.")}`;
    if (!(await ask(question, t("Delete")))) return;
    const answer = await this.actions.fetch(routeOf(run.id), { method: "DELETE" });
    const said = answer.ok
      ? t("{run} is deleted.", { run: run.id })
      : told((await answer.json().catch(() => ({}))).error ?? t("the server said {status}", { status: answer.status }));
    this.say([said]);
    if (answer.ok) this.chosen.delete(run.id);
    await Promise.all([this.refresh(), this.drawOverlay()]);
  }

  async openPreviews(run) {
    const detail = await this.details.of(run);
    if (!detail) return;
    const steps = [{ step: 0, pictures: detail.before }, ...detail.checkpoints];
    const pictures = steps.flatMap(({ step, pictures: files }) =>
      files.map((file, i) => ({
        url: this.actions.url(pictureOf(run.id, file)),
        caption: `${step ? t("step {step}", { step }) : t("without LoRA")} · ${detail.prompts[i] ?? ""}`,
      })),
    );
    if (pictures.length) openPictures([pictures], 0, pictures.length - Math.max(1, detail.checkpoints.at(-1)?.pictures.length ?? 1));
  }

  choose(run, /** @type {boolean} */ yes) {
    if (yes) this.chosen.set(run.id, run);
    else this.chosen.delete(run.id);
    return this.drawOverlay();
  }

  async drawOverlay() {
    const found = await Promise.all([...this.chosen.values()].map((run) => this.details.of(run)));
    const runs = found.filter((run) => run !== null);
    this.overlay.replaceChildren();
    if (!runs.length) return;
    const { width, height } = OVERLAY;
    const { paths, low, high, last } = curves(runs.map((run) => run.curve.loss), width, height);
    const colour = (i) => COLOURS[i % COLOURS.length];
    const legend = runs.map((run, i) =>
      make("li", {}, make("i", { style: `background: ${colour(i)}` }), `${titleOf(run.id).name} ${titleOf(run.id).started}`),
    );
    this.overlay.append(
      make(
        "div",
        { className: "igl-chart" },
        make("span", { className: "igl-high", textContent: high.toPrecision(3) }),
        make("span", { className: "igl-low", textContent: low.toPrecision(3) }),
        make("span", { className: "igl-last", textContent: t("step {step}", { step: last }) }),
        drawing(width, height, paths.map((d, i) => ({ d, colour: colour(i) }))),
      ),
      make("ul", { className: "igl-legend" }, ...legend),
      runs.length > 1 ? this.table(runs, colour) : "",
    );
  }

  table(/** @type {import("./runs_data.mjs").Detail[]} */ runs, colour) {
    const rows = differences(runs.map((run) => run.config));
    if (!rows.length) return make("div", { className: "igl-about", textContent: t("Their settings are the same.") });
    const head = make("tr", {}, make("th", {}, t("setting")), ...runs.map((_, i) => make("th", {}, make("i", { style: `background: ${colour(i)}` }))));
    return make(
      "div",
      { className: "igl-table" },
      make("table", {}, head, ...rows.map(([name, values]) => make("tr", {}, make("td", {}, name), ...values.map((value) => make("td", { title: value }, value))))),
    );
  }
}
