// What is said in a corner of the page when a training has ended.

import { t, told, word } from "./words.mjs";

const ENDS = {
  finished: { severity: "success", summary: word("Training finished"), life: 8000 },
  stopped: { severity: "info", summary: word("Training stopped"), life: 8000 },
  paused: { severity: "info", summary: word("Training paused"), life: 8000 },
  cancelled: { severity: "warn", summary: word("Training cancelled"), life: 8000 },
  failed: { severity: "error", summary: word("Training failed") },
};

/** The toast for a message of a training; null while it goes on. */
export function toastOf(/** @type {any} */ { state, name = "", step = 0, steps = 0, message = "" }) {
  const end = ENDS[state];
  if (!end) return null;
  const reached = steps ? t("{name}: step {step} of {steps}", { name, step, steps }) : name;
  return { ...end, summary: t(end.summary), detail: message ? `${name}: ${told(message)}` : reached };
}
