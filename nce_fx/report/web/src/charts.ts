// Curves, bars and histograms, drawn by Observable Plot in the colours of the style sheet.

import * as Plot from "@observablehq/plot";
import { brief, labelOf, shown, view, type Columns, type Weight } from "./data";
import { colour } from "./colours";
import { byId, element } from "./elements";

type Figure = ReturnType<typeof Plot.plot>;

const style = { background: "transparent", color: "currentColor", fontFamily: "inherit", fontSize: "12px", overflow: "visible" };
const runColours = ["series-1", "series-2", "series-3", "series-4", "series-5", "series-6"];
const runDashes = ["0", "6 3", "2 2", "8 3 2 3", "12 4"];
/** What a column of a training log is, in words. */
const curveNames: Record<string, string> = {
  test_accuracy: "accuracy on test data",
  loss: "loss on training data",
  accuracy: "accuracy on training data",
  moved: "weights on another level after the epoch (oscillation)",
  test_metric: "metric on test data",
};

/** Draw every chart of the page; called again when light and dark change, or the width of the window. */
export function drawCharts(): void {
  drawSensitivity();
  drawCurves();
  drawFront();
}

/** A weight before quantization, as a histogram, and after, as a stem on every level. */
export function weightChart(weight: Weight, width: number): Figure {
  const step = (weight.high - weight.low) / weight.counts.length;
  const total = weight.counts.reduce((sum, count) => sum + count, 0) || 1;
  const bars = weight.counts.map((count, index) => ({
    from: weight.low + index * step,
    to: weight.low + (index + 1) * step,
    share: count / total,
  }));
  const most = Math.max(...bars.map((bar) => bar.share));
  const stems = weight.levels.map(([level, count]) => ({ level, share: count / total }));
  const top = Math.max(...stems.map((stem) => stem.share)) || 1;
  return Plot.plot({
    width,
    height: 200,
    style,
    marginTop: 20,
    marginBottom: 42,
    marginLeft: 44,
    x: { label: weight.unit === "weight" ? "weight" : "weight, in steps of its channel", domain: [weight.low, weight.high], labelOffset: 38 },
    y: { label: "% of weights on a level", percent: true, domain: [0, 105 * top], ticks: 4, grid: true },
    marks: [
      Plot.rectY(bars, { x1: "from", x2: "to", y: (bar) => (bar.share / most) * top, fill: colour("before"), inset: 0.3 }),
      Plot.ruleX(stems, { x: "level", y: "share", stroke: colour("accent"), strokeWidth: stems.length > 16 ? 1 : 2.5 }),
      Plot.dot(stems, { x: "level", y: "share", fill: colour("accent"), r: stems.length > 16 ? 2 : 4.5 }),
      Plot.tip(stems, Plot.pointerX({ x: "level", y: "share", title: (stem) => `level ${shown(stem.level)}\n${(100 * stem.share).toFixed(1)} % of weights` })),
      Plot.ruleY([0]),
    ],
  });
}

function drawSensitivity(): void {
  const box = document.getElementById("sensitivity-chart");
  if (!box) return;
  const ordered = Object.entries(view.sensitivity).sort(([, a], [, b]) => b[0] + b[1] - a[0] - a[1]);
  const layers = ordered.slice(0, 40);
  const parts = layers.flatMap(([layer, [weights, output]]) => [
    { layer, value: Math.abs(weights), part: "weights" },
    { layer, value: Math.abs(output), part: "output" },
  ]);
  const longest = Math.max(...layers.map(([layer]) => layer.length));
  const chart = Plot.plot({
      width: Math.max(480, box.clientWidth - 40),
      height: 50 + 20 * layers.length,
      style,
      marginLeft: Math.min(20 + 6.6 * longest, 330),
      x: { label: null, grid: true, axis: "top", ticks: 6, tickFormat: brief },
      y: { label: null, domain: layers.map(([layer]) => layer), tickFormat: (name: string) => (name.length > 46 ? `…${name.slice(-45)}` : name), tickSize: 0 },
      color: { domain: ["weights", "output"], range: [colour("series-1"), colour("series-2")], legend: true },
      marks: [
        Plot.barX(parts, { x: "value", y: "layer", fill: "part", insetTop: 2, insetBottom: 2, rx: 2 }),
        Plot.tip(parts, Plot.pointer(Plot.stackX({ x: "value", y: "layer", title: (row: { layer: string; part: string; value: number }) => `${row.layer}\n${row.part}: ${shown(row.value)}` }))),
      ],
    });
  chart.setAttribute("aria-hidden", "true");
  box.replaceChildren(chart);
  if (ordered.length > layers.length) {
    box.append(element("p", { class: "soft" }, `The ${layers.length} most sensitive of ${ordered.length} layers.`));
  }
}

function drawCurves(): void {
  const box = document.getElementById("curves");
  if (!box) return;
  const columns = new Set(view.runs.flatMap((run) => Object.keys(run.columns)));
  const order = ["test_accuracy", "loss", "accuracy"];
  const rest = [...columns].filter((name) => ![...order, "epoch", "steps", "seconds", "learning_rate", "bits"].includes(name));
  const names = [...order.filter((name) => columns.has(name)), ...rest];
  const domain = view.runs.map((run) => run.name);
  const width = columnWidth(box, names.length);
  box.replaceChildren(
    ...names.map((name) => {
      const points = view.runs.flatMap((run) =>
        (run.columns[name] ?? []).flatMap((value, index) =>
          value === null ? [] : [{ run: run.name, epoch: run.columns.epoch?.[index] ?? index + 1, value }],
        ),
      );
      const percent = name.includes("accuracy") || name === "moved";
      const label = curveNames[name] ?? name.replaceAll("_", " ");
      return figure(label, lineChart(points, domain, percent, label, width), points.length ? lastOnes(points, percent) : "");
    }),
  );
}

