// What main.js and the views of our nodes promise each other. A view is pure: it builds elements, and asks for
// everything of ComfyUI through its host.

/**
 * What a view may ask of the page, for one node.
 * @typedef {{
 *   attach(element: HTMLElement, height: number): void,
 *   linked(output: string): boolean,
 *   fetch(route: string, options?: RequestInit): Promise<Response>,
 *   url(route: string): string,
 *   queue(): Promise<unknown>,
 *   id(): string,
 *   workflow(): string,
 *   inFront(promptId: string, workflow: string): boolean,
 *   value(widget: string): unknown,
 *   set(widget: string, value: any): void,
 *   onChange(widget: string, listener: () => void): void,
 * }} Host
 * attach: puts the element below the node's widgets, `height` pixels high at least; it saves no value. Again:
 * another height; the node grows when it is too small, and never shrinks.
 * linked: whether something is connected to an output of the node.
 * fetch, url: a route of the server, from `/in_graph_lora/…`.
 * queue: what the Run button does.
 * id: the node's execution id; in a subgraph "outer:inner".
 * workflow: the id of the workflow in front.
 * inFront: whether a prompt is that of the workflow in front.
 * value: of a widget; undefined where it comes through a link.
 * set, onChange: a widget of the node by its name; onChange is told of the user's changes and of `set`.
 */

/**
 * @typedef {{
 *   created?(): void,
 *   executed?(output: any): void,
 *   progress?(message: any): void,
 *   filesChanged?(): void,
 * }} View
 * created: the node came with a workflow. executed: the node has run; output is its `ui`. progress: a message of
 * the node's training. filesChanged: there are new runs or LoRA files, and the lists of the widgets have them.
 */

export {};
