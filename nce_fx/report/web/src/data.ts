// What the page is given: the `View` of nce_fx/report/view.py as JSON.

export interface Weight {
  bits: number;
  quantizer: string;
  unit: "weight" | "step";
  low: number;
  high: number;
  counts: number[];
  levels: [number, number][];
}

export interface Operation {
  id: string;
  name: string;
  owner: string;
  op: string;
  inputs: string[];
  source: string;
  shape: number[];
  groups: string[];
  channels: [number, number] | null;
  bits: number | null;
  costs: Record<string, [number, number]>;
  weight: Weight | null;
}

export interface Group {
  id: string;
  producers: string[];
  consumers: string[];
  before: number;
  after: number;
  step: number;
  pinned: string | null;
  sensitivity: number | null;
}

export type Columns = Record<string, (number | null)[]>;

export interface View {
  title: string;
  before: string;
  after: string;
  against: string;
  quantities: { name: string; label: string; before: number; after: number }[];
  groups: Group[];
  nodes: Operation[];
  sensitivity: Record<string, [number, number]>;
  metric: string;
  runs: { name: string; columns: Columns }[];
  sweep: Columns;
  here: Record<string, number>;
}

export type Change = "wider" | "narrower" | "pinned" | "same" | "none";

export const MARKS: Record<Change, string> = { wider: "▲", narrower: "▼", pinned: "■", same: "", none: "" };
export const WORDS: Record<Change, string> = {
  wider: "wider",
  narrower: "narrower",
  pinned: "pinned",
  same: "unchanged",
  none: "no channels of its own",
};

export const view = JSON.parse(document.getElementById("data")!.textContent!) as View;
export const nodes = new Map(view.nodes.map((node) => [node.id, node]));
export const groups = new Map(view.groups.map((group) => [group.id, group]));

/** What becomes of an operation's channels; those of several groups are as the first that changes. */
export function changeOf(node: Operation): Change {
  const own = node.groups.flatMap((id) => groups.get(id) ?? []);
  if (node.channels && node.channels[0] !== node.channels[1])
    return node.channels[1] > node.channels[0] ? "wider" : "narrower";
  if (!own.length) return "none";
  return own.every((group) => group.pinned !== null) ? "pinned" : "same";
}

/** The layer's own score, weights and output together; undefined for what has none. */
export function sensitivityOf(node: Operation): number | undefined {
  const own = view.sensitivity[node.name] ?? view.sensitivity[node.name.replace(/\.weight$/, "")];
  return own && own[0] + own[1];
}

export function labelOf(quantity: string): string {
  const known = view.quantities.find((each) => each.name === quantity);
  return known?.label ?? quantity.replaceAll("_", " ");
}

const counts = new Intl.NumberFormat("en-US");
const short = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });

export function shown(value: number): string {
  return Number.isInteger(value) ? counts.format(value) : value.toPrecision(3);
}

/** A number in few letters, such as 118G or 5e-10: a B for billions would be read as bytes. */
export function brief(value: number): string {
  if (value !== 0 && Math.abs(value) < 1e-3) return `${Number(value.toPrecision(3)).toExponential()}`;
  return short.format(value).replace("B", "G");
}
