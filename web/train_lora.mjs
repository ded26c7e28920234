// Train LoRA: the run that goes on, and its result.

import { advanced, measured, newRun } from "./loss_chart.mjs";
import { results, RunPanel } from "./panel.mjs";

const ENDED = {
  interrupted: "Stopped. What was trained is in the run's checkpoints folder.",
  failed: "Failed. What was trained before is in the run's checkpoints folder.",
};

/** The run after one event of either kind. */
function after(run, event) {
  return "held_out" in event ? measured(run, event) : advanced(run, event);
}

/** @returns {import("./view.mjs").View} */
export function trainView(/** @type {import("./view.mjs").Host} */ host) {
  /** @type {RunPanel | null} */
  let shown = null;
  /** @type {import("./loss_chart.mjs").Run | null} */
  let run = null;
  let running = false;

  const panel = () => {
    if (!shown) host.attach((shown = new RunPanel()).element, 130);
    return shown;
  };

  /** What the training sent before this page was opened. */
  async function earlier(id) {
    const answer = await host.fetch(`/in_graph_lora/progress/${encodeURIComponent(id)}`);
    return answer.ok ? (await answer.json()).progress : [];
  }

  async function catchUp(id, event) {
    const [first] = run?.points ?? [];
    const missed = (await earlier(id).catch(() => [])).filter((e) => e.step <= event.step);
    // The run may have gone on meanwhile, or another may have begun.
    if (!missed.length || !run || run.points[0] !== first) return;
    const since = run.points.filter((p) => p.step > event.step);
    const before = missed.reduce(after, newRun());
    run = { ...run, points: [...before.points, ...since], heldOut: before.heldOut };
    panel().show(run, [], running);
  }

  return {
    progress(event) {
      const opened = run === null && event.step > 1;
      run = after(run ?? newRun(), event);
      if (opened) catchUp(event.node_id, event);
      running = true;
      panel().show(run, [], true);
      panel().stop.onclick = () =>
        host.fetch(`/in_graph_lora/stop/${encodeURIComponent(event.node_id)}`, { method: "POST" });
    },
    ended(how) {
      if (!running) return;
      running = false;
      panel().show(run, [ENDED[how]]);
    },
    executed(output) {
      const finished = output?.run?.[0];
      if (!finished) return;
      running = false;
      panel().show(run, results(finished));
    },
  };
}
