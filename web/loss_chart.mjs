// The progress of a run as data, and its picture as SVG paths. Nothing here touches the page.

/**
 * @typedef {{step: number, steps: number, loss: number | null, lr: number, seconds: number}} Progress
 * @typedef {{step: number, loss: number | null}} Point
 * @typedef {{step: number, held_out: number | null, best: boolean}} Measured
 * @typedef {{step: number, steps: number, lr: number, points: Point[], seconds: number[], heldOut: Point[]}} Run
 */

export const MAX_POINTS = 400;
const RECENT = 20; // events that the pace is averaged over

/** @returns {Run} */
export function newRun() {
  return { step: 0, steps: 0, lr: 0, points: [], seconds: [], heldOut: [] };
}

/**
 * The run after one more event. A step that does not go on from the last one begins a new run.
 * @param {Run} run
 * @param {Progress} event
 * @returns {Run}
 */
export function advanced(run, event) {
  const goesOn = event.step > run.step && (event.steps === run.steps || run.steps === 0);
  const before = goesOn ? run : newRun();
  const points = [...before.points, { step: event.step, loss: event.loss }];
  return {
    step: event.step,
    steps: event.steps,
    lr: event.lr,
    points: points.length > MAX_POINTS ? halved(points) : points,
    seconds: [...before.seconds, event.seconds].slice(-RECENT),
    heldOut: before.heldOut,
  };
}

/**
 * The run after a measurement of the held-out loss. The one of step 0 begins a new run.
 * @param {Run} run
 * @param {Measured} event
 * @returns {Run}
 */
export function measured(run, event) {
  const before = event.step === 0 ? newRun() : run;
  return { ...before, heldOut: [...before.heldOut, { step: event.step, loss: event.held_out }] };
}

/** Means of neighbours, so that a long run keeps its shape in few points. */
function halved(/** @type {Point[]} */ points) {
  const out = [];
  for (let i = 0; i < points.length; i += 2) {
    const pair = points.slice(i, i + 2);
    const losses = pair.flatMap((p) => (p.loss === null ? [] : [p.loss]));
    const loss = losses.length ? losses.reduce((a, b) => a + b) / losses.length : null;
    out.push({ step: pair[pair.length - 1].step, loss });
  }
  return out;
}

/** Exponential moving average, corrected for its start; a null stays a gap. */
export function smoothed(/** @type {(number | null)[]} */ losses, weight = 0.9) {
  let [mean, seen] = [0, 0];
  return losses.map((loss) => {
    if (loss === null) return null;
    mean = weight * mean + (1 - weight) * loss;
    return mean / (1 - weight ** ++seen);
  });
}

/**
 * Path data of the raw, the smoothed and the held-out loss in a box of width × height; x spans the whole run.
 * @param {Run} run
 * @param {number} width
 * @param {number} height
 */
export function paths(run, width, height, margin = 3) {
  const losses = run.points.map((p) => p.loss);
  const finite = [...losses, ...run.heldOut.map((p) => p.loss)].filter((loss) => loss !== null);
  const [low, high] = [Math.min(...finite), Math.max(...finite)];
  const x = (step) => (width * (step - 1)) / Math.max(run.steps - 1, 1);
  const y = (loss) => height - margin - ((height - 2 * margin) * (loss - low)) / (high - low || 1);
  const line = (points, values = points.map((p) => p.loss)) => {
    let pen = "M";
    return values
      .map((loss, i) => {
        if (loss === null) return (pen = "M"), "";
        const part = `${pen}${x(Math.max(points[i].step, 1)).toFixed(1)} ${y(loss).toFixed(1)}`;
        pen = "L";
        return part;
      })
      .join("");
  };
  return { raw: line(run.points), smooth: line(run.points, smoothed(losses)), heldOut: line(run.heldOut) };
}

/** 75 → "1:15", 3675 → "1:01:15". */
export function clock(/** @type {number} */ seconds) {
  const s = Math.round(seconds);
  const two = (/** @type {number} */ n) => String(n).padStart(2, "0");
  const [hours, minutes] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(s % 60)}` : `${minutes}:${two(s % 60)}`;
}

/** @param {Run} run */
export function summary(run) {
  const loss = smoothed(run.points.map((p) => p.loss)).findLast((value) => value !== null);
  if (!run.points.length) return `held-out loss ${run.heldOut.at(-1)?.loss?.toFixed(4) ?? "is not a number"}`;
  const pace = run.seconds.reduce((a, b) => a + b, 0) / run.seconds.length;
  const parts = [
    `step ${run.step}/${run.steps}`,
    loss === undefined ? "loss is not a number" : `loss ${loss.toFixed(4)}`,
    `${pace.toFixed(2)} s/step`,
  ];
  const kept = run.heldOut.flatMap(({ step, loss }) => (loss === null ? [] : [{ step, loss }]));
  const last = kept.at(-1);
  if (last) {
    const best = kept.reduce((a, b) => (b.loss < a.loss ? b : a));
    parts.push(`held-out ${last.loss.toFixed(4)} (lowest ${best.loss.toFixed(4)} at ${best.step})`);
  }
  if (run.step < run.steps) parts.push(`${clock(pace * (run.steps - run.step))} left`);
  return parts.join(" · ");
}
