// Captions while they are edited: changes, undo, find and replace, tags. Nothing here touches the page.

const JOINED = 1500; // ms between key presses that are undone together

/** @typedef {{name: string, caption: string, refused?: string}} Picture */

/** "a dog,  grass" → ["a dog", "grass"] */
export function tagsOf(/** @type {string} */ caption) {
  return caption.split(",").map((tag) => tag.trim()).filter(Boolean);
}

export class Captions {
  constructor(/** @type {Picture[]} */ pictures) {
    this.pictures = pictures;
    this.texts = pictures.map((picture) => picture.caption);
    this.saved = [...this.texts];
    /** What each change has replaced. @type {{at: number, before: Map<number, string>}[]} */
    this.changes = [];
  }

  editable(/** @type {number} */ number) {
    return !this.pictures[number].refused;
  }

  /** The user types in one caption: key presses in a row are one change. */
  type(/** @type {number} */ number, /** @type {string} */ text, now = Date.now()) {
    if (!this.editable(number) || this.texts[number] === text) return;
    const last = this.changes.at(-1);
    const same = last && last.before.size === 1 && last.before.has(number) && now - last.at < JOINED;
    if (same) last.at = now;
    else this.changes.push({ at: now, before: new Map([[number, this.texts[number]]]) });
    this.texts[number] = text;
  }

  /** Change many captions at once, as one change; returns how many. */
  change(/** @type {(text: string) => string} */ by) {
    const before = new Map();
    this.texts.forEach((text, number) => {
      const changed = this.editable(number) ? by(text) : text;
      if (changed === text) return;
      before.set(number, text);
      this.texts[number] = changed;
    });
    if (before.size) this.changes.push({ at: 0, before });
    return before.size;
  }

  /** Take the last change back; returns the pictures that it was of. */
  undo() {
    const last = this.changes.pop();
    for (const [number, text] of last?.before ?? []) this.texts[number] = text;
    return [...(last?.before.keys() ?? [])];
  }

  /** How often a text stands in captions that can be edited, and in how many. */
  count(/** @type {string} */ find) {
    if (!find) return { places: 0, captions: 0 };
    const each = this.texts.map((text, number) => (this.editable(number) ? text.split(find).length - 1 : 0));
    return { places: each.reduce((a, b) => a + b, 0), captions: each.filter(Boolean).length };
  }

  replace(/** @type {string} */ find, /** @type {string} */ by) {
    return find ? this.change((text) => text.replaceAll(find, () => by)) : 0;
  }

  /** Tag → in how many captions it stands, the most frequent first. @returns {[string, number][]} */
  tags() {
    const counts = new Map();
    for (const text of this.texts) for (const tag of new Set(tagsOf(text))) counts.set(tag, (counts.get(tag) ?? 0) + 1);
    return [...counts].sort(([a, n], [b, m]) => m - n || a.localeCompare(b));
  }

  removeTag(/** @type {string} */ tag) {
    return this.change((text) => {
      const tags = tagsOf(text);
      return tags.includes(tag) ? tags.filter((other) => other !== tag).join(", ") : text;
    });
  }

  /** The pictures whose caption has the tag; all without one. */
  having(/** @type {string | null} */ tag) {
    const all = this.texts.map((_, number) => number);
    return tag === null ? all : all.filter((number) => tagsOf(this.texts[number]).includes(tag));
  }

  /** What is not on disk yet, as the server takes it. */
  unsaved() {
    return this.texts.flatMap((caption, number) =>
      caption === this.saved[number] ? [] : [{ number, was: this.saved[number], caption }],
    );
  }

  /** The server has written these edits, stripped as it reads them. */
  written(/** @type {{number: number, caption: string}[]} */ edits) {
    for (const { number, caption } of edits) {
      const stripped = caption.replaceAll("\r\n", "\n").trim();
      if (this.texts[number] === caption) this.texts[number] = stripped;
      this.saved[number] = stripped;
    }
  }
}