interface CurvePoint {
  run: string;
  epoch: number;
  value: number;
}

function lineChart(points: CurvePoint[], domain: string[], percent: boolean, label: string, width: number): Figure {
  const range = domain.map((_, index) => colour(runColours[index % runColours.length]));
  const title = (at: CurvePoint) => `${at.run}, epoch ${at.epoch}\n${percent ? `${(100 * at.value).toFixed(2)} %` : shown(at.value)}`;
  return Plot.plot({
    width,
    height: 290,
    style,
    marginTop: 34,
    marginLeft: 48,
    marginBottom: 44,
    x: { label: "epoch", labelOffset: 40, tickFormat: (value: number) => (Number.isInteger(value) ? `${value}` : "") },
    y: { label, percent, grid: true, nice: true, ticks: 6, domain: span(points.map((at) => (percent ? 100 : 1) * at.value)), tickFormat: (value: number) => `${Number(value.toPrecision(4))}` },
    color: { domain, range, legend: true },
    marks: [
      ...domain.map((run, index) =>
        Plot.lineY(points.filter((at) => at.run === run), { x: "epoch", y: "value", stroke: "run", strokeWidth: 2, strokeDasharray: runDashes[index % runDashes.length] }),
      ),
      Plot.dot(points, { x: "epoch", y: "value", fill: "run", r: points.length > 150 ? 0 : 2 }),
      Plot.tip(points, Plot.pointer({ x: "epoch", y: "value", title })),
    ],
  });
}

/** From the least to the greatest value; around values that hardly differ a twentieth of them, so that no tick needs six digits. */
function span(values: number[]): [number, number] | undefined {
  if (!values.length) return undefined;
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const least = 0.05 * Math.max(Math.abs(low), Math.abs(high)) || 1;
  return high - low < least ? [low === 0 ? 0 : low - least, high + least] : [low, high];
}

function lastOnes(points: CurvePoint[], percent: boolean): string {
  const last = new Map(points.map((at) => [at.run, at.value]));
  return [...last].map(([run, value]) => `${run} ends at ${percent ? `${(100 * value).toFixed(2)} %` : shown(value)}`).join("; ");
}

function drawFront(): void {
  const box = document.getElementById("front");
  if (!box) return;
  const sweep: Columns = view.sweep;
  const costs = Object.keys(sweep).filter((name) => !["budget", "noise", "bound"].includes(name));
  const width = columnWidth(box, costs.length);
  box.replaceChildren(
    ...costs.map((name) => {
      const points = (sweep.noise ?? []).flatMap((noise, index) => {
        const [cost, bound, budget] = [sweep[name][index], sweep.bound?.[index], sweep.budget?.[index]];
        return noise === null || cost === null ? [] : [{ cost, noise, bound: bound ?? noise, budget: budget ?? 0 }];
      });
      const own = name in view.here ? [{ cost: view.here[name], noise: view.here.noise }] : [];
      const label = labelOf(name);
      const chart = Plot.plot({
        width,
        height: 290,
        insetLeft: 12,
        style,
        marginLeft: 48,
        marginRight: 24,
        marginBottom: 44,
        x: { label, labelOffset: 40, tickFormat: brief, ticks: 5, grid: true },
        y: { label: "predicted noise", zero: true, grid: true },
        marks: [
          Plot.lineY(points, { x: "cost", y: "bound", stroke: colour("soft"), strokeDasharray: "4 4", sort: "cost" }),
          Plot.lineY(points, { x: "cost", y: "noise", stroke: colour("accent"), strokeWidth: 2, sort: "cost" }),
          Plot.dot(points, { x: "cost", y: "noise", fill: colour("accent"), r: 3.5 }),
          Plot.dot(own, { x: "cost", y: "noise", stroke: colour("narrower"), strokeWidth: 2.5, r: 7, symbol: "star" }),
          Plot.tip(points, Plot.pointer({ x: "cost", y: "noise", title: (at) => `${at.budget}x: noise ${at.noise.toFixed(3)}\n${shown(at.cost)} ${label}` })),
        ],
      });
      return figure(`Predicted noise against ${label}`, chart, own.length ? "The star is the network of this page." : "");
    }),
  );
}

function figure(label: string, chart: Element, caption: string): HTMLElement {
  const made = element("figure", { class: "card" }, element("h3", {}, label));
  chart.setAttribute("aria-hidden", "true");
  made.append(chart);
  if (caption) made.append(element("figcaption", { class: "soft" }, caption));
  return made;
}

/** The width of a chart in a grid of so many, as the style sheet makes its columns: as many of 28rem as fit. */
function columnWidth(box: HTMLElement, count: number): number {
  const [gap, least, padding] = [16, 28 * 16, 42];
  const columns = Math.max(1, Math.min(count, Math.floor((box.clientWidth + gap) / (least + gap))));
  return Math.max(220, (box.clientWidth - gap * (columns - 1)) / columns - padding);
}

export function chartWidth(id: string, most: number): number {
  return Math.max(220, Math.min(most, byId(id).clientWidth - 36));
}
