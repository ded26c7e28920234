// Runs as data: what the list says of them, their curves, and how their settings differ. Nothing here touches the page.

import { smoothed } from "./loss_chart.mjs";
import { t, told, word } from "./words.mjs";

/**
 * @typedef {[number, number | null]} Point step and loss
 * @typedef {{id: string, state: string, step: number, steps: number | null, lora: string | null,
 *   picture: string | null, bytes: number}} Summary
 * @typedef {{step: number, held_out?: number | null, pictures: string[]}} Checkpoint
 * @typedef {Summary & {config: Record<string, any>, prompts: string[], before: string[],
 *   curve: {loss: Point[], held_out: Point[]}, checkpoints: Checkpoint[], best?: number | null, evaluated?: boolean,
 *   widgets: {nodes: Record<string, Record<string, any>>, left: string[]}}} Detail
 */

const SMOOTHING = 0.8;

/** 1536 → "1.5 KB" */
export function bytes(/** @type {number} */ count) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let power = 0;
  while (count >= 1000 && power < units.length - 1) [count, power] = [count / 1024, power + 1];
  return `${count >= 100 || power === 0 ? count.toFixed(0) : count.toFixed(1)} ${units[power]}`;
}

/** "toy/20261124-120000-2" → name "toy", started "2026-11-24 12:00 (2)". */
export function titleOf(/** @type {string} */ id) {
  const [name, run] = id.split("/");
  const match = /^(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)\d\d(?:-(\d+))?$/.exec(run);
  if (!match) return { name, started: run };
  const [, year, month, day, hour, minute, copy] = match;
  return { name, started: `${year}-${month}-${day} ${hour}:${minute}${copy ? ` (${copy})` : ""}` };
}

const STATES = {
  empty: word("no checkpoint"),
  training: word("is being trained"),
  finished: word("finished"),
  stopped: word("stopped"),
  waiting: word("waiting"),
  failed: word("failed"),
};

/** One line of a run. */
export function about(/** @type {Summary} */ run) {
  const steps = t("step {step}", { step: run.steps ? `${run.step}/${run.steps}` : run.step });
  const state = t(STATES[run.state] ?? run.state);
  return `${titleOf(run.id).started} · ${steps} · ${state} · ${bytes(run.bytes)}`;
}

/** @typedef {{name: string, state: string, step: number, steps: number, loss: number | null, error: string}} Job */

/** "Jobs: 1 failed, 2 waiting" */
export function jobsTitle(/** @type {Job[]} */ jobs) {
  const counts = ["training", "failed", "stopped", "waiting"].map((state) => [state, jobs.filter((job) => job.state === state).length]);
  const shown = counts.filter(([, count]) => count).map(([state, count]) => `${count} ${t(STATES[state])}`);
  return t("Jobs: {counts}", { counts: shown.join(", ") });
}

/** One line of a job, with the first line of what went wrong. */
export function jobLine(/** @type {Job} */ job) {
  const steps = job.steps ? [t("step {step}", { step: `${job.step}/${job.steps}` })] : [];
  const error = job.error ? [told(job.error).split("\n")[0]] : [];
  return [job.name, t(STATES[job.state] ?? job.state), ...steps, ...error].join(" · ");
}

/** Where ComfyUI keeps a picture. */
export function viewRoute({ filename, subfolder, type }) {
  return `/view?${new URLSearchParams({ filename, subfolder, type })}`;
}

/** A preview picture of a run. */
export function pictureOf(/** @type {string} */ id, /** @type {string} */ file) {
  return viewRoute({ filename: file, subfolder: `in-graph-lora/${id}/previews`, type: "output" });
}

/** The checkpoint that Evaluate LoRA or the judge found best, or else that with the lowest held-out loss; null when neither is known. */
export function bestOf(/** @type {Pick<Detail, "checkpoints" | "best">} */ { checkpoints, best }) {
  const judged = checkpoints.find((c) => c.step === best);
  if (judged) return judged;
  const measured = checkpoints.filter((c) => typeof c.held_out === "number");
  return measured.reduce((a, b) => (a === null || Number(b.held_out) < Number(a.held_out) ? b : a), /** @type {Checkpoint | null} */ (null));
}

/**
 * Path data of several curves on one scale, smoothed with SMOOTHING or a weight of their own; a null is a gap.
 * @param {Point[][]} series
 * @param {number} width
 * @param {number} height
 * @returns {{paths: string[], low: number, high: number, last: number}}
 */
export function curves(series, width, height, /** @type {number[]} */ weights = [], margin = 3) {
  const smooth = series.map((points, n) => {
    const means = smoothed(points.map(([, loss]) => loss), weights[n] ?? SMOOTHING);
    return points.map(([step], i) => /** @type {Point} */ ([step, means[i]]));
  });
  const all = smooth.flat();
  const losses = all.flatMap(([, loss]) => (loss === null ? [] : [loss]));
  const last = Math.max(1, ...all.map(([step]) => step));
  if (!losses.length) return { paths: series.map(() => ""), low: 0, high: 0, last };
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const x = (step) => ((width * (step - 1)) / Math.max(last - 1, 1)).toFixed(1);
  const y = (loss) => (height - margin - ((height - 2 * margin) * (loss - low)) / (high - low || 1)).toFixed(1);
  const paths = smooth.map((points) => {
    let pen = "M";
    return points
      .map(([step, loss]) => {
        if (loss === null) return (pen = "M"), "";
        const part = `${pen}${x(step)} ${y(loss)}`;
        pen = "L";
        return part;
      })
      .join("");
  });
  return { paths, low, high, last };
}

/** {"adapter.rank": 4, …} */
function flat(/** @type {Record<string, any>} */ settings, prefix = "") {
  /** @type {Record<string, string>} */
  const out = {};
  for (const [name, value] of Object.entries(settings)) {
    if (value && typeof value === "object" && !Array.isArray(value)) Object.assign(out, flat(value, `${prefix}${name}.`));
    else out[prefix + name] = Array.isArray(value) ? value.join(" | ") : String(value);
  }
  return out;
}

/**
 * The settings that are not the same in all configs: [name, value of each]; "" where one has none.
 * @param {Record<string, any>[]} configs
 * @returns {[string, string[]][]}
 */
export function differences(configs) {
  const all = configs.map((config) => flat(config));
  const names = [...new Set(all.flatMap(Object.keys))].sort();
  return names
    .map((name) => /** @type {[string, string[]]} */ ([name, all.map((config) => config[name] ?? "")]))
    .filter(([, values]) => new Set(values).size > 1);
}
