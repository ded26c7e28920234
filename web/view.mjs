// What main.js and the views of our nodes promise each other. A view is pure: it builds elements, and asks for
// everything of ComfyUI through its host.

/**
 * What a view may ask of the page, for one node.
 * @typedef {{
 *   attach(element: HTMLElement, height: number): void,
 *   linked(output: string): boolean,
 *   fetch(route: string, options?: RequestInit): Promise<Response>,
 *   id(): string,
 *   view(picture: {filename: string, subfolder: string, type: string}): string,
 *   value(widget: string): any,
 *   set(widget: string, value: any): void,
 *   onChange(widget: string, listener: () => void): void,
 * }} Host
 * attach: puts the element below the node's widgets, `height` pixels high at least; it saves no value.
 * linked: whether something is connected to an output of the node.
 * fetch: a route of the server, from `/in_graph_lora/…`.
 * id: the node's id in the graph. view: the address of a picture that the server keeps.
 * value, set, onChange: a widget of the node by its name; onChange is told of the user's changes and of `set`.
 */

/**
 * @typedef {{
 *   executed?(output: any): void,
 *   progress?(event: any): void,
 *   ended?(how: "interrupted" | "failed", event: any): void,
 *   configured?(): void,
 *   filesChanged?(): void,
 * }} View
 * executed: the node has run; output is its `ui`. progress: an event of its training. ended: the prompt ended
 * in this node. configured: a workflow's values are in the widgets. filesChanged: there are new runs or LoRA files,
 * and the lists of the widgets have them.
 */

export {};
