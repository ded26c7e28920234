// What the page's scripts use of ComfyUI's frontend; the browser tests run on the real one.

interface Slot {
  name: string;
  links?: number[] | null;
}

interface Graph {
  getNodeById(id: string | number): LiteNode | null;
}

interface LiteNode {
  id: string | number;
  comfyClass: string;
  size: [number, number];
  outputs?: Slot[];
  subgraph?: Graph;
  onExecuted?(output: any, ...rest: any[]): void;
  addDOMWidget(name: string, type: string, element: HTMLElement, options: object): { serialize?: boolean };
  computeSize(): [number, number];
  setSize(size: [number, number]): void;
  setDirtyCanvas?(foreground: boolean): void;
}

interface Extension {
  name: string;
  setup?(): void;
  nodeCreated?(node: LiteNode): void;
}

declare module "*/scripts/app.js" {
  export const app: { graph?: Graph; rootGraph?: Graph; registerExtension(extension: Extension): void };
}

declare module "*/scripts/api.js" {
  export const api: {
    addEventListener(event: string, listener: (event: CustomEvent) => void): void;
    fetchApi(route: string, options?: RequestInit): Promise<Response>;
  };
}
