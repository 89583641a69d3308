// Colours come from the style sheet, so that light and dark are said once.

import { changeOf, labelOf, sensitivityOf, shown, view, type Change, type Operation } from "./data";

const known = new Map<string, string>();

/** A colour of the style sheet by its name, ``accent``; read once, asking the browser takes long. */
export function colour(name: string): string {
  if (!known.has(name)) known.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  return known.get(name)!;
}

/** Light and dark changed. */
export function forgetColours(): void {
  known.clear();
}

/** Something that operations can be coloured by: a number each, or what became of their channels. */
export interface Measure {
  key: string;
  label: string;
  of: (node: Operation) => number | undefined;
  sums: boolean;
}

export function measures(): Measure[] {
  const quantities = new Set(view.nodes.flatMap((node) => Object.keys(node.costs)));
  const found: Measure[] = [
    { key: "sensitivity", label: "sensitivity", of: sensitivityOf, sums: true },
    ...[...quantities].map((key) => ({
      key,
      label: labelOf(key),
      of: (node: Operation) => node.costs[key]?.[1] || undefined,
      sums: key !== "activation_bytes",
    })),
    { key: "channels", label: "channels", of: (node) => node.channels?.[1], sums: false },
    { key: "ratio", label: "ratio of channels", of: (node) => node.channels && node.channels[1] / node.channels[0] || undefined, sums: false },
    { key: "weight_bits", label: "bits of weights", of: (node) => node.weight?.bits, sums: false },
    { key: "bits", label: "bits of outputs", of: (node) => node.bits ?? undefined, sums: false },
  ];
  return found.filter((measure) => view.nodes.some((node) => measure.of(node) !== undefined));
}

/** One number for many operations: the sum of what adds up, else the largest. */
export function together(measure: Measure, operations: Operation[]): number | undefined {
  const values = operations.flatMap((node) => measure.of(node) ?? []);
  if (!values.length) return undefined;
  return measure.sums ? values.reduce((sum, value) => sum + value, 0) : Math.max(...values);
}

export function changesOf(operations: Operation[]): Record<Change, number> {
  const counts: Record<Change, number> = { wider: 0, narrower: 0, pinned: 0, same: 0, none: 0 };
  for (const node of operations) if (node.weight || sensitivityOf(node) !== undefined) counts[changeOf(node)] += 1;
  return counts;
}

/** Paint and ink of a value between the least and the greatest; by its logarithm where they are far apart. */
export function scale(values: number[]): { paint: (value: number) => string; ink: (value: number) => string; ends: [string, string] } {
  const finite = values.filter(Number.isFinite);
  const low = Math.min(...finite);
  const high = Math.max(...finite);
  const byLog = low > 0 && high / low > 50;
  const at = (value: number): number => {
    if (high <= low) return 1;
    return byLog ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
  };
  const [first, last] = [rgb(colour("scale-low")), rgb(colour("scale-high"))];
  const mix = (value: number): number[] => {
    const share = Math.max(0, Math.min(1, at(value)));
    return first.map((part, index) => Math.round(part + (last[index] - part) * share));
  };
  const light = ([r, g, b]: number[]): boolean => 0.299 * r + 0.587 * g + 0.114 * b > 140;
  return {
    paint: (value) => `rgb(${mix(value).join(",")})`,
    ink: (value) => (light(mix(value)) ? "#10151f" : "#ffffff"),
    ends: [shown(low), shown(high)],
  };
}

function rgb(hex: string): number[] {
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}
