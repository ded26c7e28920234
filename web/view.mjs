// What main.js and the views of our nodes promise each other. A view is pure: it builds elements, and asks for
// everything of ComfyUI through its host.

/**
 * What a view may ask of the page, for one node.
 * @typedef {{
 *   attach(element: HTMLElement, height: number): void,
 *   linked(output: string): boolean,
 *   fetch(route: string, options?: RequestInit): Promise<Response>,
 *   id(): string,
 * }} Host
 * attach: puts the element below the node's widgets, `height` pixels high at least; it saves no value.
 * linked: whether something is connected to an output of the node.
 * fetch: a route of the server, from `/in_graph_lora/…`.
 * id: the node's id in the graph.
 */

/**
 * @typedef {{
 *   executed?(output: any): void,
 *   progress?(event: any): void,
 *   ended?(how: "interrupted" | "failed", event: any): void,
 * }} View
 * executed: the node has run; output is its `ui`. progress: an event of its training. ended: the prompt ended
 * in this node.
 */

export {};
