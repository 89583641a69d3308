// The graph on its canvas: drawn by cytoscape, laid out by layout.ts, and looked at with mouse or keyboard.

import cytoscape from "cytoscape";
import { changeOf, MARKS, nodes, type Operation } from "./data";
import { changesOf, colour, scale, together, type Measure } from "./colours";
import { layOut } from "./layout";
import { Modules, type Item, type Module } from "./modules";

const FONT = "Inter, system-ui, sans-serif";
const FIRST_LOOK = 80;


export class Graph {
  readonly modules: Modules;
  private readonly cy: cytoscape.Core;
  private measure: Measure | null = null;
  private picked: Item | null = null;
  private lit = new Set<string>();
  private readonly byId: Map<string, Module>;

  constructor(
    box: HTMLElement,
    operations: Operation[],
    private readonly onPick: (item: Item | null) => void,
  ) {
    this.modules = new Modules(operations);
    this.byId = new Map([...this.modules.modules.values()].map((module) => [module.id, module]));
    this.modules.openWhile(FIRST_LOOK);
    this.cy = cytoscape({
      container: box,
      minZoom: 0.02,
      maxZoom: 2.5,
      autoungrabify: true,
      boxSelectionEnabled: false,
      autounselectify: true,
      layout: { name: "preset" },
      pixelRatio: "auto",
    } as cytoscape.CytoscapeOptions);
    this.cy.on("tap", (event) => {
      if (event.target === this.cy) this.pick(null);
      else if (event.target.isNode()) this.pick(this.itemOf(event.target.id()));
    });
    this.cy.on("dbltap", "node", (event) => {
      const item = this.itemOf(event.target.id());
      if (item?.kind === "module") this.toggle(item);
    });
    this.cy.on("mouseover", "node", () => (box.style.cursor = "pointer"));
    this.cy.on("mouseout", "node", () => (box.style.cursor = ""));
    box.addEventListener("keydown", (event) => this.onKey(event));
    this.restyle();
    this.redraw();
    this.home();
  }

  /** Draw anew: after modules opened or closed, after other colours. */
  redraw(keep?: Item): void {
    const before = keep && this.cy.getElementById(keep.id);
    const stood = before?.nonempty() ? { ...before.renderedPosition() } : null;
    const layout = layOut(this.modules, size);
    const elements: cytoscape.ElementDefinition[] = [];
    for (const [id, place] of layout.places) {
      const item = this.itemOf(id)!;
      const isOpen = item.kind === "module" && this.modules.open.has(item);
      elements.push({
        group: "nodes",
        data: { id, label: isOpen ? `−  ${within(item)}` : label(item), width: place.width, height: place.height, depth: depth(item) },
        position: { x: place.x, y: place.y },
        classes: isOpen ? "open" : item.kind === "module" ? "closed" : isLayer(item.node) ? "layer" : "other",
      });
    }
    for (const line of layout.lines) {
      const [from, to] = [layout.places.get(line.from)!, layout.places.get(line.to)!];
      elements.push({
        group: "edges",
        data: { id: line.id, source: line.from, target: line.to, ...bends(line.points.slice(1, -1), from, to) },
      });
    }
    this.cy.batch(() => {
      this.cy.elements().remove();
      this.cy.add(elements);
    });
    this.paint();
    const after = keep && this.cy.getElementById(keep.id);
    if (stood && after?.nonempty()) {
      const now = after.renderedPosition();
      this.cy.panBy({ x: stood.x - now.x, y: stood.y - now.y });
    }
  }

  colourBy(measure: Measure | null): void {
    this.measure = measure;
    this.paint();
  }

  /** The values of what is on the screen, for the legend. */
  scaleNow(): ReturnType<typeof scale> | null {
    const measure = this.measure;
    if (!measure) return null;
    const values = this.modules.visible().flatMap((item) => together(measure, below(item)) ?? []);
    return values.length ? scale(values) : null;
  }

  pick(item: Item | null): void {
    this.picked = item;
    const own = new Set(item?.kind === "leaf" ? item.node.groups : []);
    this.lit = new Set([...nodes.values()].filter((node) => node.groups.some((id) => own.has(id))).map((node) => node.id));
    this.paint();
    this.onPick(item);
  }

  /** Light one channel group up. */
  light(group: string): void {
    this.picked = null;
    this.lit = new Set([...nodes.values()].filter((node) => node.groups.includes(group)).map((node) => node.id));
    this.paint();
    const lit = this.cy.nodes(".lit");
    if (lit.nonempty()) this.move({ fit: { eles: lit, padding: 60 } }, () => this.cy.fit(lit, 60));
  }

  /** Open what is around an operation, show it in the middle, and select it. */
  show(id: string): void {
    const leaf = this.modules.leaves.get(id);
    if (!leaf) return;
    if (this.modules.reveal(id)) this.redraw();
    this.pick(leaf);
    const zoom = Math.max(this.cy.zoom(), 0.8);
    const found = this.cy.getElementById(id);
    this.move({ center: { eles: found }, zoom } as cytoscape.AnimationOptions, () => {
      this.cy.zoom(zoom);
      this.cy.center(found);
    });
  }

