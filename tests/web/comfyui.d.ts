// What the page's scripts use of ComfyUI's frontend; the browser tests run on the real one.

interface Slot {
  name: string;
  links?: number[] | null;
}

interface Graph {
  id: string;
  nodes?: LiteNode[];
  getNodeById(id: string | number): LiteNode | null;
}

interface Widget {
  name: string;
  value: any;
  callback?(...given: any[]): void;
  element?: HTMLElement;
  serialize?: boolean;
  inGraphLoraHeight?: number;
}

interface LiteNode {
  id: string | number;
  comfyClass: string;
  graph?: Graph | null;
  pos: [number, number];
  size: [number, number];
  inputs?: { widget?: { name: string }; link?: number | null }[];
  outputs?: Slot[];
  widgets?: Widget[];
  subgraph?: Graph;
  addDOMWidget(name: string, type: string, element: HTMLElement, options: object): Widget;
  removeWidget(widget: Widget): void;
  computeSize(): [number, number];
  setSize(size: [number, number]): void;
  setDirtyCanvas?(foreground: boolean, background?: boolean): void;
}

interface Extension {
  name: string;
  setup?(): void;
  beforeRegisterNodeDef?(type: unknown, definition: { name: string; category?: string }): void;
  nodeCreated?(node: LiteNode): void;
  loadedGraphNode?(node: LiteNode): void;
}

interface Window {
  LGraphCanvas?: { link_type_colors: Record<string, string> };
}

declare const LiteGraph: { createNode(kind: string): LiteNode };

declare module "*/scripts/app.js" {
  export const app: {
    graph?: Graph;
    rootGraph?: Graph;
    ui?: { settings?: EventTarget };
    canvas: {
      graph?: Graph;
      ds: { visible_area: [number, number, number, number] };
      selected_nodes?: Record<string, LiteNode>;
      selectNode?(node: LiteNode): void;
      centerOnNode?(node: LiteNode): void;
      default_connection_color_byType: Record<string, string>;
      setDirty?(a: boolean, b: boolean): void;
    };
    extensionManager?: {
      setting?: { get?(id: string): unknown };
      registerSidebarTab?(tab: object): void;
      toast?: { add(message: object): void };
      workflow?: { activeWorkflow?: { path: string } | null; openWorkflows?: { path: string }[] };
    };
    queuePrompt(number: number): Promise<unknown>;
    reloadNodeDefs?(): Promise<void>;
    refreshComboInNodes(): Promise<void>;
    registerExtension(extension: Extension): void;
  };
}

declare module "*/scripts/api.js" {
  export const api: {
    addEventListener(event: string, listener: (event: CustomEvent) => void): void;
    fetchApi(route: string, options?: RequestInit): Promise<Response>;
    apiURL(route: string): string;
    queuePrompt(number: number, prompt: any, ...rest: any[]): Promise<any>;
    getWorkflowTemplates?(...given: any[]): Promise<Record<string, string[]>>;
  };
}
