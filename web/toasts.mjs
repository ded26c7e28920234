// What is said in a corner of the page when a training has ended.

const ENDS = {
  finished: { severity: "success", summary: "Training finished", life: 8000 },
  stopped: { severity: "info", summary: "Training stopped", life: 8000 },
  paused: { severity: "info", summary: "Training paused", life: 8000 },
  cancelled: { severity: "warn", summary: "Training cancelled", life: 8000 },
  failed: { severity: "error", summary: "Training failed" },
};

/** The toast for a message of a training; null while it goes on. */
export function toastOf(/** @type {any} */ { state, name = "", step = 0, steps = 0, message = "" }) {
  const end = ENDS[state];
  if (!end) return null;
  const reached = steps ? `${name}: step ${step} of ${steps}` : name;
  return { ...end, detail: message ? `${name}: ${message}` : reached };
}
