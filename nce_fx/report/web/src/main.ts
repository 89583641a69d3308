// The page comes to life: text and tables are there already, this draws the graph and the curves, and wires them up.

import { nodes, view, WORDS, MARKS, type Change } from "./data";
import { drawCharts } from "./charts";
import { colour, forgetColours, measures } from "./colours";
import { showDetails } from "./details";
import { byId, element } from "./elements";
import { Graph } from "./graph";
import type { Item } from "./modules";
import { wireTable } from "./tables";
import { wireTheme } from "./theme";

let graph: Graph;
const list = [...document.querySelectorAll<HTMLButtonElement>("#names button")];

function picked(item: Item | null): void {
  for (const button of list) {
    if (item?.id === button.dataset.node) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  const current = list.find((button) => button.dataset.node === item?.id);
  if (current && document.activeElement !== current) current.scrollIntoView({ block: "nearest" });
  showDetails(graph, item);
}

function wireList(): void {
  byId("names").addEventListener("click", (event) => {
    const button = (event.target as HTMLElement).closest<HTMLElement>("button[data-node]");
    if (button) graph.show(button.dataset.node!);
  });
  byId("names").addEventListener("keydown", (event) => {
    const shown = list.filter((button) => !button.parentElement!.hidden);
    const at = shown.indexOf(document.activeElement as HTMLButtonElement);
    const next = event.key === "ArrowDown" ? at + 1 : event.key === "ArrowUp" ? at - 1 : -1;
    if (at >= 0 && shown[next]) {
      shown[next].focus();
      event.preventDefault();
    }
  });
  const search = byId<HTMLInputElement>("search");
  const texts = new Map(list.map((button) => {
    const node = nodes.get(button.dataset.node!)!;
    return [button, `${node.name} ${node.op} ${node.groups.join(" ")}`.toLowerCase()];
  }));
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const button of list) {
      const found = words.every((word) => texts.get(button)!.includes(word));
      button.parentElement!.hidden = !found;
      left += found ? 1 : 0;
    }
    byId("found").textContent = words.length ? `${left} of ${list.length} operations` : `${list.length} operations`;
  });
  search.addEventListener("keydown", (event) => {
    const first = list.find((button) => !button.parentElement!.hidden);
    if (event.key === "Enter" && first) graph.show(first.dataset.node!);
  });
}

function wireTools(): void {
  const choice = byId<HTMLSelectElement>("colour");
  const all = measures();
  choice.append(element("option", { value: "" }, "change of channels"));
  for (const measure of all) choice.append(element("option", { value: measure.key }, measure.label));
  choice.addEventListener("change", () => {
    graph.colourBy(all.find((measure) => measure.key === choice.value) ?? null);
    drawLegend(choice.selectedOptions[0].text);
  });
  byId("expand").addEventListener("click", () => graph.expandAll());
  byId("collapse").addEventListener("click", () => graph.collapseAll());
  byId("in").addEventListener("click", () => graph.zoom(1.25));
  byId("out").addEventListener("click", () => graph.zoom(0.8));
  byId("fit").addEventListener("click", () => graph.fit());
  drawLegend("");
}

function drawLegend(label: string): void {
  const legend = byId("legend");
  const values = graph.scaleNow();
  if (values) {
    const ramp = element("span", { class: "ramp", "aria-hidden": "true" });
    ramp.style.background = `linear-gradient(to right, ${colour("scale-low")}, ${colour("scale-high")})`;
    legend.replaceChildren(`${label}: `, values.ends[0], ramp, values.ends[1]);
    return;
  }
  const kinds: Change[] = ["wider", "narrower", "pinned", "same"];
  legend.replaceChildren(
    ...kinds.map((kind) => element("span", { class: `key ${kind}` }, element("b", { "aria-hidden": "true" }, MARKS[kind] || " "), ` ${WORDS[kind]}`)),
    element("span", { class: "key closed" }, element("b", { "aria-hidden": "true" }, "+"), " closed module"),
  );
}

function start(): void {
  graph = new Graph(byId("canvas"), view.nodes, (item) => picked(item));
  showDetails(graph, null);
  wireList();
  wireTools();
  wireTable((id) => {
    graph.light(id);
    byId("graph").scrollIntoView();
  });
  wireTheme(() => {
    forgetColours();
    graph.restyle();
    byId<HTMLSelectElement>("colour").dispatchEvent(new Event("change"));
    drawCharts();
  });
  drawCharts();
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width) drawCharts();
    width = window.innerWidth;
  });
  document.documentElement.dataset.ready = "true";
}

// What can be read is painted before the graph is laid out: a frame, and what comes after it.
requestAnimationFrame(() => setTimeout(start));
