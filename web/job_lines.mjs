// The jobs that are not finished: waiting, being trained by a queue, stopped or failed. Finished ones are runs.

import { make } from "./elements.mjs";
import { jobLine, jobsTitle } from "./runs_data.mjs";

const ROUTE = "/in_graph_lora/jobs";

export class JobLines {
  constructor(/** @type {import("./run_list.mjs").Page} */ page) {
    this.page = page;
    this.title = make("summary", {});
    this.list = make("ul", {});
    this.element = make("details", { className: "igl-jobs", hidden: true }, this.title, this.list);
  }

  async refresh() {
    const answer = await this.page.fetch(ROUTE).catch(() => null);
    if (!answer?.ok) return;
    /** @type {import("./runs_data.mjs").Job[]} */
    const jobs = (await answer.json()).jobs;
    const open = jobs.filter((job) => job.state !== "finished");
    this.element.hidden = !open.length;
    this.title.textContent = jobsTitle(open);
    this.list.replaceChildren(...open.map((job) => make("li", { textContent: jobLine(job), title: job.error })));
  }
}
