// The tree of modules over the operations, and which of them are open.

import type { Operation } from "./data";

export interface Module {
  kind: "module";
  id: string;
  name: string;
  parent: Module | null;
  children: Item[];
  /** Operations anywhere below. */
  below: Operation[];
}

export interface Leaf {
  kind: "leaf";
  id: string;
  name: string;
  parent: Module | null;
  node: Operation;
}

export type Item = Module | Leaf;

/** A level with more children than this is cut into parts, so that drawing it stays quick. */
const MOST = 80;

export class Modules {
  readonly roots: Item[] = [];
  readonly leaves = new Map<string, Leaf>();
  readonly modules = new Map<string, Module>();
  readonly open = new Set<Module>();

  constructor(nodes: Operation[]) {
    for (const node of nodes) {
      const parent = node.owner ? this.module(node.owner) : null;
      const leaf: Leaf = { kind: "leaf", id: node.id, name: node.name, parent, node };
      this.leaves.set(node.id, leaf);
      (parent ? parent.children : this.roots).push(leaf);
    }
    this.roots = this.roots.map((item) => this.hoist(item, null));
    this.roots = this.parts(this.roots, null, "");
    const collect = (item: Item): Operation[] => {
      if (item.kind === "leaf") return [item.node];
      return (item.below = item.children.flatMap(collect));
    };
    this.roots.forEach(collect);
  }

  /** The item that is on the screen for an operation: itself, or the outermost closed module around it. */
  seen(id: string): Item {
    let item: Item = this.leaves.get(id)!;
    let result: Item = item;
    for (let at = item.parent; at; at = at.parent) if (!this.open.has(at)) result = at;
    return result;
  }

  reveal(id: string): boolean {
    let changed = false;
    for (let at = this.leaves.get(id)!.parent; at; at = at.parent) {
      if (!this.open.has(at)) changed = true;
      this.open.add(at);
    }
    return changed;
  }

  /** Open whole levels from the top down while no more than so many items are on the screen. */
  openWhile(most: number): void {
    this.open.clear();
    for (;;) {
      const level = this.visible().filter((item): item is Module => item.kind === "module");
      const gain = level.reduce((sum, item) => sum + item.children.length - 1, 0);
      if (!level.length || this.visible().length + gain > most) return;
      for (const item of level) this.open.add(item);
    }
  }

  visible(items: Item[] = this.roots): Item[] {
    return items.flatMap((item) => (item.kind === "module" && this.open.has(item) ? this.visible(item.children) : [item]));
  }

  private module(path: string): Module {
    let module = this.modules.get(path);
    if (!module) {
      const dot = path.lastIndexOf(".");
      const parent = dot > 0 ? this.module(path.slice(0, dot)) : null;
      module = { kind: "module", id: `module:${path}`, name: path, parent, children: [], below: [] };
      this.modules.set(path, module);
      (parent ? parent.children : this.roots).push(module);
    }
    return module;
  }

  /** A module around one item only says nothing: its item takes its place. */
  private hoist(item: Item, parent: Module | null): Item {
    item.parent = parent;
    if (item.kind === "leaf") return item;
    if (item.children.length === 1) {
      this.modules.delete(item.name);
      return this.hoist(item.children[0], parent);
    }
    item.children = this.parts(item.children.map((child) => this.hoist(child, item)), item, item.name);
    return item;
  }

  private parts(items: Item[], parent: Module | null, name: string): Item[] {
    if (items.length <= MOST) return items;
    const size = Math.ceil(items.length / Math.ceil(items.length / (MOST / 2)));
    const result: Item[] = [];
    for (let start = 0; start < items.length; start += size) {
      const children = items.slice(start, start + size);
      const label = `${name ? `${name}: ` : ""}${start + 1} to ${start + children.length}`;
      const part: Module = { kind: "module", id: `part:${name}:${start}`, name: label, parent, children, below: [] };
      for (const child of children) child.parent = part;
      this.modules.set(part.id, part);
      result.push(part);
    }
    return result;
  }
}
