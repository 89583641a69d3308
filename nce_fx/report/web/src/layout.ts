// Where everything stands. Every open module is laid out by itself with dagre, as a box of its parent's picture; an edge
// that crosses the border of a box goes through a port on it. So no picture is large, and boxes never overlap.

import dagre from "@dagrejs/dagre";
import type { Item, Module, Modules } from "./modules";

export interface Point {
  x: number;
  y: number;
}

export interface Place extends Point {
  width: number;
  height: number;
}

export interface Line {
  id: string;
  from: string;
  to: string;
  points: Point[];
}

export interface Layout {
  places: Map<string, Place>;
  lines: Line[];
}

type Level = Module | null;

interface Picture {
  width: number;
  height: number;
  places: Map<string, Place>;
  routes: Map<string, Point[]>;
}

const PADDING = 16;
const HEAD = 26;
const GAP = 30;

export function layOut(modules: Modules, sizeOf: (item: Item) => { width: number; height: number }): Layout {
  const edges = visibleEdges(modules);
  const levels = new Map<Level, Map<string, [string, string]>>();
  const routes: { id: string; from: Item; to: Item; path: [Level, string][] }[] = [];
  for (const { from, to } of edges) {
    const path = pathOf(from, to);
    for (const [level, start, end] of path) {
      if (!levels.has(level)) levels.set(level, new Map());
      levels.get(level)!.set(key(start, end), [start, end]);
    }
    routes.push({ id: `${from.id}->${to.id}`, from, to, path: path.map(([level, a, b]) => [level, key(a, b)]) });
  }

  const pictures = new Map<Level, Picture>();
  const draw = (level: Level, items: Item[]): Picture => {
    const sizes = new Map<string, { width: number; height: number }>();
    for (const item of items) {
      if (item.kind === "module" && modules.open.has(item)) {
        const inner = draw(item, item.children);
        sizes.set(item.id, { width: inner.width + 2 * PADDING, height: inner.height + HEAD + PADDING });
      } else sizes.set(item.id, sizeOf(item));
    }
    const picture = drawLevel(sizes, [...(levels.get(level)?.values() ?? [])]);
    pictures.set(level, picture);
    return picture;
  };
  draw(null, modules.roots);

  const places = new Map<string, Place>();
  const corners = new Map<Level, Point>();
  const settle = (level: Level, items: Item[], corner: Point): void => {
    corners.set(level, corner);
    const picture = pictures.get(level)!;
    for (const item of items) {
      const own = picture.places.get(item.id)!;
      const place = { ...own, x: corner.x + own.x, y: corner.y + own.y };
      places.set(item.id, place);
      if (item.kind === "module" && modules.open.has(item)) {
        settle(item, item.children, { x: place.x - place.width / 2 + PADDING, y: place.y - place.height / 2 + HEAD });
      }
    }
  };
  settle(null, modules.roots, { x: 0, y: 0 });

  const lines = routes.map(({ id, from, to, path }) => {
    const points = path.flatMap(([level, edge]) => {
      const corner = corners.get(level)!;
      return (pictures.get(level)!.routes.get(edge) ?? []).map((at) => ({ x: corner.x + at.x, y: corner.y + at.y }));
    });
    return { id, from: from.id, to: to.id, points: straightened(points) };
  });
  return { places, lines };
}

function visibleEdges(modules: Modules): { from: Item; to: Item }[] {
  const found = new Map<string, { from: Item; to: Item }>();
  for (const leaf of modules.leaves.values()) {
    const to = modules.seen(leaf.id);
    for (const input of leaf.node.inputs) {
      if (!modules.leaves.has(input)) continue;
      const from = modules.seen(input);
      if (from !== to) found.set(key(from.id, to.id), { from, to });
    }
  }
  return [...found.values()];
}

