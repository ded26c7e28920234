// What the page's scripts use of ComfyUI's frontend; the browser tests run on the real one.

interface Slot {
  name: string;
  links?: number[] | null;
}

interface Graph {
  nodes: LiteNode[];
  getNodeById(id: string | number): LiteNode | null;
}

interface Widget {
  name: string;
  value: any;
  callback?(...given: any[]): void;
}

interface LiteNode {
  id: string | number;
  comfyClass: string;
  size: [number, number];
  outputs?: Slot[];
  widgets?: Widget[];
  subgraph?: Graph;
  onExecuted?(output: any, ...rest: any[]): void;
  onConfigure?(...given: any[]): void;
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

declare const LiteGraph: { createNode(kind: string): LiteNode };

declare module "*/scripts/app.js" {
  export const app: {
    graph?: Graph;
    rootGraph?: Graph;
    canvas: {
      graph?: Graph;
      ds: { visible_area: [number, number, number, number] };
      selected_nodes?: Record<string, LiteNode>;
    };
    extensionManager: { registerSidebarTab(tab: object): void };
    registerExtension(extension: Extension): void;
    reloadNodeDefs?(): Promise<void>;
    refreshComboInNodes(): Promise<void>;
  };
}

declare module "*/scripts/api.js" {
  export const api: {
    addEventListener(event: string, listener: (event: CustomEvent) => void): void;
    apiURL(route: string): string;
    fetchApi(route: string, options?: RequestInit): Promise<Response>;
  };
}
