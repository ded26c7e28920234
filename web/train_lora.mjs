// Train LoRA: the run that goes on, and its result. It is bound to the workflow and the node, and rebuilt from
// the server when the page is opened or comes back to the workflow.

import { RunPanel } from "./run_panel.mjs";
import { RunState } from "./run_state.mjs";
import { t } from "./words.mjs";

/** The lines that say where the results of a finished run are. */
function results(/** @type {{lora_path: string, run_dir: string}} */ run) {
  return [`LoRA: ${run.lora_path}`, t("Run: {run}", { run: run.run_dir })];
}

/** @returns {import("./view.mjs").View} */
export function trainView(/** @type {import("./view.mjs").Host} */ host) {
  const run = new RunState();
  /** @type {RunPanel | null} */
  let panel = null;
  /** @type {string[]} */
  let ended = [];
  /** The run and prompt that `run` was rebuilt for. */
  let bound = "";
  /** Messages that came while the server was asked. @type {any[] | null} */
  let waiting = null;

  const query = (values) => new URLSearchParams(values).toString();
  const post = (route, values) => host.fetch(`/in_graph_lora/${route}?${query(values)}`, { method: "POST" });
  const end = (wish, state) => async () => {
    run.ask(state);
    show();
    const prompt = run.status.prompt_id ?? "";
    const answer = await post(`${wish}/${encodeURIComponent(host.id())}`, { prompt }).catch(() => null);
    if (answer?.ok) return;
    run.refused();
    show();
  };
  const actions = {
    stop: end("stop", "stopping"),
    pause: end("pause", "pausing"),
    resume: async () => {
      await post("continue", { run: run.status.run });
      await host.queue();
    },
    picture: (step, prompt) => host.url(`/in_graph_lora/preview?${query({ run: run.status.run, step, prompt })}`),
  };

  function show() {
    panel ??= new RunPanel(actions);
    panel.show(run, ended);
    host.attach(panel.element, panel.height);
  }

  /** What the server knows of the run that this node shows. */
  async function ask() {
    const place = { workflow: host.workflow(), node: host.id(), prompt: run.status.prompt_id ?? "" };
    const answer = await host.fetch(`/in_graph_lora/training?${query(place)}`);
    const whole = answer.ok ? await answer.json() : {};
    // A copy of this workflow has the same id, also a second subject in the same example.
    const name = String(host.value("name") ?? whole.name).trim();
    const ours = name === whole.name && host.inFront(whole.prompt_id ?? "", whole.workflow ?? place.workflow);
    return ours ? whole : {};
  }

  async function rebuild() {
    if (waiting) return;
    waiting = [];
    const whole = await ask().catch(() => ({}));
    const since = waiting;
    waiting = null;
    if (whole.state) {
      run.rebuild(whole);
      if (whole.lora) ended = results({ lora_path: whole.lora, run_dir: whole.run });
      bound = `${whole.prompt_id ?? ""} ${whole.run}`;
    }
    since.forEach((message) => run.addAgain(message));
    if (whole.state || since.length) show();
  }

  return {
    created: rebuild,
    progress(message) {
      if (waiting) {
        waiting.push(message);
        return;
      }
      const now = `${message.prompt_id} ${message.run}`;
      if (now !== bound) {
        bound = now;
        ended = [];
        run.clear();
        if (message.run) {
          waiting = null;
          run.status = { prompt_id: message.prompt_id, state: message.state };
          rebuild();
          /** @type {any} */ (waiting)?.push(message);
          return;
        }
      }
      run.add(message);
      if (message.previews?.length && !run.prompts.length) rebuild();
      show();
    },
    executed(output) {
      const finished = output?.run?.[0];
      const said = finished ? results(finished) : output?.text; // text: a job was written
      if (!said) return;
      ended = said;
      if (finished && run.empty) rebuild().then(show); // ComfyUI has kept the result of an earlier run
      else show();
    },
  };
}
