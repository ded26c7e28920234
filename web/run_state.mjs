// A run as the page knows it: what the server has told, whole or bit by bit. Nothing here touches the page.

import { clock, gigabytes, smoothed } from "./loss_chart.mjs";
import { t, told, word } from "./words.mjs";

/** States in which a training goes on. */
const ALIVE = new Set(["running", "stopping", "pausing"]);

const ENDS = {
  finished: word("Finished."),
  stopped: word("Stopped; what was learned is saved. Run goes on from here."),
  paused: word("Paused. Run uses the LoRA so far; Continue goes on with the training."),
  cancelled: word("Cancelled; the last step is in the run's checkpoints. Run goes on from it."),
  failed: word("Failed; what was learned before is in the run's checkpoints."),
  "cut off": word("ComfyUI ended while this was training. Run goes on from the last checkpoint."),
};

export class RunState {
  /** The last status: what the server says of the present moment. @type {any} */
  status = {};
  /** @type {number[]} */
  steps = [];
  /** @type {(number | null)[]} */
  losses = [];
  /** @type {(number | null)[]} */
  rates = [];
  /** Step → held-out loss. @type {Map<number, number | null>} */
  heldOut = new Map();
  /** @type {number[]} */
  checkpoints = [];
  /** Steps that have preview pictures. @type {number[]} */
  previews = [];
  /** @type {string[]} */
  prompts = [];
  /** @type {string[]} */
  notices = [];
  /** The end that the user has asked for; messages of a moment before know nothing of it. */
  #wish = "";

  clear() {
    this.#wish = "";
    [this.steps, this.losses, this.rates] = [[], [], []];
    this.heldOut = new Map();
    [this.checkpoints, this.previews, this.prompts, this.notices] = [[], [], [], []];
  }

  get alive() {
    return ALIVE.has(this.status.state);
  }

  get empty() {
    return !this.status.state;
  }

  /** Everything that the server knows of the run. Messages that came meanwhile are added after it. */
  rebuild(/** @type {any} */ whole) {
    this.clear();
    const { points = [], held_out = [], checkpoints = [], previews = [], prompts = [], notices = [], ...status } = whole;
    this.status = status;
    this.prompts = prompts;
    this.#take({ points, held_out, checkpoints, previews, notices });
  }

  ask(/** @type {"stopping" | "pausing"} */ wish) {
    this.#wish = wish;
    this.status = { ...this.status, state: wish };
  }

  /** What was asked for did not reach the training. */
  refused() {
    if (this.#wish) this.status = { ...this.status, state: "running" };
    this.#wish = "";
  }

  /** A message of the run, in the order in which they were sent. */
  add(/** @type {any} */ message) {
    const { points = [], held_out = [], checkpoints = [], previews = [], notices = [], ...status } = message;
    if (points.length && points[0][0] <= (this.steps.at(-1) ?? 0)) this.#rewind(points[0][0]);
    if (this.#wish && status.state === "running") status.state = this.#wish;
    else this.#wish = "";
    this.status = { ...this.status, ...status };
    this.#take({ points, held_out, checkpoints, previews, notices });
  }

  /** A message that may say again what `rebuild` has taken already. */
  addAgain(/** @type {any} */ message) {
    const last = this.steps.at(-1) ?? 0;
    this.add({
      ...message,
      points: (message.points ?? []).filter(([step]) => step > last),
      notices: (message.notices ?? []).filter((notice) => !this.notices.includes(notice)),
    });
  }

  #take({ points, held_out, checkpoints, previews, notices }) {
    for (const [step, loss, rate] of points) {
      this.steps.push(step);
      this.losses.push(loss);
      this.rates.push(rate);
    }
    for (const [step, loss] of held_out) this.heldOut.set(step, loss);
    this.checkpoints = union(this.checkpoints, checkpoints);
    this.previews = union(this.previews, previews);
    this.notices.push(...notices);
  }

  /** The run went back to before this step, as it does when memory was short. */
  #rewind(/** @type {number} */ step) {
    const kept = this.steps.findIndex((s) => s >= step);
    for (const column of [this.steps, this.losses, this.rates]) column.length = kept;
    this.heldOut = new Map([...this.heldOut].filter(([s]) => s < step));
  }

  /**
   * Columns of the chart: step, loss, smoothed loss, held-out loss, learning rate. Steps that only have a
   * held-out loss have a row too.
   * @returns {[number[], ...(number | null)[][]]}
   */
  columns(/** @type {number} */ weight) {
    const steps = union(this.steps, [...this.heldOut.keys()]);
    const row = new Map(this.steps.map((step, i) => [step, i]));
    const smooth = smoothed(this.losses, weight);
    const of = (column) => steps.map((step) => (row.has(step) ? column[row.get(step) ?? 0] : null));
    const held = steps.map((step) => this.heldOut.get(step) ?? null);
    return [steps, of(this.losses), of(smooth), held, of(this.rates)];
  }

  /** One line on the present moment. */
  get headline() {
    const { state, label = "", done = 0, total = 0, step = 0, steps = 0 } = this.status;
    if (state === "stopping") return t("stopping… (step {step}/{steps})", { step, steps });
    if (state === "pausing") return t("pausing… (step {step}/{steps})", { step, steps });
    if (!this.alive) return `${t(ENDS[state] ?? state ?? "")} ${steps ? t("Step {step} of {steps}.", { step, steps }) : ""}`.trim();
    if (label === "steps") return t("step {step}", { step: `${step}/${steps}` });
    return total ? `${told(label)} ${Math.min(done + 1, total)}/${total}` : told(label);
  }

  /** What is said of time and memory while it trains. @returns {string} */
  get details() {
    if (!this.alive) return "";
    const { pace, elapsed = 0, left, measured, memory, memory_peak } = this.status;
    const parts = [];
    if (pace) parts.push(t("{pace} s/step", { pace: pace < 1 ? pace.toFixed(2) : pace.toFixed(1) }));
    parts.push(t("{time} elapsed", { time: clock(elapsed) }));
    if (typeof left === "number") parts.push(t(measured ? word("{time} left") : word("about {time} left"), { time: clock(left) }));
    if (memory) parts.push(t("memory {now}, peak {peak}", { now: gigabytes(memory), peak: gigabytes(memory_peak) }));
    return parts.join(" · ");
  }

  /** The losses, in a line. */
  get measures() {
    const parts = [];
    const loss = smoothed(this.losses).findLast((value) => value !== null);
    if (loss !== undefined) parts.push(t("loss {loss}", { loss: loss.toFixed(4) }));
    else if (this.losses.length) parts.push(t("loss is not a number"));
    const kept = [...this.heldOut].filter((entry) => entry[1] !== null);
    if (kept.length) {
      const best = kept.reduce((a, b) => (Number(b[1]) < Number(a[1]) ? b : a));
      const last = Number(kept[kept.length - 1][1]);
      const values = { last: last.toFixed(4), lowest: Number(best[1]).toFixed(4), step: best[0] };
      parts.push(t("held-out {last} (lowest {lowest} at {step})", values));
    }
    return parts.join(" · ");
  }
}

/** Ascending, each once. */
function union(/** @type {number[]} */ a, /** @type {number[]} */ b) {
  if (!b.length) return a;
  return [...new Set([...a, ...b])].sort((x, y) => x - y);
}