  /** Go to another place: slowly, or at once for who asks the system for less motion. */
  private move(slowly: cytoscape.AnimationOptions, atOnce: () => void): void {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) atOnce();
    else this.cy.animate({ ...slowly, duration: 250 } as cytoscape.AnimationOptions);
  }

  toggle(module: Module): void {
    if (this.modules.open.has(module)) this.modules.open.delete(module);
    else this.modules.open.add(module);
    this.redraw(module);
  }

  expandAll(): void {
    for (const module of this.modules.modules.values()) this.modules.open.add(module);
    this.redraw();
    this.home();
  }

  collapseAll(): void {
    this.modules.open.clear();
    this.redraw();
    this.home();
  }

  zoom(factor: number): void {
    this.cy.zoom({ level: this.cy.zoom() * factor, renderedPosition: { x: this.cy.width() / 2, y: this.cy.height() / 2 } });
  }

  fit(): void {
    this.cy.fit(undefined, 24);
  }

  /** The first look: all of it where that can be read, else its top. */
  home(): void {
    this.cy.resize();
    this.fit();
    const bounds = this.cy.elements().boundingBox();
    const readable = Math.min(0.85, (this.cy.width() - 48) / bounds.w);
    if (this.cy.zoom() < readable) {
      this.cy.zoom(readable);
      this.cy.pan({ x: this.cy.width() / 2 - readable * (bounds.x1 + bounds.w / 2), y: 20 - readable * bounds.y1 });
    }
  }

  /** Paint what is on the screen: by the measure, and by what is selected. */
  private paint(): void {
    const values = this.scaleNow();
    const anything = this.lit.size > 0;
    const lit = new Map(
      this.cy.nodes().map((element) => [element.id(), anything && below(this.itemOf(element.id())!).some((node) => this.lit.has(node.id))]),
    );
    this.cy.batch(() => {
      for (const element of this.cy.nodes()) {
        const item = this.itemOf(element.id())!;
        const open = element.hasClass("open");
        element.toggleClass("lit", lit.get(element.id())! && !open);
        element.toggleClass("dim", anything && !lit.get(element.id()));
        element.toggleClass("picked", this.picked?.id === element.id());
        const look = open ? {} : this.look(item, values);
        for (const [name, value] of Object.entries(look)) if (element.data(name) !== value) element.data(name, value);
      }
      for (const element of this.cy.edges()) {
        const both = lit.get(element.source().id()) && lit.get(element.target().id());
        element.toggleClass("lit", Boolean(both));
        element.toggleClass("dim", anything && !both);
      }
    });
  }

  /** Take the colours of the style sheet, at the start and where light and dark change. */
  restyle(): void {
    const [line, ink, soft] = [colour("line"), colour("ink"), colour("soft")];
    this.cy.style([
      {
        selector: "node",
        style: {
          shape: "round-rectangle",
          width: "data(width)",
          height: "data(height)",
          label: "data(label)",
          "text-wrap": "wrap",
          "text-valign": "center",
          "text-halign": "center",
          "font-family": FONT,
          "font-size": 12,
          "line-height": 1.3,
          color: ink,
          "border-width": 1.5,
          "border-color": line,
          "background-color": colour("surface"),
          "z-index-compare": "manual",
          "z-index": 20,
        },
      },
      {
        selector: "node.open",
        style: {
          "background-color": colour("box"),
          "background-opacity": 0.55,
          "border-width": 1,
          "border-color": colour("box-line"),
          "text-valign": "top",
          "text-halign": "center",
          "text-margin-y": 20,
          "font-size": 11.5,
          "font-weight": 600,
          color: soft,
          "z-index": "data(depth)" as unknown as number,
        },
      },
      { selector: "node.closed", style: { "border-style": "double", "border-width": 4, "font-weight": 600 } },
      { selector: "node.other", style: { "font-size": 11 } },
      {
        selector: "node[paint]",
        style: { "background-color": "data(paint)", color: "data(ink)", "border-color": "data(edge)" },
      },
      { selector: "node[dash]", style: { "border-style": "dashed" } },
      {
        selector: "edge",
        style: {
          width: 1.4,
          "line-color": colour("edge"),
          "curve-style": "straight",
          "target-arrow-shape": "triangle",
          "arrow-scale": 0.8,
          "target-arrow-color": colour("edge"),
          "z-index-compare": "manual",
          "z-index": 15,
        },
      },
      {
        selector: "edge[weights]",
        style: {
          "curve-style": "round-segments",
          "segment-weights": "data(weights)",
          "segment-distances": "data(distances)",
          "segment-radii": 14,
          "edge-distances": "node-position",
        },
      },
      { selector: ".dim", style: { opacity: 0.38 } },
      { selector: "node.open.dim", style: { opacity: 0.6 } },
      { selector: "node.lit", style: { "border-color": colour("accent"), "border-width": 3 } },
      { selector: "edge.lit", style: { "line-color": colour("accent"), "target-arrow-color": colour("accent"), width: 2.4 } },
      {
        selector: "node.picked",
        style: { "border-color": colour("accent"), "border-width": 3, "outline-width": 3, "outline-color": colour("halo"), "outline-offset": 2 },
      },
    ] as unknown as cytoscape.StylesheetJson);
    this.paint();
  }

  private look(item: Item, values: ReturnType<typeof scale> | null): Record<string, unknown> {
    const plain = { paint: colour("surface"), ink: colour("ink"), edge: colour("line"), dash: undefined };
    if (this.measure && values) {
      const value = together(this.measure, below(item));
      if (value === undefined) return { ...plain, ink: colour("soft") };
      return { paint: values.paint(value), ink: values.ink(value), edge: values.paint(value), dash: undefined };
    }
    if (item.kind === "module") return plain;
    const change = changeOf(item.node);
    if (change === "same" || change === "none") return change === "none" ? { ...plain, ink: colour("soft") } : plain;
    return {
      paint: colour(`${change}-tint`),
      ink: colour(isLayer(item.node) ? `${change}-ink` : "ink"),
      edge: colour(change),
      dash: change === "pinned" ? 1 : undefined,
    };
  }

  private itemOf(id: string): Item | null {
    const leaf = this.modules.leaves.get(id);
    if (leaf) return leaf;
    return this.byId.get(id) ?? null;
  }

  private onKey(event: KeyboardEvent): void {
    const steps: Record<string, [number, number]> = {
      ArrowUp: [0, 60],
      ArrowDown: [0, -60],
      ArrowLeft: [60, 0],
      ArrowRight: [-60, 0],
    };
    const step = steps[event.key];
    if (step) this.cy.panBy({ x: step[0], y: step[1] });
    else if (event.key === "+" || event.key === "=") this.zoom(1.25);
    else if (event.key === "-") this.zoom(0.8);
    else if (event.key === "f" || event.key === "F") this.fit();
    else if (event.key === "Escape") this.pick(null);
    else return;
    event.preventDefault();
  }
}

