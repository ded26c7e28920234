// What Train LoRA shows below its widgets: where the run is, its chart, its pictures, and what it has said.

import { LossChart } from "./chart.mjs";
import { textBox } from "./panel.mjs";
import { Previews } from "./previews.mjs";
import { t, told } from "./words.mjs";

const HEIGHT = 330;
const WITH_PREVIEWS = 540;
const ONLY_TEXT = 80;

/** @typedef {{stop(): void, pause(): void, resume(): void, picture(step: number, prompt: number): string}} Actions */

export class RunPanel {
  constructor(/** @type {Actions} */ actions) {
    this.element = document.createElement("div");
    this.element.className = "in-graph-lora-run";
    this.element.style.cssText =
      "display: flex; flex-direction: column; gap: 4px; height: 100%; overflow: hidden; box-sizing: border-box;" +
      " font: 11px/1.4 sans-serif; color: var(--input-text, #ddd);";
    this.bar = this.element.appendChild(document.createElement("progress"));
    this.bar.max = 1;
    this.bar.style.cssText = "width: 100%; height: 8px; flex: none; accent-color: var(--p-primary-color, #5b8def);";
    const head = this.element.appendChild(document.createElement("div"));
    head.style.cssText = "display: flex; gap: 8px; flex: none; align-items: start; min-height: 34px;";
    const words = head.appendChild(document.createElement("div"));
    words.style.cssText = "flex: 1; min-width: 0; user-select: text;";
    this.headline = words.appendChild(document.createElement("div"));
    this.headline.style.fontWeight = "bold";
    this.details = words.appendChild(document.createElement("div"));
    this.details.style.opacity = "0.8";
    this.stop = head.appendChild(button(actions.stop));
    this.pause = head.appendChild(button(actions.pause));
    this.resume = head.appendChild(button(actions.resume));
    this.chart = new LossChart();
    this.measures = document.createElement("div");
    this.measures.style.cssText = "flex: none; user-select: text;";
    this.previews = new Previews(actions.picture);
    this.text = textBox(90);
    this.text.style.flex = "none";
    this.element.append(this.measures, this.chart.element, this.previews.element, this.text);
  }

  /** Pixels that everything shown needs. */
  get height() {
    if (this.chart.element.style.display === "none") return ONLY_TEXT;
    return this.previews.shown ? WITH_PREVIEWS : HEIGHT;
  }

  show(/** @type {import("./run_state.mjs").RunState} */ run, /** @type {string[]} */ results = []) {
    const { state, fraction = 0, plan = "" } = run.status;
    const training = state === "running";
    this.bar.style.display = run.alive ? "block" : "none";
    this.bar.value = fraction;
    this.bar.title = t("{percent} % of the whole run", { percent: Math.floor(100 * fraction) });
    this.headline.textContent = run.headline;
    this.details.textContent = run.details;
    this.stop.style.display = this.pause.style.display = run.alive ? "block" : "none";
    this.stop.disabled = this.pause.disabled = !training;
    this.stop.textContent = state === "stopping" ? t("stopping…") : t("Stop and keep");
    this.pause.textContent = state === "pausing" ? t("pausing…") : t("Pause");
    this.resume.textContent = t("Continue");
    this.stop.title = t("End the training after this step, and run the nodes behind it with what there is.");
    this.pause.title = t("End here for now: other prompts can be run, with the LoRA so far.");
    this.resume.title = t("Queue the workflow again and go on with the training from its step.");
    this.resume.style.display = state === "paused" ? "block" : "none";
    const curve = run.status.steps > 0; // also before the first loss, so that nothing jumps when it comes
    this.chart.element.style.display = curve ? "flex" : "none";
    if (curve) this.chart.show(run);
    this.measures.textContent = run.measures;
    this.previews.show(run);
    const lines = told([...results, ...(plan ? [plan] : []), ...run.notices].join("\n"));
    if (this.text.textContent !== lines) this.text.textContent = lines; // else a selection would be lost
    this.text.style.display = lines ? "block" : "none";
  }
}

function button(/** @type {() => void} */ onclick) {
  const element = document.createElement("button");
  element.onclick = onclick;
  element.style.cssText =
    "display: none; flex: none; font: 11px sans-serif; cursor: pointer; white-space: nowrap; padding: 2px 8px;" +
    " border: 1px solid var(--border-color, #555); border-radius: 4px; color: var(--input-text, #ddd);" +
    " background: var(--comfy-input-bg, #333);";
  return element;
}