/** The way of an edge through the levels: up to the level that holds both ends, and down again, from port to port. */
function pathOf(from: Item, to: Item): [Level, string, string][] {
  const above = (item: Item): Level[] => {
    const result: Level[] = [];
    for (let at = item.parent; at; at = at.parent) result.push(at);
    return [...result, null];
  };
  const ups = above(from);
  const downs = above(to);
  const shared = ups.find((level) => downs.includes(level))!;
  const path: [Level, string, string][] = [];
  let start = from.id;
  for (const level of ups.slice(0, ups.indexOf(shared))) {
    path.push([level, start, `out:${from.id}`]);
    start = level!.id;
  }
  const inner = downs.slice(0, downs.indexOf(shared)).reverse();
  path.push([shared, start, inner[0]?.id ?? to.id]);
  inner.forEach((level, index) => path.push([level, `in:${from.id}`, inner[index + 1]?.id ?? to.id]));
  return path;
}

function drawLevel(sizes: Map<string, { width: number; height: number }>, edges: [string, string][]): Picture {
  const order = chain(sizes, edges);
  if (order) return drawChain(order, sizes);
  const graph = new dagre.graphlib.Graph({ multigraph: false, compound: false });
  graph.setGraph({ rankdir: "TB", nodesep: 28, edgesep: 18, ranksep: GAP, marginx: 0, marginy: 0 });
  graph.setDefaultEdgeLabel(() => ({}));
  for (const [id, size] of sizes) graph.setNode(id, { ...size });
  for (const end of new Set(edges.flat())) if (!sizes.has(end)) graph.setNode(end, { width: 1, height: 1 });
  for (const [from, to] of edges) graph.setEdge(from, to);
  dagre.layout(graph);

  const places = new Map<string, Place>();
  for (const id of sizes.keys()) places.set(id, graph.node(id) as Place);
  const routes = new Map<string, Point[]>();
  for (const edge of graph.edges()) {
    const points = (graph.edge(edge).points ?? []) as Point[];
    routes.set(key(edge.v, edge.w), points.map(({ x, y }) => ({ x, y })));
  }
  const { width = 0, height = 0 } = graph.graph() as { width?: number; height?: number };
  return { width, height, places, routes };
}

/** The order of a level that is one chain, as most are: dagre would need a hundred times as long for it. */
function chain(sizes: Map<string, unknown>, edges: [string, string][]): string[] | null {
  const next = new Map(edges);
  const targets = new Set(next.values());
  const all = new Set([...sizes.keys(), ...edges.flat()]);
  if (next.size !== edges.length || targets.size !== edges.length || edges.length !== all.size - 1) return null;
  const order: string[] = [];
  for (let at = [...all].find((id) => !targets.has(id)); at !== undefined; at = next.get(at)) order.push(at);
  return order.length === all.size ? order : null;
}

function drawChain(order: string[], sizes: Map<string, { width: number; height: number }>): Picture {
  const port = { width: 1, height: 1 };
  const width = Math.max(...order.map((id) => (sizes.get(id) ?? port).width));
  const places = new Map<string, Place>();
  const routes = new Map<string, Point[]>();
  let bottom = 0;
  order.forEach((id, index) => {
    const size = sizes.get(id) ?? port;
    if (index) {
      const ends = [{ x: width / 2, y: bottom }, { x: width / 2, y: bottom + GAP }];
      routes.set(key(order[index - 1], id), ends);
      bottom += GAP;
    }
    if (sizes.has(id)) places.set(id, { ...size, x: width / 2, y: bottom + size.height / 2 });
    bottom += size.height;
  });
  return { width, height: bottom, places, routes };
}

/** Leave out points that lie on the way between their neighbours anyhow. */
function straightened(points: Point[]): Point[] {
  const result: Point[] = [];
  for (const point of points) {
    const [a, b] = result.slice(-2);
    if (b && Math.hypot(point.x - b.x, point.y - b.y) < 2) continue;
    if (a && b && Math.abs((b.x - a.x) * (point.y - a.y) - (b.y - a.y) * (point.x - a.x)) < 60) result.pop();
    result.push(point);
  }
  return result;
}

function key(from: string, to: string): string {
  return `${from}\u0000${to}`;
}