export function below(item: Item): Operation[] {
  return item.kind === "leaf" ? [item.node] : item.below;
}

/** Whether an operation is a layer, with weights or a score; the others are drawn small. */
export function isLayer(node: Operation): boolean {
  return node.weight !== null || Object.keys(node.costs).some((name) => name === "macs");
}

export function lastPart(name: string): string {
  return name.slice(name.lastIndexOf(".") + 1);
}

function label(item: Item): string {
  if (item.kind === "module") {
    const counts = changesOf(item.below);
    const said = (["wider", "narrower", "pinned"] as const)
      .filter((change) => counts[change])
      .map((change) => `${MARKS[change]} ${counts[change]}`);
    return `+  ${within(item)}\n${said.join("   ") || `${item.below.length} operations`}`;
  }
  const node = item.node;
  if (!isLayer(node)) return title(node);
  return `${title(node)}\n${[widths(node), bits(node)].filter(Boolean).join("  ·  ")}`;
}

/** A module's name inside its parent's box. */
export function within(module: Module): string {
  const around = module.parent ? `${module.parent.name}.` : "";
  const short = module.name.startsWith(around) ? module.name.slice(around.length) : module.name;
  return /^\d+$/.test(short) ? module.name.split(".").slice(-2).join(".") : short;
}

function title(node: Operation): string {
  const short = lastPart(node.name);
  return /^\d+$/.test(short) ? node.name.split(".").slice(-2).join(".") : short;
}

export function widths(node: Operation): string {
  if (!node.channels) return "";
  const [before, after] = node.channels;
  const mark = MARKS[changeOf(node)];
  return `${mark ? `${mark} ` : ""}${before === after ? before : `${before} → ${after}`}`;
}

function bits(node: Operation): string {
  return node.weight ? `${node.weight.bits} bit` : "";
}

const pen = document.createElement("canvas").getContext("2d")!;

/** As wide as its longest line is drawn, whatever letters the browser has; modules are bold, in a double frame. */
function size(item: Item): { width: number; height: number } {
  const lines = label(item).split("\n");
  const module = item.kind === "module";
  pen.font = `${module ? 600 : 400} 12px ${FONT}`;
  const longest = Math.max(...lines.map((line) => pen.measureText(line).width));
  return { width: Math.max(64, Math.ceil(longest) + (module ? 34 : 26)), height: lines.length > 1 ? 46 : 28 };
}

function depth(item: Item): number {
  let count = 0;
  for (let at = item.parent; at; at = at.parent) count += 1;
  return count;
}

/** Bends as cytoscape takes them: how far along the straight line between two nodes, and how far beside it. */
function bends(points: { x: number; y: number }[], from: { x: number; y: number }, to: { x: number; y: number }): Record<string, string> {
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const length = Math.hypot(dx, dy);
  if (!points.length || length < 1) return {};
  const along = points.map((at) => ((at.x - from.x) * dx + (at.y - from.y) * dy) / (length * length));
  const beside = points.map((at) => ((at.y - from.y) * dx - (at.x - from.x) * dy) / length);
  return { weights: along.map((value) => value.toFixed(4)).join(" "), distances: beside.map((value) => value.toFixed(1)).join(" ") };
}

