// Load Run: what was loaded.

export { textView as loadRunView } from "./text_node.mjs";
