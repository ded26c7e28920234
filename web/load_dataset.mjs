// Load Dataset: folders to choose from, and what the folder holds: every bucket, every problem.

import { keepEvents, make, openDialog } from "./elements.mjs";
import { fillMarkdown, textBox } from "./panel.mjs";

const BEFORE = 34; // only the button
const AFTER = 210;
const RECENT = "in_graph_lora.folders";
const MOST_RECENT = 8;

const SAYS = {
  choose: "Choose a folder…",
  title: "Choose a folder",
  linked: "The folder comes through a connection.",
  looking: "Looking…",
  filter: "Filter",
  recent: "Recent",
  input: "In ComfyUI's input folder",
  more: "There are more folders; type the path of another.",
  noneOfName: "No folder of this name.",
  none: "The input folder has no folders yet: put a folder with pictures there, or type a path.",
  failed: (/** @type {string} */ why) => `The folders cannot be listed: ${why}`,
  answered: (/** @type {number} */ status) => `the server answered ${status}`,
  pictures: (/** @type {number} */ count) => `${count} picture${count === 1 ? "" : "s"}`,
};

/** @typedef {{name: string, pictures: number, changed: number}} Folder */

/** Folders that this browser has loaded, the last first. @returns {string[]} */
function recent() {
  try {
    const kept = JSON.parse(localStorage.getItem(RECENT) ?? "[]");
    return Array.isArray(kept) ? kept.filter((name) => typeof name === "string") : [];
  } catch {
    return [];
  }
}

function remember(/** @type {string} */ folder) {
  try {
    const kept = [folder, ...recent().filter((other) => other !== folder)].slice(0, MOST_RECENT);
    localStorage.setItem(RECENT, JSON.stringify(kept));
  } catch {
    // A browser that keeps nothing still trains.
  }
}

/** @returns {import("./view.mjs").View} */
export function loadDatasetView(/** @type {import("./view.mjs").Host} */ host) {
  const said = make("span", { className: "igl-about" });
  const choose = make("button", { textContent: SAYS.choose, onclick: () => openFolders() });
  const panel = make("div", { className: "igl igl-load-dataset" }, make("div", { className: "igl-buttons" }, choose, said));
  const element = keepEvents(panel);
  /** @type {HTMLElement | null} */
  let box = null;

  /** @returns {Promise<{folders: Folder[], more: boolean}>} */
  async function fetchFolders() {
    const answer = await host.fetch("/in_graph_lora/folders");
    if (!answer.ok) throw new Error(SAYS.answered(answer.status));
    return answer.json();
  }

  async function openFolders() {
    if (host.value("folder") === undefined) {
      said.textContent = SAYS.linked;
      return;
    }
    const list = make("div", { className: "igl-folders" }, SAYS.looking);
    const filter = make("input", { type: "search", placeholder: SAYS.filter, "aria-label": SAYS.filter, oninput: () => draw() });
    const dialog = openDialog(SAYS.title, make("div", {}, filter, list), "igl-choose-folder");
    filter.focus();
    /** @type {Folder[]} */
    let folders = [];
    let note = "";

    function take(/** @type {string} */ name) {
      dialog.close();
      host.set("folder", name);
      said.textContent = "";
    }

    function row(/** @type {string} */ name, /** @type {string} */ about) {
      return make(
        "button",
        { className: "igl-folder", "data-folder": name, title: name, onclick: () => take(name) },
        make("span", {}, name),
        make("small", {}, about),
      );
    }

    function group(/** @type {string} */ title, /** @type {any[]} */ rows) {
      return rows.length ? [make("div", { className: "igl-group" }, title), ...rows] : [];
    }

    function draw() {
      const wanted = filter.value.trim().toLowerCase();
      const fits = (/** @type {string} */ name) => name.toLowerCase().includes(wanted);
      const known = new Map(folders.map((folder) => [folder.name, folder]));
      const about = (/** @type {string} */ name) => (known.has(name) ? SAYS.pictures(known.get(name)?.pictures ?? 0) : "");
      const before = recent().filter(fits).map((name) => row(name, about(name)));
      const found = folders.filter((folder) => fits(folder.name)).map((folder) => row(folder.name, SAYS.pictures(folder.pictures)));
      list.replaceChildren(...group(SAYS.recent, before), ...group(SAYS.input, found));
      if (note) list.append(make("div", { className: "igl-about" }, note));
      else if (!found.length) list.append(make("div", { className: "igl-about" }, wanted ? SAYS.noneOfName : SAYS.none));
    }

    try {
      const answer = await fetchFolders();
      folders = answer.folders;
      note = answer.more ? SAYS.more : "";
    } catch (error) {
      note = SAYS.failed(/** @type {Error} */ (error).message);
    }
    draw();
  }

  host.attach(element, BEFORE);
  return {
    executed(output) {
      if (!output?.text) return;
      if (!box) {
        panel.append((box = textBox(AFTER * 4)));
        host.attach(element, AFTER);
      }
      fillMarkdown(box, output.text.join("\n"));
      const folder = host.value("folder");
      if (typeof folder === "string" && folder.trim()) remember(folder.trim());
    },
  };
}
