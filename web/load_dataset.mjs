// Load Dataset: folders to choose from, what the folder holds (every bucket, every problem), captions to edit.

import { captionsButton } from "./captions_view.mjs";
import { keepEvents, make, openDialog } from "./elements.mjs";
import { fillMarkdown, textBox } from "./panel.mjs";
import { t } from "./words.mjs";

const BEFORE = 34; // only the button
const AFTER = 210;
const RECENT = "in_graph_lora.folders";
const MOST_RECENT = 8;

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

function pictures(/** @type {number} */ count) {
  return count === 1 ? t("1 picture") : t("{count} pictures", { count });
}

/** @returns {import("./view.mjs").View} */
export function loadDatasetView(/** @type {import("./view.mjs").Host} */ host) {
  const { button: edit, said, take: takeCaptions } = captionsButton(host);
  const choose = make("button", { textContent: t("Choose a folder…"), onclick: () => openFolders() });
  const buttons = make("div", { className: "igl-buttons" }, choose, edit, said);
  const panel = make("div", { className: "igl igl-load-dataset" }, buttons);
  const element = keepEvents(panel);
  /** @type {HTMLElement | null} */
  let box = null;

  /** @returns {Promise<{folders: Folder[], more: boolean}>} */
  async function fetchFolders() {
    const answer = await host.fetch("/in_graph_lora/folders");
    if (!answer.ok) throw new Error(t("the server answered {status}", { status: answer.status }));
    return answer.json();
  }

  async function openFolders() {
    if (host.value("folder") === undefined) {
      said.textContent = t("The folder comes through a connection.");
      return;
    }
    const list = make("div", { className: "igl-folders" }, t("Looking…"));
    const filter = make("input", { type: "search", placeholder: t("Filter"), "aria-label": t("Filter"), oninput: () => draw() });
    const dialog = openDialog(t("Choose a folder"), make("div", {}, filter, list), "igl-choose-folder");
    filter.focus();
    /** @type {Folder[]} */
    let folders = [];
    let note = "";

    function chosen(/** @type {string} */ name) {
      dialog.close();
      host.set("folder", name);
      said.textContent = "";
    }

    function row(/** @type {string} */ name, /** @type {string} */ about) {
      return make(
        "button",
        { className: "igl-folder", "data-folder": name, title: name, onclick: () => chosen(name) },
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
      const about = (/** @type {string} */ name) => (known.has(name) ? pictures(known.get(name)?.pictures ?? 0) : "");
      const before = recent().filter(fits).map((name) => row(name, about(name)));
      const found = folders.filter((folder) => fits(folder.name)).map((folder) => row(folder.name, pictures(folder.pictures)));
      list.replaceChildren(...group(t("Recent"), before), ...group(t("In ComfyUI's input folder"), found));
      if (note) list.append(make("div", { className: "igl-about" }, note));
      else if (!found.length) list.append(make("div", { className: "igl-about" }, wanted ? t("No folder of this name.") : t("The input folder has no folders yet: put a folder with pictures there, or type a path.")));
    }

    try {
      const answer = await fetchFolders();
      folders = answer.folders;
      note = answer.more ? t("There are more folders; type the path of another.") : "";
    } catch (error) {
      note = t("The folders cannot be listed: {why}", { why: /** @type {Error} */ (error).message });
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
      takeCaptions(output);
      fillMarkdown(box, output.text.join("\n"));
      const folder = host.value("folder");
      if (typeof folder === "string" && folder.trim()) remember(folder.trim());
    },
  };
}
